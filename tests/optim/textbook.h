// Optimizers as their papers and reference programs state them, in float64 and one tensor after another: what the table
// test holds Shoal's against. Written apart from optim/; options are given here once more, by hand.
#pragma once

#include <functional>
#include <ostream>
#include <string>
#include <vector>

#include "optim/optim.pb.h"
#include "runtime/module/param.h"

namespace shoal {

struct TextbookTensor {
  std::string name;
  Shape shape;
  ParamClass param_class = ParamClass::kMatrix;
  std::vector<double> w, g;    // weights; gradient after clipping
  std::vector<double> s0, s1;  // moments, zeros at start
  double scalar = 0;           // LANTON's H
  bool vector() const { return param_class == ParamClass::kVector; }
};

// One step at `rate`, the t-th (from 1); `schedule` = rate / peak.
struct TextbookStep {
  int t = 1;
  double rate = 0, schedule = 1;
};
using Textbook = std::function<void(const TextbookStep&, std::vector<TextbookTensor>&)>;

struct OptimizerRow {
  std::string name;
  config::OptimConfig config;
  Textbook textbook;
  double tolerance = 2e-6;  // of a weight after a few steps of size 1e-2
  friend void PrintTo(const OptimizerRow& row, std::ostream* out) { *out << row.name; }
};

// Every optimizer and preset. Names are also those of golden/optimizers.json.
std::vector<OptimizerRow> OptimizerTable();

double NormOf(const std::vector<double>& x);
// Five Newton-Schulz steps in float64 on x [rows, columns], in place.
void TextbookNewtonSchulz(config::MuonConfig::Coefficients coefficients, int64_t rows, int64_t columns,
                          std::vector<double>& x);

}  // namespace shoal
