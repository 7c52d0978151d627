// What a width rule multiplies inside a transformer.
#pragma once

#include <string>

#include "models/models.pb.h"

namespace shoal {

struct WidthMultipliers {
  double attention = 1;  // scores, beside 1 / sqrt(head size)
  double readout = 1;    // logits
  double residual = 1;   // what attention and MLPs add to the residual stream
};

// A model without multipliers computes the same when each weight is multiplied by this factor: readout goes into the
// final norm, attention into the queries (their norm, where there is one), residual into the projections that end a
// branch.
double FoldedFactor(const config::TransformerConfig& config, const WidthMultipliers& multipliers,
                    const std::string& param);

}  // namespace shoal
