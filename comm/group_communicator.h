// GroupCommunicator: the collectives, written once over an Engine; thread ranks and MPI share every line of it.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "comm/communicator.h"
#include "comm/engine.h"
#include "comm/world.h"

namespace shoal {

class GroupCommunicator : public Communicator {
 public:
  // `members`: world rank of each group rank; the calling rank is members[rank]. All share `channel` (collectives) and
  // the next one (sends and receives).
  GroupCommunicator(std::shared_ptr<Engine> engine, std::vector<int> members, int rank, int channel, std::string name,
                    CommOptions options);

  int rank() const override { return rank_; }
  int size() const override { return static_cast<int>(members_.size()); }
  absl::string_view name() const override { return name_; }
  WorkPtr AllReduce(const Tensor& x, ReduceOp op, CallOptions options) override;
  WorkPtr ReduceScatterV(const Tensor& in, absl::Span<const int64_t> counts, const Tensor& out, ReduceOp op,
                         CallOptions options) override;
  WorkPtr ReduceEncoded(EncodedReduction reduction, CallOptions options) override;
  WorkPtr AllGatherV(const Tensor& in, absl::Span<const int64_t> counts, const Tensor& out,
                     CallOptions options) override;
  WorkPtr AllToAllV(const Tensor& in, absl::Span<const int64_t> send_counts, const Tensor& out,
                    absl::Span<const int64_t> recv_counts, CallOptions options) override;
  WorkPtr Broadcast(const Tensor& x, int root, CallOptions options) override;
  WorkPtr Send(const Tensor& x, int to, CallOptions options) override;
  WorkPtr Recv(const Tensor& x, int from, CallOptions options) override;
  WorkPtr Barrier(CallOptions options) override;
  absl::StatusOr<std::unique_ptr<Communicator>> Split(int color, int key, absl::string_view name) override;
  void Abort(const absl::Status& why) override { engine_->Poison(why); }
  void set_spans(SpanSink* spans) override { engine_->set_spans(spans); }
  absl::Status health() const override { return engine_->health(); }

 private:
  std::shared_ptr<Operation> Begin(absl::string_view op, const CallOptions& options, DType dtype, int64_t count,
                                   std::vector<Tensor> tensors);
  WorkPtr Submit(std::shared_ptr<Operation> operation);
  WorkPtr PointToPoint(Phase::Message::Way way, const Tensor& x, int peer, const CallOptions& options);
  void Label(Operation& operation, const CallOptions& options);
  // Messages of `bytes(peer)` at data(peer) to or from every other rank, own rank + 1 first, so that no rank is
  // everyone's first.
  template <class F>
  void Exchange(Phase& phase, Phase::Message::Way way, F piece) const;

  std::shared_ptr<Engine> engine_;
  std::vector<int> members_;
  int rank_, channel_;
  std::string name_;
  CommOptions options_;
  int64_t sequence_ = 0;
};

}  // namespace shoal
