// Width rules: how rate, decay and epsilon of a parameter follow the model's width (config::WidthRule; the sources are
// named there). Pure functions; models take the multipliers at the end from here too.
#pragma once

#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "optim/optim.pb.h"
#include "runtime/module/param.h"

namespace shoal {

// What a width rule asks about a model: its width and its number of blocks.
struct ModelScale {
  int64_t width = 0, depth = 0;
};

// Inputs of one output of a parameter: in of a matrix [out, in], kh kw I of a convolution [O, kh, kw, I]; 1 for
// vectors.
int64_t FanIn(const Shape& shape);

// InvalidArgument lists what is missing (base_width, base_depth) or out of range.
absl::Status CheckWidthRule(const config::WidthRule& rule);

// m of each parameter: width / base_width; of a matrix that base_fan_in names, its fan-in over the one given there.
// InvalidArgument names a base_fan_in that matches no matrix.
absl::StatusOr<std::vector<double>> WidthRatios(const config::WidthRule& rule, const ModelScale& scale,
                                                absl::Span<const Param* const> params);

// By what rate, decay and epsilon of a parameter of this class and m are multiplied.
struct WidthFactors {
  double learning_rate = 1, weight_decay = 1, epsilon = 1;
};
WidthFactors FactorsOf(const config::WidthRule& rule, const ModelScale& scale, ParamClass param_class, double m,
                       config::Decay decay);
// Whether parameters of this class are decayed when no group says how much.
enum class Decayed : uint8_t { kNo, kYes };
Decayed DecayedByDefault(const config::WidthRule& rule, ParamClass param_class);

// --- For models: multipliers of forward and backward, and of the initial standard deviation. 1, and 1 / sqrt(head
// size), under NONE.
double ReadoutMultiplier(const config::WidthRule& rule, int64_t width);
double AttentionScale(const config::WidthRule& rule, int64_t head_size);
double ResidualMultiplier(const config::WidthRule& rule, int64_t depth);
double InitialFactor(const config::WidthRule& rule, ParamClass param_class, double m);

}  // namespace shoal
