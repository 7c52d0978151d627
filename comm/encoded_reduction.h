// The sum over ranks of encoded gradients: scatter-reduce-allgather on codes, with error feedback at both points.
//
//   every rank encodes its contribution to each other rank's part -> all-to-all of codes -> the owner of a part adds
//   what it decodes to its own exact contribution, in rank order, in fp32 -> (kAll) the owner encodes the sum,
//   all-gather of codes, every rank decodes, the owner its own code too
//
// So all ranks hold the same bits, in every run and on every back end, and nothing is encoded more than twice
// (research/lgreco.md §3.1 has what a ring would cost). Squared error of the sum: sum over ranks but the owner of their
// errors, and for kAll that of the owner's code.
//
// Residuals: a rank's residual holds, in other ranks' parts, what its codes left behind as a worker; in its own part,
// what its code of the sum did. The owner adds its residual exactly, so one buffer of the gradients' size serves both
// points, and the sum of all ranks' residuals is what the optimizer has not seen yet. The next residual comes to the
// old one's place while both are in cache, and the old one to the contribution's, so that only a step that is skipped
// copies.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "comm/codec/codec.h"
#include "runtime/tensor/tensor.h"

namespace shoal {

// Elements [begin, end) of the buffer: a part of one tensor, through one codec.
struct EncodedRun {
  int64_t begin = 0, end = 0;
  const Codec* codec = nullptr;  // not owned, outlives the operation
  uint64_t tensor = 0;           // NameHash of its name
  int64_t first = 0;             // element `begin` inside the flattened tensor
};

struct RunErrors {           // a sum over runs, where there are several
  double squares = 0;        // of what this rank encoded of a run: sum of x^2
  double error_squares = 0;  // and of what its codes left behind
};

struct EncodedReduction {
  Tensor in;  // f32 [n]: this rank's contribution
  // f32 [n]. It becomes the next one, and `in` what it was: whoever skips the step copies that back. Undefined: no
  // error feedback, `in` stays as it is. Runs of factors are passed by in both.
  Tensor residual;
  float residual_scale = 1;
  std::vector<int64_t> counts;   // elements of each rank's part, in rank order; they sum to n
  std::vector<EncodedRun> runs;  // ascending, without gaps over [0, n); equal on all ranks
  enum class Half : uint8_t { kScatter, kAll } half = Half::kAll;
  Tensor out;  // f32: the sum, [counts[rank]] for kScatter, [n] for kAll
  uint64_t seed = 0;
  uint32_t step = 0;  // for stochastic codecs
  // Is shown every part of a run just before it is encoded, with exactly what is: for errors of codecs not taken. On
  // the progress thread. Null: nobody looks.
  std::function<void(size_t run, const CodecInput& input)> observe = nullptr;
  // [runs], added to on the progress thread; whole once the operation is done. Null: not wanted.
  std::shared_ptr<std::vector<RunErrors>> errors = nullptr;
};

// Every run travels as it is and nothing else is to be done with it, so that no code needs to be made.
bool TravelsPlain(const EncodedReduction& reduction);
// Bytes of the code of elements [begin, end) of the buffer: each run's part is encoded by itself.
int64_t EncodedBytes(const EncodedReduction& reduction, int64_t begin, int64_t end);
// Encodes elements [begin, end) to `code`, which holds EncodedBytes bytes. Pointers are to element `begin`; `residual`
// may be null. kInOut: it is encoded together with `from`, takes what is left behind, and `from` takes what it was.
// kOut: it takes what `from` alone leaves.
struct RunsToEncode {
  int64_t begin = 0, end = 0;
  float* from = nullptr;
  float* residual = nullptr;
  enum class Residual : uint8_t { kInOut, kOut } residual_is = Residual::kInOut;
};
void EncodeRuns(const EncodedReduction& reduction, const RunsToEncode& runs, int rank, CodecKey::Point point,
                uint8_t* code);
// Decodes them; `out` is element `begin`.
void DecodeRuns(const EncodedReduction& reduction, const uint8_t* code, int64_t begin, int64_t end, Codec::Into into,
                float* out);
// out (+)= from + scale * residual, exactly what a rank adds in its own part.
void AddOwn(const float* from, const float* residual, float scale, int64_t size, Codec::Into into, float* out);
// A rank's own contribution to its own part [begin, end), into `out`, element `begin` of the sum; and then zeros in the
// residual and what it was in `in`. Runs of factors are passed by.
void AddOwnRuns(const EncodedReduction& reduction, int64_t begin, int64_t end, Codec::Into into, float* out);
void ReplaceOwnResiduals(const EncodedReduction& reduction, int64_t begin, int64_t end);
// What ranks must agree on, as text.
std::string EncodedLayout(const EncodedReduction& reduction);

}  // namespace shoal
