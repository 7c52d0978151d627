#include "runtime/tensor/tensor.h"

#include <glog/logging.h>
#include <sys/mman.h>

#include <cstdlib>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "runtime/base/str.h"

namespace shoal {

int64_t NumElements(absl::Span<const int64_t> shape) {
  int64_t n = 1;
  for (const int64_t extent : shape) n *= extent;
  return n;
}

std::string ShapeString(absl::Span<const int64_t> shape) { return absl::StrCat("[", absl::StrJoin(shape, ", "), "]"); }

namespace {

Shape ContiguousStrides(const Shape& shape) {
  Shape strides(shape.size(), 1);
  for (int i = static_cast<int>(shape.size()) - 2; i >= 0; --i) strides[i] = strides[i + 1] * shape[i + 1];
  return strides;
}

}  // namespace

Tensor::Tensor(std::shared_ptr<Storage> storage, int64_t offset_bytes, Shape shape, DType dtype)
    : storage_(std::move(storage)), offset_(offset_bytes), shape_(std::move(shape)), dtype_(dtype) {
  strides_ = ContiguousStrides(shape_);
  CHECK_LE(offset_ + bytes(), storage_->bytes()) << "tensor " << ShapeString(shape_) << " does not fit its storage";
}

namespace {

// Fresh pages of the system, huge ones where it has them: fewer faults when they are first touched, fewer misses of the
// address cache ever after. Null when it has none.
std::shared_ptr<Storage> ZeroPages(int64_t bytes) {
  constexpr int64_t kPage = 4096;
  const auto size = static_cast<size_t>((bytes + 64 + kPage - 1) / kPage * kPage);
  void* data = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (data == MAP_FAILED) return nullptr;
  ::madvise(data, size, MADV_HUGEPAGE);  // advice only: the kernel may refuse
  return std::make_shared<Storage>(data, bytes, DeviceKind::kCpu,
                                   std::shared_ptr<void>(data, [size](void* p) { ::munmap(p, size); }));
}

// Null when there is no memory.
std::shared_ptr<Storage> ZeroBytes(int64_t bytes) {
  constexpr int64_t kLarge = 8 << 20;
  if (bytes >= kLarge) return ZeroPages(bytes);
  const int64_t rounded = (bytes + 63) / 64 * 64 + 64;
  void* data = std::aligned_alloc(64, rounded);
  if (data == nullptr) return nullptr;
  std::memset(data, 0, rounded);
  return std::make_shared<Storage>(data, rounded, DeviceKind::kCpu, std::shared_ptr<void>(data, std::free));
}

}  // namespace

absl::StatusOr<Tensor> Tensor::Allocate(Shape shape, DType dtype, DeviceKind device) {
  CHECK(device != DeviceKind::kCuda) << "Tensor makes host and meta tensors";
  double size = static_cast<double>(DTypeBytes(dtype));  // does not overflow
  for (const int64_t extent : shape) {
    if (extent < 0) return absl::InvalidArgumentError(absl::StrCat("a tensor of shape ", ShapeString(shape)));
    size *= static_cast<double>(extent);
  }
  std::shared_ptr<Storage> storage;
  if (size < 0x1p62) {
    const int64_t bytes = NumElements(shape) * DTypeBytes(dtype);
    storage = device == DeviceKind::kMeta ? std::make_shared<Storage>(nullptr, bytes, device) : ZeroBytes(bytes);
  }
  if (storage == nullptr) {
    return absl::ResourceExhaustedError(absl::StrCat("no memory for a tensor of ", DTypeName(dtype), " x ",
                                                     ShapeString(shape), ", ", HumanBytes(size)));
  }
  return Tensor(std::move(storage), 0, std::move(shape), dtype);
}

Tensor Tensor::Zeros(Shape shape, DType dtype, DeviceKind device) {
  absl::StatusOr<Tensor> zeros = Allocate(std::move(shape), dtype, device);
  CHECK(zeros.ok()) << zeros.status();
  return *std::move(zeros);
}

Tensor Tensor::Borrow(void* data, Shape shape, DType dtype, DeviceKind device) {
  const int64_t bytes = NumElements(shape) * DTypeBytes(dtype);
  return Tensor(std::make_shared<Storage>(data, bytes, device), 0, std::move(shape), dtype);
}

bool Tensor::contiguous() const {
  int64_t expected = 1;
  for (int i = rank() - 1; i >= 0; --i) {
    if (shape_[i] != 1 && strides_[i] != expected) return false;
    expected *= shape_[i];
  }
  return true;
}

void* Tensor::raw() const {
  if (storage_ == nullptr || storage_->data() == nullptr) return nullptr;
  return static_cast<char*>(storage_->data()) + offset_;
}

void Tensor::CheckType(DType wanted) const {
  CHECK(wanted == dtype_) << "tensor " << ShapeString(shape_) << " holds " << DTypeName(dtype_) << ", read as "
                          << DTypeName(wanted);
}

void Tensor::CheckHost() const {
  CHECK(device() == DeviceKind::kCpu) << "no host memory behind this tensor";
  CHECK(contiguous()) << "tensor " << ShapeString(shape_) << " is not contiguous";
}

Tensor Tensor::View(Shape shape) const {
  CHECK(contiguous()) << "View of a tensor that is not contiguous: " << ShapeString(shape_);
  int64_t known = 1, unknown = -1;
  for (size_t i = 0; i < shape.size(); ++i) {
    if (shape[i] == -1)
      unknown = static_cast<int64_t>(i);
    else
      known *= shape[i];
  }
  if (unknown >= 0) shape[unknown] = known == 0 ? 0 : size() / known;
  CHECK_EQ(NumElements(shape), size()) << "View " << ShapeString(shape) << " of " << ShapeString(shape_);
  Tensor out = *this;
  out.shape_ = shape;
  out.strides_ = ContiguousStrides(shape);
  return out;
}

Tensor Tensor::Slice(int d, int64_t begin, int64_t end) const {
  if (d < 0) d += rank();
  CHECK(0 <= begin && begin <= end && end <= shape_[d])
      << "Slice [" << begin << ", " << end << ") of dimension " << d << " of " << ShapeString(shape_);
  Tensor out = *this;
  out.offset_ += begin * strides_[d] * DTypeBytes(dtype_);
  out.shape_[d] = end - begin;
  return out;
}

}  // namespace shoal
