// DataParallel: weights, gradients and masters of one rank; gradients are reduced bucket by bucket while backward goes
// on. What a rank holds whole and what in shares is the ZeRO stage (arXiv 1910.02054):
//
//   0  everything whole: buckets are all-reduced, every rank owns and updates all masters.
//   1  masters (and moments) in shares: buckets are reduce-scattered in the last micro-batch, each rank updates its
//      pieces, weights are all-gathered.
//   2  and sums of gradients in shares: every micro-batch's buckets are reduce-scattered as they become ready, and each
//      rank's part is added to its sums, in the order of micro-batches. A bucket's whole gradients are there from its
//      first contribution in a micro-batch to the end of its reduction (GradientFlights).
//   3  and weights in shares: whole ones are gathered before they are used and let go afterwards (UnitStore).
//
// Weights are in compute dtype, one flat buffer per bucket (Weight() is a view). Gradients are f32, one flat buffer per
// bucket, summed (SUM: the loss is already divided by the global token count) over micro-batches and then over ranks,
// with ZeRO 2 and 3 over ranks first. With an arena they are there from a bucket's first contribution to
// ReleaseGradients, in the memory that activations leave. Reductions sum in rank order: stages 0 and 1 give the same
// bits, and all stages where a step is one micro-batch. A lone rank has everything whole at every stage. In f64
// (gradient equality tests) everything is f64.
//
// ZeRO 2 and 3 reduce in every micro-batch, and 3 gathers: a rank without work of its own takes part all the same. With
// ZeRO 2 BeginMicroBatch is enough, with ZeRO 3 it runs forward and backward as the others do, on a batch of no rows.
//
// With codecs, buckets travel encoded (comm/encoded_reduction.h), once a step, with ZeRO 2 and 3 once a micro-batch.
// The sum then lies beside the gradients. What codes leave behind takes the residual's place, and what that was is kept
// for a step that is skipped: in stages 0 and 1 where the gradients were, in stages 2 and 3, where a micro-batch's
// codes are given what the one before left behind, in memory of its own, as large as all gradients.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "parallel/factored_gradients.h"
#include "parallel/gradient_codecs.h"
#include "parallel/gradient_flights.h"
#include "parallel/mesh.h"
#include "parallel/sharder.h"
#include "parallel/state.h"
#include "parallel/unit_store.h"
#include "runtime/module/param.h"
#include "runtime/tensor/arena.h"

namespace shoal {

struct DataParallelOptions {
  int zero_stage = 1;  // 0 to 3
  DType compute = DType::kF32;
  int64_t bucket_bytes = 4 << 20;
  ShardGranularity granularity = ShardGranularity::kElement;
  std::vector<double> update_cost = {};  // by Param::id; see ShardRequest::cost
  DeviceKind device = DeviceKind::kCpu;  // kMeta: no memory (plans)
  Arena* arena = nullptr;  // of the step, holds its gradients and gathered weights; not owned. Null: own memory
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

  // --- One step: BeginStep; per micro-batch BeginMicroBatch, forward, backward; FinishReductions; CommitResiduals
  // and update of pieces() unless the step is skipped; ReleaseGradients; PublishWeights.
  void BeginStep();
  // After BeginStep: own_squares() of this step will be the squared norm of this rank's own gradient, before
  // reductions. With reduces_each_micro_batch() it is that of the micro-batch whose backward has just ended.
  void MeasureOwn(ThreadPool& pool) { measure_ = &pool; }
  double own_squares() const { return own_squares_; }
  enum class MicroBatch : uint8_t { kMore, kLast };  // stages 0 and 1 reduce in the last one
  // Communication errors of the micro-batch before.
  absl::Status BeginMicroBatch(MicroBatch which);
  bool reduces_each_micro_batch() const { return flights_ != nullptr; }
  // Weights are whole only while they are used, so that forward, backward and evaluation are collective.
  bool gathers_weights() const { return units_ != nullptr; }
  // Weight, Grad and Ready throw StepAborted where communication fails.
  Tensor Weight(const Param& param) override;
  GradSink Grad(const Param& param) override;
  void Ready(const Param& param) override;
  // Starts what Ready has not (a rank without a micro-batch contributes zeros) and waits for all buckets. Communication
  // errors.
  absl::Status FinishReductions();
  absl::Span<OwnedPiece> pieces();
  // What this step's codes left behind will be added to the next gradients. `rate` is the step's learning rate:
  // residuals are in gradients, so a later step at another rate takes them times old rate / new rate, within 0.1 to 10.
  void CommitResiduals(double rate);
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
  // Gives the arena its memory back: gradients are gone. Residuals of a step that has not been committed are again what
  // they were before it. BeginStep does both, too; state is to be visited after it.
  void ReleaseGradients();
  // Masters -> weights in compute dtype; ZeRO 1 and 2 gather them from their owners. Communication errors.
  absl::Status PublishWeights(ThreadPool& pool);

  // --- Weights outside a step. With gathers_weights() these are collective, in one order on all ranks.
  // Before each forward of an evaluation. Communication errors.
  absl::Status BeginEvaluation();
  // The whole weight, valid until ReleaseWeights. Communication errors.
  absl::StatusOr<Tensor> WholeWeight(const Param& param);
  // Once evaluation, or whoever asked for whole weights, is done with them.
  absl::Status ReleaseWeights();
  // This parameter's weight and masters become `value` (f32, of its shape; the same on all ranks).
  void SetWeight(ThreadPool& pool, const Param& param, const Tensor& value);
  // A hash of the weights' bits, and of each parameter's by id; with gathers_weights() of what a rank gathers.
  absl::StatusOr<uint64_t> WeightHash(std::vector<uint64_t>* by_param = nullptr);

  // Collective: that all ranks hold the same weights, to the bit, which is what reductions, codecs and plans promise.
  // EnvironmentError, "ranks have drifted apart", with the first tensor of which they do not.
  absl::Status CheckWeights();

  // Visits masters as "<name>" (the model's weights in fp32), by box.
  void VisitState(StateVisitor& visitor) override;
  // To be called after VisitState has loaded; FailedPrecondition where residuals are of another number of ranks and are
  // to be taken as they were.
  absl::Status FinishLoad();
  const ShardPlan& plan() const { return plan_; }
  // Bytes this rank holds: weights (its shares of them with ZeRO 3), gradients, masters.
  int64_t weight_bytes() const;
  // With reduces_each_micro_batch() sums, and as many of whole buckets as were there at once so far.
  int64_t grad_bytes() const;
  // Most bytes of gathered weights that were there at once so far.
  int64_t gathered_bytes() const { return units_ == nullptr ? 0 : units_->peak_bytes(); }
  int64_t master_bytes() const;
  int64_t residual_bytes() const;
  // Bytes of gradients that this rank sends in a step, its share of what all send.
  int64_t reduced_bytes() const;
  // Of the last step: what of reductions was not hidden behind backward.
  double reduce_wait_seconds() const { return reduce_wait_seconds_; }
  // Seconds that Weight, Grad and Ready have waited for other ranks since the last call, or BeginStep.
  double TakePassWait();

 private:
  DataParallel(std::vector<const Param*> params, Mesh& mesh, DataParallelOptions options);
  absl::Status CreateBucket(const Bucket& bucket);
  void CopyMasters(ThreadPool& pool);
  Tensor OwnWeights(size_t bucket) const;
  int64_t OffsetOf(const Param& param) const;
  void BeginRound();
  DType grad_type() const { return options_.compute == DType::kF64 ? DType::kF64 : DType::kF32; }
  absl::Status StartReady();
  absl::Status StartFlight(size_t bucket);
  void Landed(const GradientFlights::Flight& flight);
  absl::Status FinishMicroBatch();
  void BindGradients(size_t bucket);
  bool Encodes() const { return options_.codecs != nullptr && mesh_.size() > 1; }
  bool KeepsResiduals() const { return Encodes() && options_.codecs->feedback == GradientCodecs::Feedback::kYes; }
  // A rank alone encodes nothing, but a checkpoint of more ranks may hold what their codes left behind.
  bool Inherits() const {
    return options_.codecs != nullptr && mesh_.size() == 1 &&
           options_.codecs->feedback == GradientCodecs::Feedback::kYes;
  }
  double ResidualScale() const;
  void AddInherited();
  WorkPtr StartEncoded(size_t bucket, const Tensor& in, const Tensor& out, const std::string& tag);
  bool AllExact(size_t bucket) const;
  void StartFactors(size_t bucket, float residual_scale);
  absl::Status FinishFactors();
  absl::Status FinishSumsOfFactors();
  void RestoreResiduals();
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
  int64_t encoded_steps_ = 0;             // rounds of reductions begun, for stochastic codecs
  double rate_ = 0, committed_rate_ = 0;  // 0: unknown
  std::vector<Tensor> inherited_;         // by bucket: residuals that a rank alone has loaded and not used yet
  int64_t micro_batches_ = 0;             // begun in this step
  bool shards_weights_ = false;           // this rank keeps its run of the weights alone
  struct Buffers;
  std::unique_ptr<Buffers> buffers_;
  std::unique_ptr<Arena> own_arena_;          // null: the step's is there, or none is needed
  std::unique_ptr<GradientFlights> flights_;  // null: whole gradients stay until ReleaseGradients
  std::unique_ptr<UnitStore> units_;          // null: weights are whole
};

}  // namespace shoal
