#include <string>
#include <utility>

#include "runtime/device/device.h"

namespace shoal {
namespace {

class ShapesStream : public Stream {
 public:
  explicit ShapesStream(absl::string_view name) : name_(name) {}
  absl::string_view name() const override { return name_; }
  void Enqueue(absl::AnyInvocable<void()>) override {}
  EventPtr Record() override { return DoneEvent(); }
  void WaitFor(EventPtr) override {}
  void Synchronize() override {}

 private:
  const std::string name_;
};

class ShapesDevice : public Device {
 public:
  DeviceKind kind() const override { return DeviceKind::kMeta; }
  absl::StatusOr<Tensor> Allocate(Shape shape, DType dtype) override {
    return Tensor::Allocate(std::move(shape), dtype, DeviceKind::kMeta);
  }
  absl::StatusOr<std::unique_ptr<Stream>> MakeStream(absl::string_view name) override {
    return std::unique_ptr<Stream>(std::make_unique<ShapesStream>(name));
  }
};

}  // namespace

std::unique_ptr<Device> MetaDevice() { return std::make_unique<ShapesDevice>(); }

}  // namespace shoal
