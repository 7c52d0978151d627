// The textbooks and the program against PyTorch, optax, timm and pytorch-optimizer: golden/optimizers.json, made by
// golden/make_optimizers.py in float64.
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "tests/optim/optimizer_fixture.h"

namespace shoal {
namespace {

using nlohmann::json;

TEST(OptimizerGoldens, TextbooksAndProgramAgreeWithTheirPeers) {
  std::ifstream file("tests/optim/golden/optimizers.json");
  const json golden = json::parse(file);
  // Names, shapes, first weights, and by step gradients before kGradScale.
  Problem problem;
  std::vector<std::vector<double>> start;
  for (const json& tensor : golden.at("tensors")) {
    const auto shape = tensor.at("shape").get<std::vector<int64_t>>();
    problem.Add(tensor.at("name"), Shape(shape.begin(), shape.end()),
                shape.size() == 1 ? ParamClass::kVector : ParamClass::kMatrix);
    start.push_back(tensor.at("start"));
  }
  const auto grads = golden.at("grads").get<std::vector<std::vector<std::vector<double>>>>();  // [step][tensor]
  problem.start = [&](size_t p, int64_t i) { return start[p][i]; };
  problem.grad = [&](int step, size_t p, int64_t i) { return grads[step - 1][p][i] / kGradScale; };
  ASSERT_EQ(golden.at("rate").get<double>(), kRate);

  int rows = 0;
  for (const OptimizerRow& row : OptimizerTable()) {
    if (!golden.at("weights").contains(row.name)) continue;
    ++rows;
    SCOPED_TRACE(row.name);
    const json& peer = golden.at("weights").at(row.name);
    const int steps = static_cast<int>(grads.size());
    const auto textbook = RunTextbook(problem, row.textbook, steps);
    const Weights program = RunSteps(problem, row.config, steps);
    for (size_t p = 0; p < problem.params.size(); ++p) {
      if (!peer.contains(problem.params[p].name)) continue;  // the peer has another rule for it
      const auto expected = peer.at(problem.params[p].name).get<std::vector<double>>();
      ASSERT_EQ(expected.size(), textbook[p].w.size());
      for (size_t i = 0; i < expected.size(); ++i) {
        // Muon: the peers' least divisor differs from ours by 1e-7.
        EXPECT_NEAR(textbook[p].w[i], expected[i], row.config.has_muon() ? 1e-7 : 1e-12) << problem.params[p].name;
        EXPECT_NEAR(static_cast<double>(program[p][i]), expected[i], row.tolerance) << problem.params[p].name;
      }
    }
  }
  EXPECT_EQ(rows, static_cast<int>(golden.at("weights").size())) << "a golden row that the table has not";
}

}  // namespace
}  // namespace shoal
