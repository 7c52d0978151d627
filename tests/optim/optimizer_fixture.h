// A small problem for optimizers: parameters of every class with made-up weights and gradients, and a rank that owns
// all of it in pieces cut as a test likes.
#pragma once

#include <glog/logging.h>

#include <cmath>
#include <functional>
#include <string>
#include <vector>

#include "optim/optimizer.h"
#include "runtime/base/rng.h"
#include "tests/optim/textbook.h"

namespace shoal {

inline constexpr int kDrawnSteps = 4;
inline constexpr double kRate = 1e-2, kPeak = 2e-2, kGradScale = 0.5;

struct Problem {
  std::vector<Param> params;
  std::function<double(size_t param, int64_t element)> start;
  std::function<double(int step, size_t param, int64_t element)> grad;  // before kGradScale

  // Two matrices, a convolution, an embedding large enough for several tasks, a vector.
  static Problem Standard() {
    Problem p;
    p.Add("up.weight", {61, 130}, ParamClass::kMatrix);
    p.Add("down.weight", {130, 61}, ParamClass::kMatrix);
    p.Add("embedding", {1001, 70}, ParamClass::kEmbedding);
    p.Add("norm.weight", {129}, ParamClass::kVector);
    p.Add("conv.weight", {8, 3, 3, 5}, ParamClass::kMatrix);
    // Drawn once: [step][parameter][element], step 0 being the start.
    static const auto* drawn = [](const std::vector<Param>& params) {
      auto* values = new std::vector<std::vector<std::vector<double>>>(kDrawnSteps + 1);
      for (int step = 0; step <= kDrawnSteps; ++step) {
        for (size_t q = 0; q < params.size(); ++q) {
          auto& of = (*values)[step].emplace_back();
          for (int64_t i = 0; i < params[q].size(); ++i) of.push_back(Normal(step, q, i));
        }
      }
      return values;
    }(p.params);
    p.start = [](size_t param, int64_t i) { return (*drawn)[0][param][i]; };
    p.grad = [](int step, size_t param, int64_t i) { return (*drawn)[step][param][i]; };
    return p;
  }
  void Add(std::string name, Shape shape, ParamClass param_class) {
    const int id = static_cast<int>(params.size());
    params.push_back({.name = std::move(name), .shape = std::move(shape), .param_class = param_class, .id = id});
  }
  std::vector<const Param*> pointers() const {
    std::vector<const Param*> all;
    for (const Param& param : params) all.push_back(&param);
    return all;
  }
  // Norm of all gradients of a step, before kGradScale.
  double GradNorm(int step) const {
    double sum = 0;
    for (size_t p = 0; p < params.size(); ++p) {
      for (int64_t i = 0; i < params[p].size(); ++i) sum += grad(step, p, i) * grad(step, p, i);
    }
    return std::sqrt(sum);
  }
  static double Normal(int step, size_t param, int64_t i) {
    return static_cast<double>(
        Rng({1, RngPurpose::kTest, param}).Normal(static_cast<uint64_t>(step), static_cast<uint64_t>(i)));
  }
};

// By parameter. Compared with EXPECT_TRUE(a == b): a difference is not worth a hundred thousand numbers.
using Weights = std::vector<std::vector<float>>;

inline OptimizerStep StepOf(const Problem& problem, int step) {
  return {.step = step,
          .learning_rate = kRate,
          .grad_scale = kGradScale,
          .grad_norm = problem.GradNorm(step),
          .schedule = kRate / kPeak,
          .time = static_cast<double>(step),
          .seed = 7};
}

// How a tensor of `size` elements is cut: borders from 0 to size.
using Cut = std::function<std::vector<int64_t>(int64_t size)>;
inline std::vector<int64_t> Whole(int64_t size) { return {0, size}; }

// The weights after `steps` steps on one rank.
inline Weights RunSteps(const Problem& problem, const config::OptimConfig& config, int steps, int threads = 1,
                        const Cut& cut = Whole) {
  const auto pointers = problem.pointers();
  auto made = MakeOptimizer(config, pointers, {});
  CHECK(made.ok()) << made.status();
  Optimizer& optimizer = **made;
  Weights weights, grads;
  std::vector<OptimizerPiece> pieces;
  for (size_t p = 0; p < problem.params.size(); ++p) {
    weights.emplace_back(problem.params[p].size());
    grads.emplace_back(problem.params[p].size());
    for (int64_t i = 0; i < problem.params[p].size(); ++i) weights[p][i] = static_cast<float>(problem.start(p, i));
  }
  for (size_t p = 0; p < problem.params.size(); ++p) {
    const std::vector<int64_t> borders = cut(problem.params[p].size());
    for (size_t b = 0; b + 1 < borders.size(); ++b) {
      const int64_t begin = borders[b], n = borders[b + 1] - begin;
      OptimizerPiece piece{.param = &problem.params[p],
                           .begin = begin,
                           .end = begin + n,
                           .master = Tensor::Borrow(weights[p].data() + begin, {n}, DType::kF32),
                           .grad = Tensor::Borrow(grads[p].data() + begin, {n}, DType::kF32),
                           .state = {}};
      for (size_t s = 0; s < optimizer.state_names(problem.params[p]).size(); ++s)
        piece.state.push_back(Tensor::Zeros({n}, optimizer.moment_type()));
      pieces.push_back(std::move(piece));
    }
  }
  std::vector<double> scalars(optimizer.scalar_names().size());
  ThreadPool pool(threads);
  const auto owners = SoleOwner();
  for (int step = 1; step <= steps; ++step) {
    for (size_t p = 0; p < grads.size(); ++p) {
      for (int64_t i = 0; i < problem.params[p].size(); ++i) grads[p][i] = static_cast<float>(problem.grad(step, p, i));
    }
    const absl::Status status =
        optimizer.Step({pool, *owners}, StepOf(problem, step), {absl::MakeSpan(pieces), absl::MakeSpan(scalars)});
    CHECK(status.ok()) << status;
  }
  return weights;
}

// The same by the textbook.
inline std::vector<TextbookTensor> RunTextbook(const Problem& problem, const Textbook& textbook, int steps) {
  std::vector<TextbookTensor> tensors;
  for (size_t p = 0; p < problem.params.size(); ++p) {
    const Param& param = problem.params[p];
    const auto n = static_cast<size_t>(param.size());
    TextbookTensor& x =
        tensors.emplace_back(TextbookTensor{param.name, param.shape, param.param_class, {}, {}, {}, {}});
    for (int64_t i = 0; i < param.size(); ++i) x.w.push_back(problem.start(p, i));
    x.g.resize(n);
    x.s0.resize(n);
    x.s1.resize(n);
  }
  for (int step = 1; step <= steps; ++step) {
    for (size_t p = 0; p < tensors.size(); ++p) {
      for (size_t i = 0; i < tensors[p].g.size(); ++i)
        tensors[p].g[i] = kGradScale * problem.grad(step, p, static_cast<int64_t>(i));
    }
    textbook({.t = step, .rate = kRate, .schedule = kRate / kPeak}, tensors);
  }
  return tensors;
}

}  // namespace shoal
