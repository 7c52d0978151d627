#include "launch/batch_control.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "runtime/base/status.h"

namespace shoal {
namespace {

const char* UnitOf(const config::Size& size) {
  return size.has_tokens() ? "tokens" : size.has_sequences() ? "sequences" : "images";
}

// What `batch` grows to multiples of: what full micro-batches of all ranks hold; equal shares where the cap has no room
// for that.
int64_t Multiple(const config::Job& job, int ranks, int64_t batch) {
  const int64_t full = Count(job.micro_batch()) * ranks, max = Count(job.optim().batch_growth().max());
  return max / full * full > batch ? full : ranks;
}

double SamplesIn(const Batch& batch) {
  return static_cast<double>(batch.x.rank() == 4 ? batch.x.dim(0)
                                                 : static_cast<int64_t>(batch.layout->cu_seqlens.size()) - 1);
}

// Of the layout for `ranks` ranks: that there are two groups in every step, and room to grow.
void CheckForRanks(const config::Job& job, int ranks, std::vector<std::string>& wrong) {
  const int64_t batch = Count(job.global_batch()), micro = Count(job.micro_batch());
  if (ranks == 1 && 2 * micro > batch) {
    wrong.push_back(absl::StrCat(
        "optim.batch_growth measures noise between ranks, or of one rank between micro-batches: micro_batch is ", micro,
        " and global_batch ", batch, "; take a micro_batch of at most ", batch / 2, ", or 2 ranks"));
  }
  const int64_t max = Count(job.optim().batch_growth().max());
  if (max / ranks * ranks <= batch) {
    wrong.push_back(absl::StrCat("optim.batch_growth.max is ", max, "; with ", ranks,
                                 " ranks batches grow to multiples of that, and ", (batch / ranks + 1) * ranks,
                                 " is the least that lets ", batch, " grow"));
  }
}

}  // namespace

absl::Status CheckBatchGrowth(const config::Job& job, int ranks) {
  if (!job.optim().has_batch_growth()) return absl::OkStatus();
  const config::Size& batch = job.global_batch();
  const config::Size& max = job.optim().batch_growth().max();
  std::vector<std::string> wrong;
  if (max.unit_case() != batch.unit_case()) {
    wrong.push_back(absl::StrCat("optim.batch_growth.max is the batch to grow to, in the unit of global_batch; write ",
                                 "max { ", UnitOf(batch), ": ", 16 * Count(batch), " }"));
  } else if (Count(max) <= Count(batch)) {
    wrong.push_back(absl::StrCat("optim.batch_growth.max is ", Count(max), " and global_batch ", Count(batch),
                                 ": the batch cannot grow; take more, or leave batch_growth out"));
  }
  if (job.micro_batch().unit_case() != batch.unit_case()) {
    wrong.push_back(
        absl::StrCat("optim.batch_growth takes more micro-batches, so that memory stays; write micro_batch "
                     "in the unit of global_batch, micro_batch { ",
                     UnitOf(batch), ": N }"));
  }
  if (batch.has_tokens() && batch.tokens() < 2 * int64_t{job.data().max_tokens()}) {
    wrong.push_back(absl::StrCat("optim.batch_growth measures noise between sequences: global_batch.tokens is ",
                                 batch.tokens(), " and one sequence may have ", job.data().max_tokens(),
                                 "; take at least ", 2 * int64_t{job.data().max_tokens()}));
  }
  const auto& schedule = job.optim().schedule();
  const char* remedy = ": steps become larger as the batch grows; give samples, tokens or epochs";
  if (job.duration().has_steps() && schedule.shape() != config::ScheduleConfig::CONSTANT)
    wrong.push_back(absl::StrCat("duration is in steps and optim.batch_growth is set", remedy));
  if (schedule.warmup().has_steps())
    wrong.push_back(absl::StrCat("optim.schedule.warmup is in steps and optim.batch_growth is set", remedy));
  if (wrong.empty() && ranks > 0) CheckForRanks(job, ranks, wrong);
  return wrong.empty() ? absl::OkStatus() : absl::InvalidArgumentError(absl::StrJoin(wrong, "\n"));
}

BatchControl::BatchControl(const config::Job& job, int ranks, absl::Span<const Tensor> grads, DeviceKind device)
    : job_(job), ranks_(ranks) {
  if (!job.optim().has_batch_growth()) return;
  const auto& config = job.optim().batch_growth();
  growth_ = std::make_unique<BatchGrowth>(config, Count(job.global_batch()), Count(config.max()));
  if (ranks == 1) parts_ = std::make_unique<GradientParts>(grads, device);
}

int64_t BatchControl::batch() const { return growth_ == nullptr ? Count(job_.global_batch()) : growth_->batch(); }

absl::Status BatchControl::CheckShares() const {
  const bool zero = job_.model().has_resnet() && job_.parallel().zero() == 3 && ranks_ > 1;
  if ((!job_.model().resnet().sync_norm() && !zero) || batch() % ranks_ == 0) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      zero ? "parallel.zero: 3" : "model.resnet.sync_norm", " takes equal shares: the batch of this run has grown to ",
      batch(), " images and the job has ", ranks_, " ranks; resume on a number of ranks that divides it"));
}

void BatchControl::BeginStep(int64_t step, DataParallel& dp, ThreadPool& pool) {
  measures_ = growth_ != nullptr && growth_->Tests(step);
  samples_ = 0;
  terms_ = {};
  each_ = dp.reduces_each_micro_batch() ? &dp : nullptr;
  if (!measures_) return;
  if (parts_ != nullptr)
    parts_->BeginStep();
  else
    dp.MeasureOwn(pool);
}

void BatchControl::EndMicroBatch(const Batch& batch, ThreadPool& pool) {
  if (!measures_) return;
  const double samples = SamplesIn(batch);
  samples_ += samples;
  if (each_ != nullptr && samples > 0) terms_.Add(each_->own_squares(), samples);
  if (parts_ != nullptr) terms_.Add(parts_->SquaredNorm(pool), samples);
}

NoiseTerms BatchControl::Terms(const DataParallel& dp) const {
  NoiseTerms terms = terms_;
  if (measures_ && parts_ == nullptr && each_ == nullptr) terms.Add(dp.own_squares(), samples_);
  return terms;
}

absl::StatusOr<std::string> BatchControl::Update(const NoiseTerms& terms_of_all, double squared_norm,
                                                 StepRecord& record) {
  if (!measures_) return "";
  SHOAL_ASSIGN_OR_RETURN(const GradientNoise noise, EstimateNoise(terms_of_all, squared_norm));
  record.noise_scale = noise.NoiseScale();
  const int64_t before = growth_->batch(), after = growth_->Update(noise, Multiple(job_, ranks_, growth_->batch()));
  std::string text;
  if (after > before) {
    text = absl::StrFormat("the batch grows from %d to %d %s: gradient noise scale %.4g samples", before, after,
                           UnitOf(job_.global_batch()), record.noise_scale);
  }
  if (noise.samples > record.noise_scale && !warned_) {
    warned_ = true;
    absl::StrAppendFormat(&text,
                          "%swarning: a step has %.0f samples, more than the gradient noise scale of %.4g: more "
                          "samples help little. A larger optim.batch_growth.eta grows batches more slowly",
                          text.empty() ? "" : "\n", noise.samples, record.noise_scale);
  }
  return text;
}

void BatchControl::VisitState(StateVisitor& visitor) {
  if (growth_ != nullptr) growth_->VisitState(visitor);
}

}  // namespace shoal
