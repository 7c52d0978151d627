// DataParallel: weights, gradients and masters of one rank; gradients are reduced bucket by bucket while backward goes
// on.
//
// Weights are whole on every rank, in compute dtype, one flat buffer per bucket (Weight() is a view). Gradients are
// f32, one flat buffer per bucket, summed over micro-batches and then over ranks (SUM: the loss is already divided by
// the global token count). With an arena they are there from a bucket's first contribution to ReleaseGradients, in the
// memory that activations leave. ZeRO 0: buckets are all-reduced and every rank owns all masters. ZeRO 1 (arXiv
// 1910.02054): buckets are reduce-scattered, each rank owns and updates its pieces, weights are all-gathered.
// Reductions sum in rank order, so both stages give the same bits. In f64 (gradient equality tests) everything is f64.
// With codecs, buckets travel encoded (comm/encoded_reduction.h), once a step; the sum then lies beside the gradients
// in both stages, and what codes leave behind takes the gradients' place until CommitResiduals.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "parallel/factored_gradients.h"
#include "parallel/gradient_codecs.h"
#include "parallel/mesh.h"
#include "parallel/sharder.h"
#include "parallel/state.h"
#include "runtime/module/param.h"
#include "runtime/tensor/arena.h"

namespace shoal {

struct DataParallelOptions {
  int zero_stage = 1;  // 0 or 1
  DType compute = DType::kF32;
  int64_t bucket_bytes = 4 << 20;
  ShardGranularity granularity = ShardGranularity::kElement;
  std::vector<double> update_cost = {};  // by Param::id; see ShardRequest::cost
  DeviceKind device = DeviceKind::kCpu;  // kMeta: no memory (plans)
  Arena* arena = nullptr;  // of the step, holds its gradients; not owned. Null: they have their own memory
  std::shared_ptr<const GradientCodecs> codecs = nullptr;  // null: gradients travel as they are
};

// What this rank updates: elements [begin, end) of a flattened parameter, f32, 1-D views into flat buffers. With fp32
// compute `master` is the weight itself (no second copy).
struct OwnedPiece {
  const Param* param = nullptr;
  int64_t begin = 0, end = 0;
  Tensor master;
  Tensor grad;  // without memory outside a step that has an arena
};

class DataParallel : public ParamSource, public Stateful {
 public:
  // `params` by id (AssignIds), not owned, and `mesh` outlive it. Allocates all buffers; ResourceExhausted with the
  // sizes when it cannot.
  static absl::StatusOr<std::unique_ptr<DataParallel>> Create(std::vector<const Param*> params, Mesh& mesh,
                                                              DataParallelOptions options);
  ~DataParallel() override;

  // Draws every weight from (seed, parameter name, element): equal under any sharding.
  void InitializeWeights(ThreadPool& pool, uint64_t seed);
  void InitializeWeights(uint64_t seed);  // on the calling thread alone

  // --- One step: BeginStep; per micro-batch BeginMicroBatch, backward; FinishReductions; CommitResiduals unless the
  // step is skipped; update pieces(); ReleaseGradients; PublishWeights.
  void BeginStep();
  // After BeginStep: own_squares() of this step will be the squared norm of this rank's own gradient, before
  // reductions.
  void MeasureOwn(ThreadPool& pool) { measure_ = &pool; }
  double own_squares() const { return own_squares_; }
  enum class MicroBatch : uint8_t { kMore, kLast };  // gradients are reduced in the last one
  void BeginMicroBatch(MicroBatch which);
  Tensor Weight(const Param& param) override;
  GradSink Grad(const Param& param) override;
  void Ready(const Param& param) override;
  // Starts what Ready has not (a rank without a micro-batch contributes zeros) and waits for all buckets. Communication
  // errors.
  absl::Status FinishReductions();
  absl::Span<OwnedPiece> pieces();
  // What this step's codes left behind will be added to the next gradients. `rate` is the step's learning rate:
  // residuals are in gradients, so a later step at another rate takes them times old rate / new rate, within 0.1 to 10.
  void CommitResiduals(ThreadPool& pool, double rate);
  // The rate of the step about to begin its reductions; without it residuals are taken as they are.
  void set_rate(double rate) { rate_ = rate; }
  // Codecs by Param::id, in place of those of the options, for steps that begin from now on. They outlive this.
  void SetCodecs(std::vector<const Codec*> of);
  // The whole sum of a parameter's gradient, after FinishReductions; with ZeRO 0.
  Tensor SummedGradient(const Param& param) const;
  // This step's reductions show what they are about to encode of a parameter: the parts of other ranks, and of the own
  // part the sum. On the progress thread, until FinishReductions. Before BeginMicroBatch.
  using Observer = std::function<void(int param, const CodecInput& input)>;
  void Observe(Observer observe) { observe_ = std::move(observe); }
  // Of the last step's reductions, in bucket order: seconds after its last micro-batch began.
  struct BucketTime {
    double ready = 0, done = 0;  // handed over; reduced
  };
  std::vector<BucketTime> bucket_times() const;
  double backward_end() const { return backward_end_; }  // likewise: nothing was left to compute
  // Of the last step: what codes that are not exact were given and left behind, and likewise of matrices that travelled
  // as factors, this rank's own.
  RunErrors codec_errors() const;
  RunErrors factor_errors() const { return factored_ == nullptr ? RunErrors() : factored_->errors(); }
  // Gives the arena its memory back: gradients are gone. BeginStep does it, too.
  void ReleaseGradients();
  // Masters -> weights in compute dtype; ZeRO 1 gathers them from their owners. Communication errors.
  absl::Status PublishWeights(ThreadPool& pool);

  // A hash of the weights' bits, and of each parameter's by id.
  uint64_t WeightHash(std::vector<uint64_t>* by_param = nullptr) const;

  // Visits masters as "<name>" (the model's weights in fp32), by box.
  void VisitState(StateVisitor& visitor) override;
  // To be called after VisitState has loaded; FailedPrecondition where residuals are of another number of ranks and are
  // to be taken as they were.
  absl::Status FinishLoad();
  const ShardPlan& plan() const { return plan_; }
  // Bytes this rank holds: weights, gradients, masters.
  int64_t weight_bytes() const;
  int64_t grad_bytes() const;
  int64_t master_bytes() const;
  int64_t residual_bytes() const;
  // Bytes of gradients that this rank sends in a step, its share of what all send.
  int64_t reduced_bytes() const;
  double reduce_wait_seconds() const {
    return reduce_wait_seconds_;
  }  // of the last FinishReductions: not hidden behind backward

 private:
  DataParallel(std::vector<const Param*> params, Mesh& mesh, DataParallelOptions options);
  void StartReady();
  void BindGradients(size_t bucket);
  bool Encodes() const { return options_.codecs != nullptr && mesh_.size() > 1; }
  bool KeepsResiduals() const { return Encodes() && options_.codecs->feedback == GradientCodecs::Feedback::kYes; }
  WorkPtr StartEncoded(size_t bucket, const std::string& tag);
  bool AllExact(size_t bucket) const;
  void StartFactors(size_t bucket, float residual_scale);
  absl::Status FinishFactors();
  void SetRanks();
  void VisitResiduals(StateVisitor& visitor);
  std::vector<const Param*> params_;
  Mesh& mesh_;
  DataParallelOptions options_;
  ShardPlan plan_;
  double reduce_wait_seconds_ = 0;
  ThreadPool* measure_ = nullptr;  // null: own_squares_ is not wanted
  double own_squares_ = 0;
  absl::Status loaded_;
  std::vector<const Codec*> codec_of_;  // by Param::id; empty: none
  Observer observe_;
  std::unique_ptr<FactoredGradients> factored_;  // null: nothing is encoded
  double last_began_ = 0, backward_end_ = 0;
  int64_t encoded_steps_ = 0;             // begun, for stochastic codecs
  double rate_ = 0, committed_rate_ = 0;  // 0: unknown
  struct Buffers;
  std::unique_ptr<Buffers> buffers_;
};

}  // namespace shoal
