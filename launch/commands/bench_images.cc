// bench images: what the input pipeline costs. CPU time per image on one thread, and images per second through the
// loader's threads.
#include <unistd.h>

#include <ctime>
#include <filesystem>
#include <iostream>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "launch/commands.h"
#include "runtime/base/file_system.h"
#include "runtime/base/rng.h"
#include "runtime/base/status.h"
#include "runtime/data/images/image_loader.h"
#include "runtime/obs/span.h"

namespace shoal {
namespace {

constexpr int64_t kBatch = 128;

double ThreadCpuSeconds() {
  timespec time = {};
  ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

// 4,096 images in CIFAR-10's format: a smooth pattern under noise, so that histograms are neither flat nor empty.
absl::Status WriteCifarLike(const std::string& folder) {
  constexpr int kImages = 4096, kPixels = 3 * 32 * 32;
  const Rng rng({1, RngPurpose::kTest, NameHash("images_bench")});
  std::string bytes;
  bytes.reserve(size_t{kImages} * (kPixels + 1));
  for (int i = 0; i < kImages; ++i) {
    bytes.push_back(static_cast<char>(i % 10));
    for (int p = 0; p < kPixels; p += 4) {
      const auto noise = rng.Words(static_cast<uint64_t>(i), static_cast<uint64_t>(p));
      for (int k = 0; k < 4; ++k)
        bytes.push_back(static_cast<char>((p + k) % 32 * 3 + p / 32 % 32 * 2 + static_cast<int>(noise[k] % 64)));
    }
  }
  SHOAL_RETURN_IF_ERROR(PosixFiles().MakeDirs(folder));
  SHOAL_RETURN_IF_ERROR(WriteFileAtomically(PosixFiles(), folder + "/data_batch_1.bin", bytes));
  return WriteFileAtomically(PosixFiles(), folder + "/test_batch.bin", bytes.substr(0, kPixels + 1));
}

struct Rate {
  double images_per_second = 0, cpu_microseconds = 0;  // of the calling thread, per image
};

absl::StatusOr<Rate> Measure(const ImageData& data, int prefetch_threads, const BenchArgs& args) {
  SHOAL_ASSIGN_OR_RETURN(const auto loader,
                         ImageLoader::Create(data, {.prefetch_threads = prefetch_threads}, 0, kBatch));
  double wall = 0, cpu = 0;
  for (int step = 0; step < args.warmup + args.steps; ++step) {
    if (step == args.warmup) wall = SteadySeconds(), cpu = ThreadCpuSeconds();
    SHOAL_RETURN_IF_ERROR(loader->Next(kBatch).status());
  }
  const double images = static_cast<double>(kBatch) * args.steps;
  return Rate{images / (SteadySeconds() - wall), 1e6 * (ThreadCpuSeconds() - cpu) / images};
}

absl::Status Bench(const BenchArgs& args, const std::string& path, nlohmann::json& report) {
  config::ImageDataConfig config;
  config.set_path(path);
  for (const bool augmented : {false, true}) {
    if (augmented) config.mutable_randaugment();
    SHOAL_ASSIGN_OR_RETURN(const auto data, ImageData::Open(config));
    SHOAL_ASSIGN_OR_RETURN(const Rate one, Measure(*data, 0, args));
    SHOAL_ASSIGN_OR_RETURN(const Rate ahead, Measure(*data, args.threads, args));
    report[augmented ? "crop_flip_randaugment" : "crop_flip"] = {
        {"cpu_us_per_image", one.cpu_microseconds},
        {"cpu_ms_per_batch", one.cpu_microseconds * kBatch / 1000},
        {"images_per_second_one_thread", one.images_per_second},
        {"images_per_second", ahead.images_per_second}};
    report["data"] = data->Summary();
  }
  return absl::OkStatus();
}

}  // namespace

int RunBenchImages(const BenchArgs& args) {
  nlohmann::json report = {{"batch", kBatch}, {"threads", args.threads}, {"steps", args.steps}};
  std::string made;
  if (args.folder.empty()) {
    made = absl::StrCat(std::filesystem::temp_directory_path().string(), "/shoal-bench-images-", ::getpid());
    if (const absl::Status status = WriteCifarLike(made); !status.ok()) return Fail(status);
  }
  const absl::Status status = Bench(args, made.empty() ? args.folder : made, report);
  if (!made.empty()) PosixFiles().RemoveAll(made).IgnoreError();
  if (!status.ok()) return Fail(status);
  std::cout << report.dump() << std::endl;
  return 0;
}

}  // namespace shoal
