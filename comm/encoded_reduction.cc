#include "comm/encoded_reduction.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "runtime/base/rng.h"

namespace shoal {
namespace {

// fn(run, begin, end) for each run's part of [begin, end).
template <class F>
void ForRunParts(const EncodedReduction& reduction, int64_t begin, int64_t end, F fn) {
  const auto& runs = reduction.runs;
  auto run =
      std::upper_bound(runs.begin(), runs.end(), begin, [](int64_t at, const EncodedRun& r) { return at < r.end; });
  for (; run != runs.end() && run->begin < end; ++run) {
    const int64_t from = std::max(begin, run->begin), to = std::min(end, run->end);
    if (from < to) fn(static_cast<size_t>(run - runs.begin()), from, to);
  }
}

}  // namespace

bool TravelsPlain(const EncodedReduction& reduction) {
  return !reduction.residual.defined() && reduction.observe == nullptr &&
         std::all_of(reduction.runs.begin(), reduction.runs.end(),
                     [](const EncodedRun& run) { return run.codec->plain(); });
}

int64_t EncodedBytes(const EncodedReduction& reduction, int64_t begin, int64_t end) {
  int64_t bytes = 0;
  ForRunParts(reduction, begin, end,
              [&](size_t i, int64_t from, int64_t to) { bytes += reduction.runs[i].codec->Bytes(to - from); });
  return bytes;
}

void EncodeRuns(const EncodedReduction& reduction, const RunsToEncode& runs, int rank, CodecKey::Point point,
                uint8_t* code) {
  ForRunParts(reduction, runs.begin, runs.end, [&](size_t i, int64_t first, int64_t last) {
    const EncodedRun& run = reduction.runs[i];
    if (run.codec->factor_rank() > 0) return;
    const int64_t at = first - runs.begin;
    float* const from = runs.from + at;
    float* const residual = runs.residual == nullptr ? nullptr : runs.residual + at;
    const bool both = residual != nullptr && runs.residual_is == RunsToEncode::Residual::kInOut;
    const CodecInput input = {.gradient = from,
                              .residual = both ? residual : nullptr,
                              .residual_scale = reduction.residual_scale,
                              .size = last - first,
                              .left = both ? from : residual};
    if (reduction.observe != nullptr) reduction.observe(i, input);
    const Encoded encoded = run.codec->Encode(input,
                                              {.seed = reduction.seed,
                                               .tensor = run.tensor,
                                               .step = reduction.step,
                                               .point = point,
                                               .rank = rank,
                                               .first = run.first + first - run.begin},
                                              code);
    if (reduction.errors != nullptr) {
      (*reduction.errors)[i].squares += encoded.squares;
      (*reduction.errors)[i].error_squares += encoded.error_squares;
    }
    if (both) std::swap_ranges(from, from + input.size, residual);
    code += run.codec->Bytes(last - first);
  });
}

void DecodeRuns(const EncodedReduction& reduction, const uint8_t* code, int64_t begin, int64_t end, Codec::Into into,
                float* out) {
  ForRunParts(reduction, begin, end, [&](size_t i, int64_t first, int64_t last) {
    const Codec& codec = *reduction.runs[i].codec;
    codec.Decode(code, last - first, into, out + (first - begin));
    code += codec.Bytes(last - first);
  });
}

void AddOwn(const float* from, const float* residual, float scale, int64_t size, Codec::Into into, float* out) {
  for (int64_t i = 0; i < size; ++i) {
    const float x = residual == nullptr ? from[i] : from[i] + scale * residual[i];
    out[i] = into == Codec::Into::kOverwrite ? x : out[i] + x;
  }
}

void AddOwnRuns(const EncodedReduction& reduction, int64_t begin, int64_t end, Codec::Into into, float* out) {
  ForRunParts(reduction, begin, end, [&](size_t i, int64_t first, int64_t last) {
    if (reduction.runs[i].codec->factor_rank() > 0) return;
    AddOwn(reduction.in.data<float>() + first,
           reduction.residual.defined() ? reduction.residual.data<float>() + first : nullptr, reduction.residual_scale,
           last - first, into, out + (first - begin));
  });
}

void ReplaceOwnResiduals(const EncodedReduction& reduction, int64_t begin, int64_t end) {
  if (!reduction.residual.defined()) return;
  ForRunParts(reduction, begin, end, [&](size_t i, int64_t first, int64_t last) {
    if (reduction.runs[i].codec->factor_rank() > 0) return;
    float* const residual = reduction.residual.data<float>() + first;
    std::copy_n(residual, last - first, reduction.in.data<float>() + first);
    std::fill_n(residual, last - first, 0.0F);
  });
}

std::string EncodedLayout(const EncodedReduction& reduction) {
  std::string text = absl::StrCat(reduction.half == EncodedReduction::Half::kAll ? "all" : "scatter", " step ",
                                  reduction.step, " seed ", reduction.seed);
  for (const EncodedRun& run : reduction.runs) absl::StrAppend(&text, " ", run.end, ":", run.codec->name());
  return absl::StrCat("layout ", absl::Hex(NameHash(text)));
}

}  // namespace shoal
