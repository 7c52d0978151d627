// One rank of many, alone: for dry runs, and for what a step costs without communication.
#include <algorithm>
#include <cstring>

#include "comm/world.h"

namespace shoal {
namespace {

class DoneWork : public Work {
 public:
  bool Done() const override { return true; }
  absl::Status Wait() override { return absl::OkStatus(); }
  double Seconds() const override { return 0; }
};

void CopyBytes(const Tensor& from, int64_t from_element, int64_t count, const Tensor& to, int64_t to_element) {
  const int64_t element = DTypeBytes(from.dtype());
  if (from.meta() || to.meta() || count <= 0) return;
  std::memmove(static_cast<char*>(to.raw()) + to_element * element,
               static_cast<const char*>(from.raw()) + from_element * element, static_cast<size_t>(count * element));
}

int64_t Before(absl::Span<const int64_t> counts, int rank) {
  int64_t sum = 0;
  for (int r = 0; r < rank; ++r) sum += counts[r];
  return sum;
}

class FakeCommunicator : public Communicator {
 public:
  FakeCommunicator(int rank, int size, std::string name) : rank_(rank), size_(size), name_(std::move(name)) {}
  int rank() const override { return rank_; }
  int size() const override { return size_; }
  absl::string_view name() const override { return name_; }
  WorkPtr AllReduce(const Tensor&, ReduceOp, CallOptions) override { return Done(); }
  WorkPtr ReduceScatterV(const Tensor& in, absl::Span<const int64_t> counts, const Tensor& out, ReduceOp,
                         CallOptions) override {
    CopyBytes(in, Before(counts, rank_), out.size(), out, 0);
    return Done();
  }
  WorkPtr AllGatherV(const Tensor& in, absl::Span<const int64_t> counts, const Tensor& out, CallOptions) override {
    CopyBytes(in, 0, in.size(), out, Before(counts, rank_));
    return Done();
  }
  WorkPtr AllToAllV(const Tensor& in, absl::Span<const int64_t>, const Tensor& out, absl::Span<const int64_t>,
                    CallOptions) override {
    CopyBytes(in, 0, std::min(in.size(), out.size()), out, 0);
    return Done();
  }
  WorkPtr Broadcast(const Tensor&, int, CallOptions) override { return Done(); }
  WorkPtr Send(const Tensor&, int, CallOptions) override { return Done(); }
  WorkPtr Recv(const Tensor&, int, CallOptions) override { return Done(); }
  WorkPtr Barrier(CallOptions) override { return Done(); }
  absl::StatusOr<std::unique_ptr<Communicator>> Split(int color, int, absl::string_view name) override {
    if (color < 0) return std::unique_ptr<Communicator>();
    return std::unique_ptr<Communicator>(std::make_unique<FakeCommunicator>(rank_, size_, std::string(name)));
  }
  void Abort(const absl::Status& why) override { health_ = why; }
  void set_spans(SpanSink*) override {}  // nothing takes time
  absl::Status health() const override { return health_; }

 private:
  static WorkPtr Done() { return std::make_shared<DoneWork>(); }
  int rank_, size_;
  std::string name_;
  absl::Status health_;
};

}  // namespace

std::unique_ptr<Communicator> FakeWorld(int rank, int size) {
  return std::make_unique<FakeCommunicator>(rank, size, "world");
}

}  // namespace shoal
