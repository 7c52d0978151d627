// A communicator whose operations go the way they go on a GPU, so that any test of collectives is one of streams too:
// what an operation reads is produced on one stream, the operation comes after its event, and what it wrote is consumed
// on another stream behind the operation. The host waits for nothing until the Work is asked.
#pragma once

#include <cstring>
#include <memory>
#include <string>
#include <utility>

#include "absl/functional/function_ref.h"
#include "absl/strings/str_cat.h"
#include "comm/communicator.h"
#include "runtime/base/status.h"
#include "runtime/device/device.h"

namespace shoal {

class StreamedCommunicator : public Communicator {
 public:
  // `comm`, which may be `owned`, and `device` outlive it.
  StreamedCommunicator(Communicator& comm, Device& device, std::unique_ptr<Communicator> owned = nullptr)
      : owned_(std::move(owned)),
        comm_(comm),
        device_(device),
        producer_(device.MakeStream(absl::StrCat(comm.name(), " producer ", comm.rank())).value()),
        consumer_(device.MakeStream(absl::StrCat(comm.name(), " consumer ", comm.rank())).value()) {}

  int rank() const override { return comm_.rank(); }
  int size() const override { return comm_.size(); }
  absl::string_view name() const override { return comm_.name(); }

  WorkPtr AllReduce(const Tensor& x, ReduceOp op, CallOptions options) override {
    return InPlace(x, options,
                   [&](const Tensor& staged, const CallOptions& o) { return comm_.AllReduce(staged, op, o); });
  }
  WorkPtr ReduceScatterV(const Tensor& in, absl::Span<const int64_t> counts, const Tensor& out, ReduceOp op,
                         CallOptions options) override {
    return Through(in, out, options, [&](const Tensor& from, const Tensor& to, const CallOptions& o) {
      return comm_.ReduceScatterV(from, counts, to, op, o);
    });
  }
  WorkPtr ReduceEncoded(EncodedReduction reduction, CallOptions options) override {
    const Tensor in = reduction.in, out = reduction.out, from = Like(in), to = Like(out);
    reduction.in = from;
    reduction.out = to;
    producer_->Enqueue([=] { Copy(in, from); });
    options.after = producer_->Record();
    WorkPtr work = comm_.ReduceEncoded(std::move(reduction), options);
    work->WaitOn(*consumer_);
    consumer_->Enqueue([=] { Copy(from, in); });
    return Consume(std::move(work), from, to, out);
  }
  WorkPtr AllGatherV(const Tensor& in, absl::Span<const int64_t> counts, const Tensor& out,
                     CallOptions options) override {
    return Through(in, out, options, [&](const Tensor& from, const Tensor& to, const CallOptions& o) {
      return comm_.AllGatherV(from, counts, to, o);
    });
  }
  WorkPtr AllToAllV(const Tensor& in, absl::Span<const int64_t> send_counts, const Tensor& out,
                    absl::Span<const int64_t> recv_counts, CallOptions options) override {
    return Through(in, out, options, [&](const Tensor& from, const Tensor& to, const CallOptions& o) {
      return comm_.AllToAllV(from, send_counts, to, recv_counts, o);
    });
  }
  WorkPtr Broadcast(const Tensor& x, int root, CallOptions options) override {
    return InPlace(x, options,
                   [&](const Tensor& staged, const CallOptions& o) { return comm_.Broadcast(staged, root, o); });
  }
  WorkPtr Send(const Tensor& x, int to, CallOptions options) override {
    return InPlace(x, options, [&](const Tensor& staged, const CallOptions& o) { return comm_.Send(staged, to, o); });
  }
  WorkPtr Recv(const Tensor& x, int from, CallOptions options) override {
    return InPlace(x, options, [&](const Tensor& staged, const CallOptions& o) { return comm_.Recv(staged, from, o); });
  }
  WorkPtr Barrier(CallOptions options) override {
    return InPlace(Tensor::Zeros({0}, DType::kU8), options,
                   [&](const Tensor&, const CallOptions& o) { return comm_.Barrier(o); });
  }

  absl::StatusOr<std::unique_ptr<Communicator>> Split(int color, int key, absl::string_view name) override {
    SHOAL_ASSIGN_OR_RETURN(std::unique_ptr<Communicator> part, comm_.Split(color, key, name));
    if (part == nullptr) return part;
    Communicator& borrowed = *part;
    return std::unique_ptr<Communicator>(std::make_unique<StreamedCommunicator>(borrowed, device_, std::move(part)));
  }
  void Abort(const absl::Status& why) override { comm_.Abort(why); }
  void set_spans(SpanSink* spans) override { comm_.set_spans(spans); }
  absl::Status health() const override { return comm_.health(); }

 private:
  class StreamedWork : public Work {
   public:
    StreamedWork(WorkPtr work, EventPtr consumed) : work_(std::move(work)), consumed_(std::move(consumed)) {}
    bool Done() const override { return consumed_->Done(); }
    absl::Status Wait() override {
      consumed_->Wait();
      return work_->Wait();
    }
    void WaitOn(Stream& stream) override { stream.WaitFor(consumed_); }
    double Seconds() const override { return work_->Seconds(); }

   private:
    const WorkPtr work_;
    const EventPtr consumed_;
  };

  Tensor Like(const Tensor& t) { return device_.Allocate(t.shape(), t.dtype()).value(); }
  static void Copy(const Tensor& from, const Tensor& to) {
    std::memcpy(to.raw(), from.raw(), static_cast<size_t>(from.bytes()));
  }
  // What a caller may do with the buffers of an operation that is done.
  static void Scribble(const Tensor& t) { std::memset(t.raw(), 0xa5, static_cast<size_t>(t.bytes())); }

  WorkPtr Through(const Tensor& in, const Tensor& out, CallOptions options,
                  absl::FunctionRef<WorkPtr(const Tensor&, const Tensor&, const CallOptions&)> call) {
    const Tensor from = Like(in), to = Like(out);
    producer_->Enqueue([=] { Copy(in, from); });
    options.after = producer_->Record();
    return Consume(call(from, to, options), from, to, out);
  }
  WorkPtr InPlace(const Tensor& x, CallOptions options,
                  absl::FunctionRef<WorkPtr(const Tensor&, const CallOptions&)> call) {
    const Tensor staged = Like(x);
    producer_->Enqueue([=] { Copy(x, staged); });
    options.after = producer_->Record();
    return Consume(call(staged, options), staged, staged, x);
  }
  WorkPtr Consume(WorkPtr work, const Tensor& from, const Tensor& to, const Tensor& out) {
    work->WaitOn(*consumer_);
    consumer_->Enqueue([=] {
      Copy(to, out);
      Scribble(from);
      Scribble(to);
    });
    return std::make_shared<StreamedWork>(std::move(work), consumer_->Record());
  }

  std::unique_ptr<Communicator> owned_;
  Communicator& comm_;
  Device& device_;
  std::unique_ptr<Stream> producer_, consumer_;  // end first: their work refers to operations
};

}  // namespace shoal
