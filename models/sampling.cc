#include "models/sampling.h"

#include <glog/logging.h>

#include <algorithm>
#include <cmath>
#include <numeric>

namespace shoal {

int32_t SampleToken(absl::Span<const float> logits, const SamplingOptions& options, int64_t position) {
  std::vector<int32_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(),
            [&](int32_t a, int32_t b) { return logits[a] > logits[b] || (logits[a] == logits[b] && a < b); });
  if (options.temperature <= 0) return order[0];
  if (options.top_k > 0 && options.top_k < static_cast<int32_t>(order.size())) order.resize(options.top_k);
  std::vector<double> weights;
  double total = 0;
  for (int32_t token : order) {
    weights.push_back(
        std::exp((static_cast<double>(logits[token]) - static_cast<double>(logits[order[0]])) / options.temperature));
    total += weights.back();
  }
  double kept = 0;
  size_t count = 0;
  while (count < order.size() && (count == 0 || kept < options.top_p * total)) kept += weights[count++];
  double left = kept * Rng({options.seed, RngPurpose::kSample}).Uniform53(0, static_cast<uint64_t>(position));
  for (size_t i = 0; i < count; ++i) {
    left -= weights[i];
    if (left < 0) return order[i];
  }
  return order[count - 1];
}

std::vector<int32_t> Generate(Transformer& model, const StepContext::Options& ctx_options, std::vector<int32_t> prompt,
                              int64_t count, int64_t context, const SamplingOptions& options) {
  CHECK(!prompt.empty()) << "a prompt has at least one token";
  std::vector<int32_t> generated;
  for (int64_t i = 0; i < count; ++i) {
    const auto seen = std::min<int64_t>(context, static_cast<int64_t>(prompt.size()));
    auto layout = std::make_shared<SeqLayout>();
    layout->cu_seqlens = {0, static_cast<int32_t>(seen)};
    layout->max_len = static_cast<int32_t>(seen);
    layout->positions = Tensor::Zeros({seen}, DType::kI32);
    const Tensor tokens = Tensor::Zeros({seen}, DType::kI32);
    std::copy(prompt.end() - seen, prompt.end(), tokens.data<int32_t>());
    std::iota(layout->positions.data<int32_t>(), layout->positions.data<int32_t>() + seen, 0);
    StepContext ctx(ctx_options);
    const Batch hidden = model.Hidden(ctx, {tokens, layout});
    const Tensor logits = model.head().Logits(ctx, hidden.x.Rows(seen - 1, seen));
    const int32_t next = SampleToken({logits.data<float>(), static_cast<size_t>(logits.size())}, options,
                                     static_cast<int64_t>(prompt.size()));
    ctx.DropFrames(0);
    ctx.arena().Rewind(0);
    prompt.push_back(next);
    generated.push_back(next);
  }
  return generated;
}

}  // namespace shoal
