#include "runtime/ops/cpu/onednn_adapter.h"

#include <dnnl.h>
#include <glog/logging.h>

#include <algorithm>
#include <cstring>
#include <dnnl.hpp>

#include "absl/strings/str_cat.h"
#include "runtime/ops/cpu/scratch.h"
#include "runtime/ops/dispatch.h"

// libgomp's, which Debian's oneDNN is linked with; weak, because a oneDNN built with another threading runtime has
// none.
extern "C" void omp_set_num_threads(int) __attribute__((weak));

namespace shoal::cpu {
namespace {

#if defined(__SANITIZE_THREAD__)
constexpr bool kUseOneDnn = false;
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
constexpr bool kUseOneDnn = false;
#else
constexpr bool kUseOneDnn = true;
#endif
#else
constexpr bool kUseOneDnn = true;
#endif

// oneDNN reads the calling thread's OpenMP setting: each of our threads asks for one.
void OneOpenMpThread() {
  thread_local const bool done = [] {
    if (omp_set_num_threads != nullptr) omp_set_num_threads(1);
    return true;
  }();
  (void)done;
}

void Sgemm(const GemmShape& s, float alpha, const float* a, const float* b, float beta, float* c) {
  const auto letter = [](ops::Transpose t) { return t == ops::Transpose::kYes ? 'T' : 'N'; };
  const dnnl_status_t status = dnnl_sgemm(letter(s.transpose_a), letter(s.transpose_b), s.m, s.n, s.k, alpha, a, s.lda,
                                          b, s.ldb, beta, c, s.ldc);
  CHECK_EQ(status, dnnl_success) << "dnnl_sgemm " << s.m << "x" << s.n << "x" << s.k;
}

constexpr int64_t kLine = 64 / sizeof(float);

// Its AVX-512 kernels sum in blocks of k, whose size depends on m and n where k is 768 or more; less is one block.
constexpr int64_t kSlice = 704;

// Panels of an untransposed B whose rows are whole pages apart fill one set of the cache, and kernels for fewer than
// 1024 rows of an untransposed A read them so: 110 GFLOP/s in place of 150 (measured with oneDNN 2.6).
bool RowsCollide(const GemmShape& s) {
  constexpr int64_t kPage = 4096 / sizeof(float), kFewRows = 8, kManyRows = 1024;
  return s.transpose_a == ops::Transpose::kNo && s.transpose_b == ops::Transpose::kNo && s.ldb % kPage == 0 &&
         s.m >= kFewRows && s.m < kManyRows;
}

// B in scratch, its rows an odd number of cache lines apart.
const float* Spread(GemmShape& s, const float* b) {
  const int64_t ld = ((s.n + kLine - 1) / kLine | 1) * kLine;
  float* const spread = Scratch<float>(ScratchSlot::kOneDnn, s.k * ld);
  for (int64_t k = 0; k < s.k; ++k) std::copy_n(b + k * s.ldb, s.n, spread + k * ld);
  s.ldb = ld;
  return spread;
}

}  // namespace

bool OneDnnSgemm(const GemmShape& s, float alpha, const float* a, const float* b, float beta, float* c) {
  if (!kUseOneDnn) return false;
  OneOpenMpThread();
  static const bool avx512 = OneDnnUsesAvx512();
  if (!avx512) {
    Sgemm(s, alpha, a, b, beta, c);
    return true;
  }
  const int64_t slices = std::max<int64_t>(1, (s.k + kSlice - 1) / kSlice);
  int64_t begin = 0;
  for (int64_t i = 0; i < slices; ++i) {
    const int64_t end = i + 1 == slices ? s.k : s.k * (i + 1) / slices / kLine * kLine;
    GemmShape slice = s;
    slice.k = end - begin;
    const float* from_a = a + (s.transpose_a == ops::Transpose::kYes ? begin * s.lda : begin);
    const float* from_b = b + (s.transpose_b == ops::Transpose::kYes ? begin : begin * s.ldb);
    if (RowsCollide(slice)) from_b = Spread(slice, from_b);
    Sgemm(slice, alpha, from_a, from_b, i == 0 ? beta : 1.0f, c);
    begin = end;
  }
  return true;
}

bool OneDnnBf16Gemm(const GemmShape& s, const BFloat16* a, const BFloat16* b, ops::Accumulate accumulate, void* c,
                    DType c_type) {
  if (!kUseOneDnn || !HostPrefersBf16()) return false;
  OneOpenMpThread();
  static const dnnl::engine engine(dnnl::engine::kind::cpu, 0);
  thread_local dnnl::stream stream(engine);
  using Type = dnnl::memory::data_type;
  using Dims = dnnl::memory::dims;
  const auto strides = [](ops::Transpose t, int64_t ld) {
    return t == ops::Transpose::kYes ? Dims{1, ld} : Dims{ld, 1};
  };
  const dnnl::memory::desc a_desc({s.m, s.k}, Type::bf16, strides(s.transpose_a, s.lda));
  const dnnl::memory::desc b_desc({s.k, s.n}, Type::bf16, strides(s.transpose_b, s.ldb));
  const dnnl::memory::desc c_desc({s.m, s.n}, c_type == DType::kF32 ? Type::f32 : Type::bf16, Dims{s.ldc, 1});
  dnnl::primitive_attr attributes;
  if (accumulate == ops::Accumulate::kAdd) {
    dnnl::post_ops sum;
    sum.append_sum(1.0f);
    attributes.set_post_ops(sum);
  }
  // oneDNN keeps primitives by description: making one again costs about 2 us.
#if DNNL_VERSION_MAJOR >= 3
  const dnnl::matmul::primitive_desc description(engine, a_desc, b_desc, c_desc, attributes);
#else
  const dnnl::matmul::primitive_desc description(dnnl::matmul::desc(a_desc, b_desc, c_desc), attributes, engine);
#endif
  LOG_IF(WARNING, std::strncmp(description.impl_info_str(), "ref", 3) == 0)
      << "oneDNN has only its reference kernel for a bf16 product of " << s.m << "x" << s.n << "x" << s.k
      << ": it will be slow";
  const dnnl::matmul product(description);
  product.execute(stream, {{DNNL_ARG_SRC, dnnl::memory(a_desc, engine, const_cast<BFloat16*>(a))},
                           {DNNL_ARG_WEIGHTS, dnnl::memory(b_desc, engine, const_cast<BFloat16*>(b))},
                           {DNNL_ARG_DST, dnnl::memory(c_desc, engine, c)}});
  stream.wait();
  return true;
}

bool LibrariesAreCalled() { return kUseOneDnn; }
bool OneDnnUsesAvx512() {
  // Values of the enumeration are sets of bits.
  return (dnnl_get_effective_cpu_isa() & dnnl_cpu_isa_avx512_core) == dnnl_cpu_isa_avx512_core;
}

std::string OneDnnVersion() {
  const dnnl_version_t* v = dnnl_version();
  return absl::StrCat(v->major, ".", v->minor, ".", v->patch);
}

}  // namespace shoal::cpu
