// One rank of many, alone: for dry runs, and for what a step costs without communication.
#include <algorithm>
#include <cstring>

#include "comm/world.h"
#include "runtime/device/device.h"

namespace shoal {
namespace {

class FakeWork : public Work {
 public:
  FakeWork(absl::Status status, EventPtr finished) : status_(std::move(status)), finished_(std::move(finished)) {}
  bool Done() const override { return finished_->Done(); }
  absl::Status Wait() override {
    finished_->Wait();
    return status_;
  }
  void WaitOn(Stream& stream) override { stream.WaitFor(finished_); }
  double Seconds() const override { return 0; }

 private:
  const absl::Status status_;
  const EventPtr finished_;
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
  WorkPtr AllReduce(const Tensor&, ReduceOp, CallOptions options) override { return Run(options); }
  WorkPtr ReduceScatterV(const Tensor& in, absl::Span<const int64_t> counts, const Tensor& out, ReduceOp,
                         CallOptions options) override {
    return Run(options, [=, from = Before(counts, rank_)] { CopyBytes(in, from, out.size(), out, 0); });
  }
  WorkPtr ReduceEncoded(EncodedReduction reduction, CallOptions options) override {
    return Run(options, [r = std::move(reduction), me = rank_] {
      if (r.in.meta()) return;
      const bool all = r.half == EncodedReduction::Half::kAll;
      const int64_t from = all ? 0 : Before(r.counts, me);
      AddOwn(r.in.data<float>() + from, r.residual.defined() ? r.residual.data<float>() + from : nullptr,
             r.residual_scale, r.out.size(), Codec::Into::kOverwrite, r.out.data<float>());
      ReplaceOwnResiduals(r, 0, r.in.size());
    });
  }
  WorkPtr AllGatherV(const Tensor& in, absl::Span<const int64_t> counts, const Tensor& out,
                     CallOptions options) override {
    return Run(options, [=, to = Before(counts, rank_)] { CopyBytes(in, 0, in.size(), out, to); });
  }
  WorkPtr AllToAllV(const Tensor& in, absl::Span<const int64_t>, const Tensor& out, absl::Span<const int64_t>,
                    CallOptions options) override {
    return Run(options, [=] { CopyBytes(in, 0, std::min(in.size(), out.size()), out, 0); });
  }
  WorkPtr Broadcast(const Tensor&, int, CallOptions options) override { return Run(options); }
  WorkPtr Send(const Tensor&, int, CallOptions options) override { return Run(options); }
  WorkPtr Recv(const Tensor&, int, CallOptions options) override { return Run(options); }
  WorkPtr Barrier(CallOptions options) override { return Run(options); }
  absl::StatusOr<std::unique_ptr<Communicator>> Split(int color, int, absl::string_view name) override {
    if (color < 0) return std::unique_ptr<Communicator>();
    return std::unique_ptr<Communicator>(std::make_unique<FakeCommunicator>(rank_, size_, std::string(name)));
  }
  void Abort(const absl::Status& why) override { health_ = why; }
  void set_spans(SpanSink*) override {}  // nothing takes time
  absl::Status health() const override { return health_; }

 private:
  // At once, unless an event holds it up: then, and ever after, on a stream, in order and without stopping the caller.
  WorkPtr Run(
      const CallOptions& options, absl::AnyInvocable<void()> copy = [] {}) {
    const bool held = options.after != nullptr && !options.after->Done();
    if (stream_ == nullptr && held) {
      auto stream = CpuDevice({.streams = CpuDeviceOptions::Streams::kAsynchronous})->MakeStream(name_);
      if (!stream.ok()) return std::make_shared<FakeWork>(stream.status(), options.after);
      stream_ = *std::move(stream);
    }
    if (stream_ == nullptr) {
      copy();
      return std::make_shared<FakeWork>(absl::OkStatus(), DoneEvent());
    }
    if (held) stream_->WaitFor(options.after);
    stream_->Enqueue(std::move(copy));
    return std::make_shared<FakeWork>(absl::OkStatus(), stream_->Record());
  }
  int rank_, size_;
  std::string name_;
  absl::Status health_;
  std::unique_ptr<Stream> stream_;
};

}  // namespace

std::unique_ptr<Communicator> FakeWorld(int rank, int size) {
  return std::make_unique<FakeCommunicator>(rank, size, "world");
}

}  // namespace shoal
