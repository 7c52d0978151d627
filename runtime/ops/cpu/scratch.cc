#include "runtime/ops/cpu/scratch.h"

#include <glog/logging.h>

#include <array>
#include <cstdlib>
#include <memory>

namespace shoal::cpu {
namespace {

struct Block {
  std::unique_ptr<void, decltype(&std::free)> data{nullptr, &std::free};
  int64_t bytes = 0;
};

}  // namespace

void* ScratchBytes(ScratchSlot slot, int64_t bytes) {
  thread_local std::array<Block, static_cast<int>(ScratchSlot::kCount)> blocks;
  Block& block = blocks[static_cast<int>(slot)];
  if (block.bytes < bytes) {
    const int64_t rounded = (bytes + 4095) / 4096 * 4096;
    block.data.reset(std::aligned_alloc(64, rounded));
    CHECK(block.data != nullptr) << "no memory for " << rounded << " bytes of kernel scratch";
    block.bytes = rounded;
  }
  return block.data.get();
}

}  // namespace shoal::cpu
