#include "runtime/ops/cpu/onednn_adapter.h"

#include <dnnl.h>
#include <glog/logging.h>

#include "absl/strings/str_cat.h"

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

}  // namespace

bool OneDnnSgemm(const GemmShape& s, float alpha, const float* a, const float* b, float beta, float* c) {
  if (!kUseOneDnn) return false;
  OneOpenMpThread();
  const auto letter = [](ops::Transpose t) { return t == ops::Transpose::kYes ? 'T' : 'N'; };
  const dnnl_status_t status = dnnl_sgemm(letter(s.transpose_a), letter(s.transpose_b), s.m, s.n, s.k, alpha, a, s.lda,
                                          b, s.ldb, beta, c, s.ldc);
  CHECK_EQ(status, dnnl_success) << "dnnl_sgemm " << s.m << "x" << s.n << "x" << s.k;
  return true;
}

std::string OneDnnVersion() {
  const dnnl_version_t* v = dnnl_version();
  return absl::StrCat(v->major, ".", v->minor, ".", v->patch);
}

}  // namespace shoal::cpu
