#include "launch/batch_on_device.h"

#include <algorithm>

#include "runtime/base/rng.h"

namespace shoal {
namespace {

Tensor Int32Tensor(const std::vector<int32_t>& values) {
  Tensor out = Tensor::Zeros({static_cast<int64_t>(values.size())}, DType::kI32);
  std::copy(values.begin(), values.end(), out.data<int32_t>());
  return out;
}

}  // namespace

Batch ToBatch(const MicroBatch& micro) {
  auto layout = std::make_shared<SeqLayout>();
  layout->cu_seqlens = micro.cu_seqlens;
  layout->positions = Int32Tensor(micro.positions);
  layout->labels = Int32Tensor(micro.labels);
  layout->max_len = micro.max_len;
  layout->token_counters = Tensor::Zeros({static_cast<int64_t>(micro.tokens.size())}, DType::kI64);
  int64_t* counters = layout->token_counters.data<int64_t>();
  for (size_t s = 0; s + 1 < micro.cu_seqlens.size(); ++s) {
    for (int32_t t = micro.cu_seqlens[s]; t < micro.cu_seqlens[s + 1]; ++t) {
      counters[t] = static_cast<int64_t>(TokenCounter(micro.sample_ids[s], t - micro.cu_seqlens[s]));
    }
  }
  return Batch{Int32Tensor(micro.tokens), std::move(layout)};
}

}  // namespace shoal
