// What collectives and codecs cost on the machines at hand: time = latency + bytes * per_byte, measured, never assumed
// (research/lgreco.md §6.1). What the compression planner counts with.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "comm/codec/codec.h"
#include "comm/communicator.h"

namespace shoal {

struct LinearTime {
  double latency = 0, per_byte = 0;  // seconds
  double operator()(double bytes) const { return latency + bytes * per_byte; }
};
// By least squares on relative errors, neither term negative; points are (bytes, seconds).
LinearTime FitLinearTime(absl::Span<const std::pair<double, double>> points);

// Seconds of CPU of f32 bytes through one thread of a rank.
struct CodecCosts {
  LinearTime encode = {};  // with error feedback; of PowerSGD the whole round
  LinearTime decode = {};
};

// Of collectives, by bytes of the whole tensor: of an all-reduce's, of what all-to-all and reduce-scatter take of a
// rank, of what all-gather makes. The slowest rank counts.
struct ExchangeCosts {
  int ranks = 1;
  LinearTime all_reduce = {}, reduce_scatter = {}, all_to_all = {}, all_gather = {};
  // CPU of a rank for a byte of an all-reduce, which is what two of the others take together.
  double cpu_per_byte = 0;
  // How much a second of CPU for communication puts off who computes: 0 where a core is free for it, 1 where they share
  // one core, 1 / share where a rank has less.
  double delay_per_cpu_second = 0;
  std::map<std::string, CodecCosts> codecs = {};  // by name

  // Seconds of a reduction through `codec`, whose code takes code_bytes for `bytes` of f32: exchange alone, and the
  // codec's own part, of a core or of the share of one that the rank has. kScatter: the sum stays with its owners
  // (ZeRO 1).
  enum class Half : uint8_t { kScatter, kAll };
  double ExchangeSeconds(const Codec& codec, double bytes, double code_bytes, Half half) const;
  double CodecSeconds(const Codec& codec, double bytes, Half half) const;
  double CodecCpuSeconds(const Codec& codec, double bytes, Half half) const;
  // By how much computing is put off by both.
  double DelaySeconds(const Codec& codec, double bytes, double code_bytes, Half half) const;
  // Seconds of an encoded reduction of nothing.
  double Latency(Half half) const;
};

// Collective: every rank calls it. Takes a second or two on links of 100 Mbit/s; `most_bytes` bounds the sizes tried,
// `threads` compute on each rank.
absl::StatusOr<ExchangeCosts> MeasureExchange(Communicator& comm, int64_t most_bytes, int threads);
// Whether `costs` are of these links: one all-reduce of 1 MiB, the middle of five on the slowest rank, takes a quarter
// to four times what they say, or is within 5 ms of it, which ranks that share cores wait for each other now and then.
// Collective; the answer is the same on all ranks.
struct LinkCheck {
  double said = 0, measured = 0;  // seconds
  bool agrees = true;
};
absl::StatusOr<LinkCheck> CheckLinks(Communicator& comm, const ExchangeCosts& costs);
// Adds codecs to them, all ranks at once as in training. Collective.
absl::Status MeasureCodecs(Communicator& comm, absl::Span<const Codec* const> codecs, ExchangeCosts& costs);

}  // namespace shoal
