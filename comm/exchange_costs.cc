#include "comm/exchange_costs.h"

#include <time.h>

#include <algorithm>
#include <cmath>
#include <thread>

#include "comm/codec/power_sgd.h"
#include "comm/world.h"
#include "runtime/base/rng.h"
#include "runtime/base/status.h"
#include "runtime/obs/span.h"

namespace shoal {
namespace {

constexpr int64_t kFloat = sizeof(float);

double CpuSeconds(clockid_t clock) {
  timespec time{};
  ::clock_gettime(clock, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

// The middle of some calls' times by the clock, on the slowest rank. All ranks make as many calls.
template <class Clock, class F>
absl::StatusOr<double> MedianSeconds(Communicator& comm, Clock clock, F call) {
  constexpr int kCalls = 5;
  std::vector<double> seconds;
  for (int i = 0; i < kCalls; ++i) {
    SHOAL_RETURN_IF_ERROR(comm.Barrier({.tag = "calibrate"})->Wait());
    const double start = clock();
    SHOAL_RETURN_IF_ERROR(call());
    seconds.push_back(clock() - start);
  }
  std::sort(seconds.begin(), seconds.end());
  SHOAL_ASSIGN_OR_RETURN(const auto slowest,
                         AllReduceValues(comm, {seconds[kCalls / 2]}, ReduceOp::kMax, {.tag = "calibrate"}));
  return slowest[0];
}

// Cores that `threads` busy threads of every rank get, this rank's share.
double CoresOf(int threads) {
  constexpr double kSeconds = 0.1;  // several periods of a CPU quota
  std::vector<double> used(static_cast<size_t>(threads));
  std::vector<std::thread> busy;
  const double start = SteadySeconds();
  for (double& cpu : used) {
    busy.emplace_back([&cpu, start] {
      while (SteadySeconds() < start + kSeconds) {
      }
      cpu = CpuSeconds(CLOCK_THREAD_CPUTIME_ID);
    });
  }
  for (std::thread& thread : busy) thread.join();
  double sum = 0;
  for (const double cpu : used) sum += cpu;
  return sum / (SteadySeconds() - start);
}

absl::StatusOr<double> DelayPerCpuSecond(Communicator& comm, int threads) {
  SHOAL_RETURN_IF_ERROR(comm.Barrier({.tag = "calibrate"})->Wait());
  const double alone = CoresOf(threads);
  SHOAL_RETURN_IF_ERROR(comm.Barrier({.tag = "calibrate"})->Wait());
  const double with = CoresOf(threads + 1);
  constexpr double kFree = 0.8;  // of a core more for one thread more
  const double mine = with - alone > kFree ? 0 : 1 / std::max(0.05, alone);
  SHOAL_ASSIGN_OR_RETURN(const auto most, AllReduceValues(comm, {mine}, ReduceOp::kMax, {.tag = "calibrate"}));
  return most[0];
}

}  // namespace

LinearTime FitLinearTime(absl::Span<const std::pair<double, double>> points) {
  // Rows (1 / t, bytes / t) . (latency, per_byte) = 1.
  double aa = 0, ab = 0, bb = 0, a = 0, b = 0;
  for (const auto& [bytes, seconds] : points) {
    const double t = std::max(seconds, 1e-9), x = 1 / t, y = bytes / t;
    aa += x * x;
    ab += x * y;
    bb += y * y;
    a += x;
    b += y;
  }
  const double determinant = aa * bb - ab * ab;
  LinearTime fit;
  if (determinant > 1e-12 * aa * bb)
    fit = {.latency = (a * bb - b * ab) / determinant, .per_byte = (b * aa - a * ab) / determinant};
  if (fit.per_byte <= 0) fit = {.latency = aa > 0 ? a / aa : 0, .per_byte = 0};
  if (fit.latency < 0) fit = {.latency = 0, .per_byte = bb > 0 ? b / bb : 0};
  return fit;
}

double ExchangeCosts::ExchangeSeconds(const Codec& codec, double bytes, double code_bytes, Half half) const {
  if (codec.factor_rank() > 0) return all_reduce(code_bytes);
  if (codec.plain()) return bytes * (half == Half::kAll ? all_reduce : reduce_scatter).per_byte;
  return code_bytes * (all_to_all.per_byte + (half == Half::kAll ? all_gather.per_byte : 0));
}

double ExchangeCosts::CodecSeconds(const Codec& codec, double bytes, Half half) const {
  return std::max(1.0, delay_per_cpu_second) * CodecCpuSeconds(codec, bytes, half);
}

double ExchangeCosts::CodecCpuSeconds(const Codec& codec, double bytes, Half half) const {
  if (codec.plain()) return 0;
  const auto at = codecs.find(std::string(codec.name()));
  if (at == codecs.end()) return 0;
  if (codec.factor_rank() > 0) return bytes * at->second.encode.per_byte;
  // As a worker all parts but one's own, as an owner the sum; decoded are the others' contributions, and all parts.
  const double others = bytes * (ranks - 1) / ranks;
  const CodecCosts& c = at->second;
  return half == Half::kAll ? bytes * c.encode.per_byte + (bytes + others) * c.decode.per_byte
                            : others * (c.encode.per_byte + c.decode.per_byte);
}

double ExchangeCosts::DelaySeconds(const Codec& codec, double bytes, double code_bytes, Half half) const {
  const double moved = (codec.plain() ? bytes : code_bytes) * (half == Half::kAll || codec.factor_rank() > 0 ? 1 : 0.5);
  return delay_per_cpu_second * (CodecCpuSeconds(codec, bytes, half) + cpu_per_byte * moved);
}

double ExchangeCosts::Latency(Half half) const {
  return all_to_all.latency + (half == Half::kAll ? all_gather.latency : 0);
}

absl::StatusOr<LinkCheck> CheckLinks(Communicator& comm, const ExchangeCosts& costs) {
  constexpr double kFactor = 4, kWaits = 5e-3;
  constexpr int64_t kBytes = 1 << 20;
  if (comm.size() == 1) return LinkCheck();
  const Tensor whole = Tensor::Zeros({kBytes / kFloat}, DType::kF32);
  SHOAL_ASSIGN_OR_RETURN(const double measured, MedianSeconds(comm, SteadySeconds, [&] {
                           return comm.AllReduce(whole, ReduceOp::kSum, {.tag = "links"})->Wait();
                         }));
  const double said = costs.all_reduce(kBytes), factor = measured / std::max(1e-9, said);
  return LinkCheck{.said = said,
                   .measured = measured,
                   .agrees = std::abs(measured - said) < kWaits || (factor < kFactor && factor > 1 / kFactor)};
}

absl::StatusOr<ExchangeCosts> MeasureExchange(Communicator& comm, int64_t most_bytes, int threads) {
  ExchangeCosts costs{.ranks = comm.size()};
  if (comm.size() == 1) return costs;
  std::vector<std::pair<double, double>> reduce, scatter, to_all, gather;
  for (const int64_t bytes : {int64_t{8} << 10, int64_t{64} << 10, int64_t{512} << 10, int64_t{2} << 20}) {
    if (bytes > most_bytes && !reduce.empty()) break;
    const int64_t each = bytes / kFloat / comm.size(), all = each * comm.size();
    const Tensor whole = Tensor::Zeros({all}, DType::kF32), other = Tensor::Zeros({all}, DType::kF32),
                 part = Tensor::Zeros({each}, DType::kF32);
    const auto row = [&](std::vector<std::pair<double, double>>& points, auto call) -> absl::Status {
      SHOAL_ASSIGN_OR_RETURN(const double seconds, MedianSeconds(comm, SteadySeconds, [&] { return call()->Wait(); }));
      points.emplace_back(static_cast<double>(all * kFloat), seconds);
      return absl::OkStatus();
    };
    const CallOptions tag{.tag = "calibrate"};
    SHOAL_RETURN_IF_ERROR(row(reduce, [&] { return comm.AllReduce(whole, ReduceOp::kSum, tag); }));
    SHOAL_RETURN_IF_ERROR(row(scatter, [&] { return comm.ReduceScatter(whole, part, ReduceOp::kSum, tag); }));
    SHOAL_RETURN_IF_ERROR(row(to_all, [&] { return comm.AllToAll(whole, other, tag); }));
    SHOAL_RETURN_IF_ERROR(row(gather, [&] { return comm.AllGather(part, whole, tag); }));
  }
  // Of the largest, where latencies do not count. Thread ranks share a process.
  const auto largest = static_cast<int64_t>(reduce.back().first) / kFloat;
  const Tensor x = Tensor::Zeros({largest}, DType::kF32);
  const double ranks_here = UnderMpiLauncher() ? 1 : comm.size();
  SHOAL_ASSIGN_OR_RETURN(const double cpu,
                         MedianSeconds(
                             comm, [] { return CpuSeconds(CLOCK_PROCESS_CPUTIME_ID); },
                             [&] { return comm.AllReduce(x, ReduceOp::kSum, {.tag = "calibrate"})->Wait(); }));
  costs.cpu_per_byte = cpu / ranks_here / reduce.back().first;
  SHOAL_ASSIGN_OR_RETURN(costs.delay_per_cpu_second, DelayPerCpuSecond(comm, threads));
  costs.all_reduce = FitLinearTime(reduce);
  costs.reduce_scatter = FitLinearTime(scatter);
  costs.all_to_all = FitLinearTime(to_all);
  costs.all_gather = FitLinearTime(gather);
  return costs;
}

absl::Status MeasureCodecs(Communicator& comm, absl::Span<const Codec* const> codecs, ExchangeCosts& costs) {
  const auto thread_clock = [] { return CpuSeconds(CLOCK_THREAD_CPUTIME_ID); };
  const Rng rng({1, RngPurpose::kCodec, NameHash("calibrate")});
  constexpr int64_t kMost = 512 * 512;
  std::vector<float> gradient(kMost), residual(kMost, 0.0F), left(kMost), out(kMost, 0.0F);
  for (int64_t i = 0; i < kMost; ++i) gradient[i] = rng.Normal(0, static_cast<uint64_t>(i));
  for (const Codec* codec : codecs) {
    if (const int rank = codec->factor_rank(); rank > 0) {
      constexpr int64_t kSide = 512;
      const PowerSgdShape shape{kSide, kSide, std::min<int>(rank, kSide)};
      std::vector<float> q(static_cast<size_t>(kSide) * shape.rank), p = q;
      const CodecInput input{
          .gradient = gradient.data(), .residual = residual.data(), .size = kMost, .left = left.data()};
      SHOAL_ASSIGN_OR_RETURN(const double round, MedianSeconds(comm, thread_clock, [&] {
                               PowerSgdStart(shape, 1, 1, 0, 0, q.data());
                               PowerSgdProject(shape, input, q.data(), p.data());
                               Orthonormalise(kSide, shape.rank, p.data());
                               PowerSgdBackProject(shape, input, p.data(), q.data());
                               PowerSgdResidual(shape, input, p.data(), q.data());
                               PowerSgdReconstruct(shape, p.data(), q.data(), out.data());
                               return absl::OkStatus();
                             }));
      costs.codecs[std::string(codec->name())] = {{0, round / static_cast<double>(kMost * kFloat)}, {}};
      continue;
    }
    std::vector<uint8_t> code(static_cast<size_t>(codec->Bytes(kMost)));
    std::vector<std::pair<double, double>> encode, decode;
    for (const int64_t n : {kMost / 16, kMost}) {
      SHOAL_ASSIGN_OR_RETURN(
          const double encoded, MedianSeconds(comm, thread_clock, [&] {
            codec->Encode({.gradient = gradient.data(), .residual = residual.data(), .size = n, .left = left.data()},
                          {}, code.data());
            return absl::OkStatus();
          }));
      SHOAL_ASSIGN_OR_RETURN(const double decoded, MedianSeconds(comm, thread_clock, [&] {
                               codec->Decode(code.data(), n, Codec::Into::kAdd, out.data());
                               return absl::OkStatus();
                             }));
      encode.emplace_back(static_cast<double>(n * kFloat), encoded);
      decode.emplace_back(static_cast<double>(n * kFloat), decoded);
    }
    costs.codecs[std::string(codec->name())] = {FitLinearTime(encode), FitLinearTime(decode)};
  }
  return absl::OkStatus();
}

}  // namespace shoal
