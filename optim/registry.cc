// The table of optimizers: a new one is a file of its own, a message in optim.proto and a case here.
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "optim/adamw.h"
#include "optim/optimizer.h"
#include "optim/sgd.h"

namespace shoal {
namespace {

class Ranges {
 public:
  // `value` must lie in [low, high).
  void In(const char* field, double value, double low, double high) {
    if (value >= low && value < high) return;
    wrong_.push_back(absl::StrCat(field, " is ", value, "; it lies in [", low, ", ", high, ")"));
  }
  absl::Status Result() const {
    return wrong_.empty() ? absl::OkStatus() : absl::InvalidArgumentError(absl::StrJoin(wrong_, "\n"));
  }

 private:
  std::vector<std::string> wrong_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Optimizer>> MakeOptimizer(const config::OptimConfig& config) {
  Ranges ranges;
  std::unique_ptr<Optimizer> optimizer;
  ranges.In("optim.learning_rate", config.learning_rate(), 0, 1e6);
  ranges.In("optim.clip_norm", config.clip_norm(), 0, 1e30);
  switch (config.kind_case()) {
    case config::OptimConfig::kSgd:
      ranges.In("optim.sgd.momentum", config.sgd().momentum(), 0, 1);
      ranges.In("optim.sgd.weight_decay", config.sgd().weight_decay(), 0, 1e6);
      optimizer = std::make_unique<Sgd>(config.sgd());
      break;
    case config::OptimConfig::kAdamw:
    case config::OptimConfig::KIND_NOT_SET:
      ranges.In("optim.adamw.beta1", config.adamw().beta1(), 0, 1);
      ranges.In("optim.adamw.beta2", config.adamw().beta2(), 0, 1);
      ranges.In("optim.adamw.epsilon", config.adamw().epsilon(), 0, 1);
      ranges.In("optim.adamw.weight_decay", config.adamw().weight_decay(), 0, 1e6);
      optimizer = std::make_unique<AdamW>(config.adamw());
      break;
  }
  if (absl::Status status = ranges.Result(); !status.ok()) return status;
  return optimizer;
}

}  // namespace shoal
