// Parameter groups: what of the configuration each parameter gets. Resolved once, from names and shapes; the table is
// printed at start.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "optim/optim.pb.h"
#include "optim/width_rule.h"
#include "runtime/module/param.h"

namespace shoal {

// Which tensors a layerwise optimizer scales by their norms, unless a group says so itself.
enum class Adapts : uint8_t { kAllButVectors, kDecayed, kAll };

// What one update rule lends to parameters. Options that are absent do not apply to it.
struct UpdateTraits {
  std::optional<double> weight_decay = std::nullopt;  // of all but vectors; theirs is 0
  std::optional<double> epsilon = std::nullopt;
  std::optional<Adapts> adapts = std::nullopt;
  // The form of decoupled decay; absent: decay is part of gradient or direction.
  std::optional<config::Decay> decay = std::nullopt;
  double learning_rate_factor = 1;
  enum class Width : uint8_t { kNotScaled, kScaled } width = Width::kNotScaled;  // whether width_rule applies
};

// What an optimizer is to the rest of its configuration.
struct OptimizerTraits {
  std::string name;                   // "LAMB", for messages
  UpdateTraits own;                   // its rule
  std::optional<UpdateTraits> adamw;  // Muon: of all that is not a hidden matrix
  enum class Offer : uint8_t { kNo, kYes };
  Offer moments = Offer::kNo;          // may be bf16
  Offer reference_batch = Offer::kNo;  // has beta2 or decoupled decay
};

// One parameter's options, everything multiplied in.
struct ParamOptions {
  const Param* param = nullptr;
  std::string group;                // its regular expression; empty: none matched
  double learning_rate_factor = 1;  // on the scheduled rate
  double weight_decay = 0;
  double epsilon = 0;
  enum class Adapt : uint8_t { kNo, kYes } adapt = Adapt::kNo;
  enum class Update : uint8_t { kOwn, kAdamW } update = Update::kOwn;
};

struct GroupTable {
  std::vector<ParamOptions> rows;  // by Param::id
  OptimizerTraits traits;
  const UpdateTraits& RuleOf(const ParamOptions& options) const;
  // For people: one line per set of equal options of parameters whose names differ in numbers only ("blocks.*.up.weight
  // x12"), with peak rates and, for decoupled decay, the steps in which it forgets.
  std::string Text(double learning_rate) const;
};

// A name without its numbers: "blocks.3.up.weight" -> "blocks.*.up.weight".
std::string NamePattern(const std::string& name);

// Options in `config` that this optimizer does not have, ill-formed expressions, values out of range: all at once.
absl::Status CheckGroups(const config::OptimConfig& config, const OptimizerTraits& traits);

// The table for `params` (by id). InvalidArgument names a group or width rule that no parameter falls to, and options
// that do not apply to a parameter which the group has.
absl::StatusOr<GroupTable> ResolveGroups(absl::Span<const Param* const> params, const config::OptimConfig& config,
                                         const OptimizerTraits& traits, const ModelScale& scale);

}  // namespace shoal
