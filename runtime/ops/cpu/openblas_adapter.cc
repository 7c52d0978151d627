#include "runtime/ops/cpu/openblas_adapter.h"

#include <dlfcn.h>
#include <glog/logging.h>

#include <cstdlib>
#include <limits>
#include <type_traits>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "runtime/ops/cpu/onednn_adapter.h"

namespace shoal::cpu {
namespace {

// Its declarations are those of cblas.h with 32-bit integers.
struct Library {
  void (*sgemm)(int order, int transpose_a, int transpose_b, int m, int n, int k, float alpha, const float* a, int lda,
                const float* b, int ldb, float beta, float* c, int ldc) = nullptr;
  void (*set_threads)(int threads) = nullptr;
  char* (*config)() = nullptr;
  char* (*core)() = nullptr;

  Library() {
    if (!LibrariesAreCalled()) return;
    void* const library = ::dlopen("libopenblas.so.0", RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) return;
    const auto find = [library](auto& function, const char* name) {
      function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(::dlsym(library, name));
      return function != nullptr;
    };
    if (find(set_threads, "openblas_set_num_threads") && find(config, "openblas_get_config") &&
        find(core, "openblas_get_corename") && find(sgemm, "cblas_sgemm")) {
      set_threads(1);
    } else {
      sgemm = nullptr;
    }
  }
};
const Library& OpenBlas() {
  static const Library* const library = new Library;
  return *library;
}

}  // namespace

bool OpenBlasSgemm(const GemmShape& s, float alpha, const float* a, const float* b, float beta, float* c) {
  constexpr int kRowMajor = 101, kNoTranspose = 111, kTranspose = 112;
  if (OpenBlas().sgemm == nullptr) return false;
  constexpr int64_t kMost = std::numeric_limits<int>::max();
  CHECK(s.m <= kMost && s.n <= kMost && s.k <= kMost && s.lda <= kMost && s.ldb <= kMost && s.ldc <= kMost)
      << s.m << "x" << s.n << "x" << s.k;
  const auto flag = [](ops::Transpose t) { return t == ops::Transpose::kYes ? kTranspose : kNoTranspose; };
  OpenBlas().sgemm(kRowMajor, flag(s.transpose_a), flag(s.transpose_b), static_cast<int>(s.m), static_cast<int>(s.n),
                   static_cast<int>(s.k), alpha, a, static_cast<int>(s.lda), b, static_cast<int>(s.ldb), beta, c,
                   static_cast<int>(s.ldc));
  return true;
}

bool HasOpenBlas() { return OpenBlas().sgemm != nullptr; }

bool PrefersOpenBlas() {
  static const bool slow = __builtin_cpu_is("amd") && !OneDnnUsesAvx512();
  return slow && HasOpenBlas();
}

std::string OpenBlasVersion() {
  if (!HasOpenBlas()) return "";
  // "OpenBLAS 0.3.21 NO_AFFINITY ..."
  const std::vector<std::string> words = absl::StrSplit(OpenBlas().config(), absl::MaxSplits(' ', 2));
  return absl::StrCat(words[0], " ", words.size() > 1 ? words[1] : "", " (", OpenBlas().core(), ")");
}

void KeepOpenBlasToOneThread() { ::setenv("OPENBLAS_NUM_THREADS", "1", /*replace=*/0); }

}  // namespace shoal::cpu
