#include "runtime/ops/dispatch.h"

#include <cpuid.h>

namespace shoal {
namespace {

CpuFeatures Detect() {
  CpuFeatures f;
  __builtin_cpu_init();
  f.avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  f.avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (__get_cpuid_count(7, 1, &a, &b, &c, &d)) f.avx512_bf16 = f.avx512 && (a >> 5 & 1);
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d)) f.amx_bf16 = f.avx512 && (d >> 22 & 1);
  f.isa = f.avx512 ? "avx512" : f.avx2 ? "avx2" : "sse2";
  if (f.avx512_bf16) f.isa += "+bf16";
  if (f.amx_bf16) f.isa += "+amx";
  return f;
}

}  // namespace

const CpuFeatures& HostCpu() {
  static const CpuFeatures features = Detect();
  return features;
}

bool HostPrefersBf16() { return HostCpu().avx512_bf16 || HostCpu().amx_bf16; }

}  // namespace shoal
