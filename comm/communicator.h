// Communicator: collectives over a group of ranks, asynchronous, each with a tag and a deadline.
//
// Contract, the same for thread ranks, MPI and fake:
// * One submitting thread per communicator; all ranks of it submit the same operations in the same order. Different
// communicators are
//   independent: operations pending on several of them all advance (the progress engine), whatever the order they were
//   submitted in.
// * A call returns at once with a Work; the buffers belong to the Work until it is done, and the Work keeps them alive.
// * Between streams, CallOptions::after puts an operation behind what produces its buffers, and Work::WaitOn puts what
// uses them behind the operation. Neither holds up other communicators, nor the host unless its stream is inline.
// * Reductions sum in rank order, in fp32 for f32 and bf16 (rounded once), fp64 for f64: the same bits on every rank,
// every back end and every run.
// * Tensors are contiguous host tensors. Counts may exceed 2^31. Zero-size tensors and groups of one are legal
// everywhere.
// * A missed deadline or a lost peer poisons the communicator: this and every later call fail fast with the first
// error, nothing is retried.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "comm/encoded_reduction.h"
#include "runtime/device/stream.h"
#include "runtime/obs/span.h"
#include "runtime/tensor/tensor.h"

namespace shoal {

enum class ReduceOp : uint8_t { kSum, kMax, kMin };

// What a call is for, how long it may take, counted from submission, and what it waits for.
struct CallOptions {
  absl::string_view tag;                               // "grad bucket 4"; appears in errors, flight records and traces
  absl::Duration deadline = absl::InfiniteDuration();  // infinite: the communicator's default deadline
  // The operation touches its buffers, and its peers hear of it, only once this event is done; null: at once.
  // Operations behind it on the same communicator wait too, those of others do not. The deadline runs meanwhile, and
  // its error says so.
  EventPtr after = nullptr;
};

// A pending operation. Thread-safe.
class Work {
 public:
  virtual ~Work() = default;
  virtual bool Done() const = 0;
  // Waits until done; returns the operation's status. DeadlineExceeded names the ranks that never entered; Unavailable
  // a lost peer.
  virtual absl::Status Wait() = 0;
  // What is enqueued on `stream` from now on starts only once the operation is done, and CallOptions::after too.
  // Returns at once, on an inline stream when done. A failed operation does not hang the stream: it goes on over
  // buffers of any content, and the error is in Wait(), to be asked before results are used for good.
  virtual void WaitOn(Stream& stream) = 0;
  // Seconds between submission and completion; 0 until done.
  virtual double Seconds() const = 0;
};
using WorkPtr = std::shared_ptr<Work>;

class Communicator {
 public:
  virtual ~Communicator() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;
  virtual absl::string_view name() const = 0;

  // In place: x of every rank becomes the reduction over ranks. f32, bf16, f64, i32, i64.
  virtual WorkPtr AllReduce(const Tensor& x, ReduceOp op, CallOptions options) = 0;
  // in: size() consecutive pieces of counts[r] elements (sum = in.size()); out becomes the reduction of piece rank().
  // `in` is unchanged.
  virtual WorkPtr ReduceScatterV(const Tensor& in, absl::Span<const int64_t> counts, const Tensor& out, ReduceOp op,
                                 CallOptions options) = 0;
  // The sum over ranks through codecs: see comm/encoded_reduction.h. All ranks hold the same bits of it.
  virtual WorkPtr ReduceEncoded(EncodedReduction reduction, CallOptions options) = 0;
  // out: the concatenation of every rank's `in` in rank order; counts[r] elements from rank r. `in` may be the rank's
  // own place inside `out`.
  virtual WorkPtr AllGatherV(const Tensor& in, absl::Span<const int64_t> counts, const Tensor& out,
                             CallOptions options) = 0;
  // in: send_counts[r] elements for rank r, in rank order; out: recv_counts[r] elements from rank r.
  virtual WorkPtr AllToAllV(const Tensor& in, absl::Span<const int64_t> send_counts, const Tensor& out,
                            absl::Span<const int64_t> recv_counts, CallOptions options) = 0;
  virtual WorkPtr Broadcast(const Tensor& x, int root, CallOptions options) = 0;
  // Point to point inside the group; matched by (peer, order).
  virtual WorkPtr Send(const Tensor& x, int to, CallOptions options) = 0;
  virtual WorkPtr Recv(const Tensor& x, int from, CallOptions options) = 0;
  virtual WorkPtr Barrier(CallOptions options) = 0;

  // Equal pieces: conveniences over the V forms.
  WorkPtr ReduceScatter(const Tensor& in, const Tensor& out, ReduceOp op, CallOptions options);
  WorkPtr AllGather(const Tensor& in, const Tensor& out, CallOptions options);
  WorkPtr AllToAll(const Tensor& in, const Tensor& out, CallOptions options);

  // Collective, blocking: ranks with equal color form a group, ordered by key then rank; color < 0 joins none and gets
  // null.
  virtual absl::StatusOr<std::unique_ptr<Communicator>> Split(int color, int key, absl::string_view name) = 0;
  // Poisons this communicator and all split from the same world, here and (best effort) on the peers.
  virtual void Abort(const absl::Status& why) = 0;
  // Operations of all communicators of this world report a span each from now on (Track::kComm); null: none. The sink
  // must outlive the world or a later call with null.
  virtual void set_spans(SpanSink* spans) = 0;
  // First error of this communicator, OK while healthy.
  virtual absl::Status health() const = 0;
};

// Blocking conveniences for control data: each is one collective with options.tag.
absl::StatusOr<std::vector<double>> AllReduceValues(Communicator& comm, std::vector<double> values, ReduceOp op,
                                                    CallOptions options);
absl::StatusOr<std::string> BroadcastString(Communicator& comm, std::string value, int root, CallOptions options);
absl::StatusOr<std::vector<std::string>> AllGatherStrings(Communicator& comm, const std::string& value,
                                                          CallOptions options);
// OK when all ranks pass equal values; otherwise an error that names `what`, and which ranks hold which value.
absl::Status CheckEqualOnAllRanks(Communicator& comm, absl::string_view what, const std::string& value,
                                  CallOptions options);

}  // namespace shoal
