// Which instruction sets the CPU kernels may use, found once at run time; tests force lower ones.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace shoal {

struct CpuFeatures {
  bool avx2 = false;
  bool avx512 = false;  // F, BW, DQ, VL
  bool avx512_bf16 = false;
  bool amx_bf16 = false;
  std::string isa;  // "avx512+bf16", "avx2", ...
};

// What CPUID and the operating system allow.
const CpuFeatures& HostCpu();
// Compute dtype that `auto` means on this host: bf16 with avx512_bf16 or AMX, else fp32.
bool HostPrefersBf16();

}  // namespace shoal
