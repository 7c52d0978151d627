// doctor: what this machine has, what is missing, and what to install for it.
#include <dlfcn.h>
#include <google/protobuf/stubs/common.h>
#include <unistd.h>
#include <zlib.h>
#include <zstd.h>

#include <array>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <memory>
#include <string>
#include <thread>

#include "absl/base/config.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "comm/world.h"
#include "launch/commands.h"
#include "launch/rank_setup.h"
#include "launch/run_dir.h"
#include "parallel/linear_program.h"
#include "runtime/base/memory.h"
#include "runtime/base/str.h"
#include "runtime/data/images/jpeg.h"
#include "runtime/data/images/png.h"
#include "runtime/ops/cpu/onednn_adapter.h"
#include "runtime/ops/cpu/openblas_adapter.h"
#include "runtime/ops/cpu/row_kernels.h"
#include "runtime/ops/dispatch.h"

namespace shoal {
namespace {

// First line of what `command` prints; empty when it cannot be run.
std::string FirstLineOf(const char* command) {
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> pipe(::popen(command, "r"), ::pclose);
  std::array<char, 256> line{};
  if (pipe == nullptr || std::fgets(line.data(), line.size(), pipe.get()) == nullptr) return "";
  std::string text(line.data());
  while (!text.empty() && text.back() == '\n') text.pop_back();
  return text;
}

bool Loads(const char* library) {
  void* handle = ::dlopen(library, RTLD_LAZY | RTLD_LOCAL);
  if (handle != nullptr) ::dlclose(handle);
  return handle != nullptr;
}

void Say(const char* what, const std::string& value) { std::cout << absl::StrFormat("%-22s %s\n", what, value); }

void SayMachine() {
  Say("cores",
      absl::StrFormat("%d usable of %d", UsableCores(), static_cast<int>(std::thread::hardware_concurrency())));
  Say("instruction set", absl::StrCat(HostCpu().isa, ", kernels for ", cpu::DispatchTarget(), " (this processor runs ",
                                      absl::StrJoin(cpu::RunnableTargets(), ", "), ")"));
  Say("memory available", HumanBytes(static_cast<double>(AvailableBytes())));
}

void SayLibraries() {
  const int protobuf = GOOGLE_PROTOBUF_VERSION;
  Say("Open MPI", absl::StrCat(MpiLibraryVersion(), " (least 4.0)"));
  Say("oneDNN", absl::StrCat(cpu::OneDnnVersion(), " (least 2.6)"));
  Say("Protobuf", absl::StrCat(protobuf / 1000000, ".", protobuf / 1000 % 1000, ".", protobuf % 1000, " (least 3.21)"));
#if defined(ABSL_LTS_RELEASE_VERSION)
  Say("Abseil", absl::StrCat(ABSL_LTS_RELEASE_VERSION, " (least 20220623)"));
#endif
  Say("zlib, zstd", absl::StrCat(zlibVersion(), " (least 1.2.11), ", ZSTD_versionString(), " (least 1.5)"));
  Say("linear programs", HasLinearSolver() ? LinearSolverName()
                                           : "built without CLP; only `shoal plan --bound lp` uses it "
                                             "(coinor-libclp-dev, then build again)");
  Say("images", absl::StrCat(JpegLibrary(), ", ", PngLibrary(), " (least 1.6)"));
}

// What only some uses need. Returns how many of the needed ones are missing.
int SayPrograms() {
  int missing = 0;
  const std::string mpirun = FirstLineOf("mpirun --version 2>/dev/null");
  if (mpirun.empty()) {
    ++missing;
    Say("mpirun", "MISSING: install openmpi-bin (4.0 or newer); --local_ranks works without it");
  } else {
    Say("mpirun", mpirun);
  }
  const std::string srun = FirstLineOf("srun --version 2>/dev/null");
  Say("Slurm", srun.empty() ? "not here; only `shoal launch --slurm` scripts need it" : srun);
  const std::string openblas = cpu::OpenBlasVersion();
  Say("OpenBLAS",
      openblas.empty()         ? "not here (libopenblas0-pthread); AMD processors without AVX-512 want it for products"
      : cpu::PrefersOpenBlas() ? openblas + ": takes the fp32 products, which are slow by oneDNN here"
                               : openblas + "; oneDNN takes the products, `shoal bench probe` compares the two");
  Say("launched by", UnderMpiLauncher() ? "mpirun or srun" : "nobody: one process");
  return missing;
}

void SayGpu() {
  const bool driver = Loads("libcuda.so.1");
  const std::string toolkit = FirstLineOf("nvcc --version 2>/dev/null | tail -n 1");
  Say("GPU", absl::StrCat(driver ? "a CUDA driver is here" : "no CUDA driver", ", ",
                          toolkit.empty() ? "no CUDA toolkit" : absl::StrCat("toolkit ", toolkit),
                          "; this build has no CUDA back end, it trains on CPU"));
}

}  // namespace

int RunDoctor() {
  Say("build", BuildId());
  SayMachine();
  SayLibraries();
  const int missing = SayPrograms();
  SayGpu();
  return missing == 0 ? 0 : 7;
}

}  // namespace shoal
