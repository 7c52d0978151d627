// Tensor: a value handle on a strided view of shared storage. It does no maths and allocates nothing behind the
// caller's back.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "absl/container/inlined_vector.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "runtime/tensor/dtype.h"

namespace shoal {

using Shape = absl::InlinedVector<int64_t, 4>;

int64_t NumElements(absl::Span<const int64_t> shape);
std::string ShapeString(absl::Span<const int64_t> shape);  // "[2, 3]"

enum class DeviceKind : uint8_t { kCpu, kCuda, kMeta };

// Bytes of one allocation. Owned by whoever gave `release`; a Tensor keeps its Storage alive.
class Storage {
 public:
  // `data` may be null for kMeta, and until Rebind.
  Storage(void* data, int64_t bytes, DeviceKind device, std::shared_ptr<void> keep_alive = nullptr)
      : data_(data), bytes_(bytes), device_(device), keep_alive_(std::move(keep_alive)) {}
  void* data() const { return data_; }
  int64_t bytes() const { return bytes_; }
  DeviceKind device() const { return device_; }
  // Other memory under all tensors of this storage; null: none for now. Nobody may be reading or writing it.
  void Rebind(void* data) { data_ = data; }

 private:
  void* data_;
  int64_t bytes_;
  DeviceKind device_;
  std::shared_ptr<void> keep_alive_;
};

class Tensor {
 public:
  Tensor() = default;  // undefined: defined() is false
  // A contiguous view of `storage` from byte `offset`.
  Tensor(std::shared_ptr<Storage> storage, int64_t offset_bytes, Shape shape, DType dtype);

  // Fresh 64-byte aligned host memory, zeroed; kMeta has no memory. For tests, state and set-up; the step allocates
  // from its Arena.
  static Tensor Zeros(Shape shape, DType dtype, DeviceKind device = DeviceKind::kCpu);
  // The same for sizes that users decide: InvalidArgument for a negative extent, ResourceExhausted with the size when
  // there is no memory.
  static absl::StatusOr<Tensor> Allocate(Shape shape, DType dtype, DeviceKind device);
  // A view of memory owned by the caller, which outlives the tensor.
  static Tensor Borrow(void* data, Shape shape, DType dtype, DeviceKind device = DeviceKind::kCpu);

  bool defined() const { return storage_ != nullptr; }
  const Shape& shape() const { return shape_; }
  int64_t dim(int i) const { return shape_[i < 0 ? i + shape_.size() : i]; }
  int rank() const { return static_cast<int>(shape_.size()); }
  const Shape& strides() const { return strides_; }  // in elements
  int64_t stride(int i) const { return strides_[i < 0 ? i + strides_.size() : i]; }
  int64_t size() const { return NumElements(shape_); }
  int64_t bytes() const { return size() * DTypeBytes(dtype_); }
  DType dtype() const { return dtype_; }
  DeviceKind device() const { return storage_ == nullptr ? DeviceKind::kCpu : storage_->device(); }
  bool meta() const { return device() == DeviceKind::kMeta; }
  bool contiguous() const;

  void* raw() const;  // first element; null on kMeta
  template <class T>
  T* data() const {
    CheckType(DTypeOf<T>());
    return static_cast<T*>(raw());
  }
  // All elements of a contiguous host tensor.
  template <class T>
  absl::Span<T> span() const {
    CheckHost();
    return absl::Span<T>(data<T>(), size());
  }

  Tensor View(Shape shape) const;                           // same elements, contiguous only; one extent may be -1
  Tensor Slice(int dim, int64_t begin, int64_t end) const;  // [begin, end) of one dimension; no copy
  Tensor Rows(int64_t begin, int64_t end) const { return Slice(0, begin, end); }
  bool SameShape(const Tensor& other) const { return shape_ == other.shape_; }

 private:
  void CheckType(DType wanted) const;
  void CheckHost() const;
  std::shared_ptr<Storage> storage_;
  int64_t offset_ = 0;  // bytes
  Shape shape_, strides_;
  DType dtype_ = DType::kF32;
};

}  // namespace shoal
