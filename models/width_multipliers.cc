#include "models/width_multipliers.h"

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace shoal {

double FoldedFactor(const config::TransformerConfig& config, const WidthMultipliers& multipliers,
                    const std::string& param) {
  // Weight or bias of a layer.
  const auto of = [&](const char* layer) { return absl::StrContains(param, absl::StrCat(layer, ".")); };
  if (of("final_norm")) return multipliers.readout;
  if (of(config.qk_norm() ? ".attention.q_norm" : ".attention.q")) return multipliers.attention;
  if (of(".attention.out") || of(".mlp.down")) return multipliers.residual;
  return 1;
}

}  // namespace shoal
