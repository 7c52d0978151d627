#include <condition_variable>
#include <deque>
#include <mutex>
#include <string>
#include <system_error>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "runtime/base/rng.h"
#include "runtime/device/device.h"

namespace shoal {
namespace {

class InlineStream : public Stream {
 public:
  explicit InlineStream(absl::string_view name) : name_(name) {}
  absl::string_view name() const override { return name_; }
  void Enqueue(absl::AnyInvocable<void()> fn) override { fn(); }
  EventPtr Record() override { return DoneEvent(); }
  void WaitFor(EventPtr event) override { event->Wait(); }
  void Synchronize() override {}

 private:
  const std::string name_;
};

class AsynchronousStream : public Stream {
 public:
  AsynchronousStream(absl::string_view name, const CpuDeviceOptions& options)
      : name_(name),
        longest_delay_(options.longest_delay),
        delays_({.seed = options.seed, .purpose = RngPurpose::kTest, .name = NameHash(name)}),
        worker_([this] { Loop(); }) {}

  ~AsynchronousStream() override {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      stop_ = true;
    }
    changed_.notify_one();
    worker_.join();
  }

  absl::string_view name() const override { return name_; }

  void Enqueue(absl::AnyInvocable<void()> fn) override {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      items_.push_back(std::move(fn));
    }
    changed_.notify_one();
  }

  EventPtr Record() override {
    auto event = std::make_shared<HostEvent>();
    Enqueue([event] { event->Set(); });
    return event;
  }

  void WaitFor(EventPtr event) override {
    Enqueue([event = std::move(event)] { event->Wait(); });
  }

  void Synchronize() override { Record()->Wait(); }

 private:
  void Loop() {
    for (uint64_t position = 0;; ++position) {
      absl::AnyInvocable<void()> item;
      {
        std::unique_lock<std::mutex> lock(mutex_);
        changed_.wait(lock, [&] { return stop_ || !items_.empty(); });
        if (items_.empty()) return;
        item = std::move(items_.front());
        items_.pop_front();
      }
      if (longest_delay_ > absl::ZeroDuration())
        std::this_thread::sleep_for(absl::ToChronoNanoseconds(longest_delay_ * delays_.Uniform53(0, position)));
      item();
    }
  }

  const std::string name_;
  const absl::Duration longest_delay_;
  const Rng delays_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<absl::AnyInvocable<void()>> items_;  // guarded by mutex_, like stop_
  bool stop_ = false;
  std::thread worker_;  // last: it uses the others
};

class HostDevice : public Device {
 public:
  explicit HostDevice(const CpuDeviceOptions& options) : options_(options) {}
  DeviceKind kind() const override { return DeviceKind::kCpu; }

  absl::StatusOr<Tensor> Allocate(Shape shape, DType dtype) override {
    return Tensor::Allocate(std::move(shape), dtype, DeviceKind::kCpu);
  }

  absl::StatusOr<std::unique_ptr<Stream>> MakeStream(absl::string_view name) override {
    if (options_.streams == CpuDeviceOptions::Streams::kInline)
      return std::unique_ptr<Stream>(std::make_unique<InlineStream>(name));
    try {
      return std::unique_ptr<Stream>(std::make_unique<AsynchronousStream>(name, options_));
    } catch (const std::system_error& error) {
      return absl::ResourceExhaustedError(
          absl::StrCat("no thread for stream ", name, ": ", error.what(), "; raise `ulimit -u` or start fewer ranks"));
    }
  }

 private:
  const CpuDeviceOptions options_;
};

}  // namespace

std::unique_ptr<Device> CpuDevice(const CpuDeviceOptions& options) { return std::make_unique<HostDevice>(options); }

}  // namespace shoal
