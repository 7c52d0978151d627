#include "optim/muon.h"

#include <glog/logging.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "optim/adamw.h"
#include "optim/kernels.h"
#include "optim/pieces.h"
#include "runtime/base/regex.h"
#include "runtime/base/status.h"
#include "runtime/ops/ops.h"

namespace shoal {
namespace {

constexpr size_t kMomentum = 0, kPreviousGrad = 1;  // of a matrix's state

}  // namespace

absl::StatusOr<std::unique_ptr<Optimizer>> Muon::Create(const config::MuonConfig& config, GroupTable groups,
                                                        DType moment_type) {
  auto muon = std::unique_ptr<Muon>(new Muon(config, std::move(groups), moment_type));
  const auto& table = muon->groups().rows;
  muon->rows_.resize(table.size());
  for (const auto& split : config.split()) {
    SHOAL_ASSIGN_OR_RETURN(const Regex regex, Regex::Compile(split.match()));
    int matched = 0;
    for (const ParamOptions& options : table) {
      const Param& param = *options.param;
      if (!muon->Own(param) || !regex.Matches(param.name)) continue;
      ++matched;
      const int64_t sum = std::accumulate(split.rows().begin(), split.rows().end(), int64_t{0});
      if (sum != param.shape[0]) {
        return absl::InvalidArgumentError(absl::StrCat("optim.muon.split.rows of '", split.match(), "' sum up to ", sum,
                                                       ", but '", param.name, "' has ", param.shape[0], " rows"));
      }
      muon->rows_[param.id].assign(split.rows().begin(), split.rows().end());
    }
    if (matched == 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("optim.muon.split.match '", split.match(), "' matches no matrix that Muon updates"));
    }
  }
  muon->layer_of_.assign(table.size(), -1);
  if (config.has_noise_adaptive()) {
    std::vector<std::string> layers;
    for (const ParamOptions& options : table) {
      if (!muon->Own(*options.param)) continue;
      muon->layer_of_[options.param->id] = static_cast<int>(layers.size());
      layers.push_back(options.param->name);
    }
    SHOAL_ASSIGN_OR_RETURN(muon->noise_, NoiseAdaptive::Create(config.noise_adaptive(), std::move(layers)));
  }
  return muon;
}

UpdateTraits Muon::Traits(const config::MuonConfig& config) {
  return {.weight_decay = config.weight_decay(), .decay = config.decay()};
}

UpdateTraits Muon::AdamWTraits(const config::MuonConfig& config, double learning_rate) {
  UpdateTraits traits = AdamW::Traits(config.adamw());
  if (config.has_adamw_learning_rate() && learning_rate > 0)
    traits.learning_rate_factor = config.adamw_learning_rate() / learning_rate;
  return traits;
}

std::vector<std::string> Muon::state_names(const Param& param) const {
  if (!Own(param)) return {"exp_avg", "exp_avg_sq"};
  if (!noise_.has_value()) return {"momentum"};
  return {"momentum", "previous_grad"};
}

std::vector<std::string> Muon::scalar_names() const {
  std::vector<std::string> names;
  if (noise_.has_value()) {
    for (const std::string& layer : noise_->layers()) names.push_back(absl::StrCat(layer, "/gradient_noise"));
  }
  return names;
}

double Muon::UpdateCost(const Param& param) const {
  // Elementwise work is bound by memory: about as long as 100 of the products' FLOPs an element.
  constexpr double kFlopsPerElement = 100;
  double cost = kFlopsPerElement * static_cast<double>(param.size());
  if (!Own(param) || param.size() == 0) return cost;
  const int64_t columns = FanIn(param.shape);
  const std::vector<int64_t> whole = {param.shape[0]};
  for (const int64_t rows : rows_[param.id].empty() ? whole : rows_[param.id])
    cost += Orthogonalizer::Flops(rows, columns);
  return cost;
}

double Muon::Scale(int64_t rows, int64_t columns) const {
  const auto out = static_cast<double>(rows), in = static_cast<double>(columns);
  switch (config_.scale()) {
    case config::MuonConfig::KELLER_SCALE:
      return std::sqrt(std::max(1.0, out / in));
    case config::MuonConfig::MOONLIGHT:
      return 0.2 * std::sqrt(std::max(out, in));
    case config::MuonConfig::SPECTRAL:
      break;
  }
  return std::sqrt(out / in);
}

Tensor Muon::Scratch(Tensor& held, const Param& param) {
  if (!held.defined() || held.size() < param.size()) held = Tensor::Zeros({param.size()}, DType::kF32);
  return held.Rows(0, param.size()).View({param.shape[0], FanIn(param.shape)});
}

std::vector<Tensor> Muon::Blocks(const Param& param, const Tensor& matrix) const {
  if (rows_[param.id].empty()) return {matrix};
  std::vector<Tensor> blocks;
  int64_t begin = 0;
  for (const int64_t rows : rows_[param.id]) {
    blocks.push_back(matrix.Rows(begin, begin + rows));
    begin += rows;
  }
  return blocks;
}

absl::Status Muon::Step(const OptimizerEnv& env, const OptimizerStep& step, const OptimizerShard& shard) {
  std::vector<OptimizerPiece> matrices, others;  // handles of the same memory
  for (const OptimizerPiece& piece : shard.pieces) {
    CHECK(piece.begin == 0 && piece.end == piece.param->size()) << "Muon updates whole tensors";
    if (piece.param->size() > 0) (Own(*piece.param) ? matrices : others).push_back(piece);
  }
  std::vector<double> factors;
  if (noise_.has_value()) {
    if (noise_->Measures(step.step)) {
      std::vector<double> squared(noise_->layers().size());
      for (OptimizerPiece& piece : matrices) squared[layer_of_[piece.param->id]] = SquaredNoise(env.pool, step, piece);
      SHOAL_RETURN_IF_ERROR(env.owners.Sum(absl::MakeSpan(squared)));
      noise_->Update(squared, shard.scalars);
    }
    factors = noise_->Factors(shard.scalars);
  }
  for (OptimizerPiece& piece : matrices) {
    const double factor = noise_.has_value() ? factors[layer_of_[piece.param->id]] : 1.0;
    UpdateMatrix(env.pool, step, piece, step.learning_rate * OptionsOf(piece).learning_rate_factor * factor);
  }
  AdamW::Update(config_.adamw(), *this, env.pool, step, absl::MakeSpan(others));
  return absl::OkStatus();
}

double Muon::SquaredNoise(ThreadPool& pool, const OptimizerStep& step, OptimizerPiece& piece) {
  const Tensor difference = Scratch(difference_, *piece.param);
  ForPieceRuns(pool, {&piece, 1}, [&](OptimizerPiece& p, int64_t first, int64_t count) {
    ForBlocks(moment_type(), first, count, [&](int64_t begin, int64_t n) {
      MomentRun previous(p, kPreviousGrad, begin, n);
      float* to = difference.data<float>() + begin;
      optim::ScaleRun(static_cast<float>(step.grad_scale), p.grad.data<float>() + begin, n, to);
      optim::CombineRun(-1, previous.values(), 1, n, to);
    });
  });
  OpContext ctx{.pool = &pool};
  double norm = 0;
  for (const Tensor& block : Blocks(*piece.param, difference)) {
    if (noise_->norm() == config::MuonConfig::NoiseAdaptive::FROBENIUS) {
      const auto smaller = static_cast<double>(std::min(block.dim(0), block.dim(1)));
      norm += std::sqrt(smaller * ops::SumOfSquares(ctx, block));
      continue;
    }
    // ||D||_* = <D, U V^T>.
    const Tensor factor = Scratch(update_, *piece.param).Rows(0, block.dim(0));
    ops::Copy(ctx, block, factor);
    orthogonalize_.Run(pool, factor);
    const float* d = block.data<float>();
    const float* o = factor.data<float>();
    double dot = 0;
    for (int64_t i = 0; i < block.size(); ++i) dot += static_cast<double>(d[i]) * static_cast<double>(o[i]);
    norm += dot;
  }
  return norm * norm;
}

void Muon::UpdateMatrix(ThreadPool& pool, const OptimizerStep& step, OptimizerPiece& piece, double rate) {
  const Tensor update = Scratch(update_, *piece.param);
  const absl::Span<OptimizerPiece> only(&piece, 1);
  const auto grad_scale = static_cast<float>(step.grad_scale);
  const optim::MuonScalars momentum{.grad_scale = grad_scale,
                                    .momentum = static_cast<float>(config_.momentum()),
                                    .fresh = static_cast<float>(1 - config_.momentum()),
                                    .nesterov = config_.nesterov()};
  ForPieceRuns(pool, only, [&](OptimizerPiece& p, int64_t first, int64_t count) {
    ForBlocks(moment_type(), first, count, [&](int64_t begin, int64_t n) {
      const float* grad = p.grad.data<float>() + begin;
      MomentRun buffer(p, kMomentum, begin, n);
      optim::MuonMomentumRun(momentum, grad, n, buffer.values(), update.data<float>() + begin);
      buffer.Store(step);
      if (!noise_.has_value()) return;
      MomentRun previous(p, kPreviousGrad, begin, n);
      optim::ScaleRun(grad_scale, grad, n, previous.values());
      previous.Store(step);
    });
  });
  const double keep = KeptShare(step, OptionsOf(piece), config_.decay());
  float* weight = piece.master.data<float>();
  const float* whole = update.data<float>();
  for (const Tensor& block : Blocks(*piece.param, update)) {
    orthogonalize_.Run(pool, block);
    const int64_t first = block.data<float>() - whole;
    const auto scaled = static_cast<float>(-rate * Scale(block.dim(0), block.dim(1)));
    pool.ParallelFor(block.size(), 1 << 14, [&](int64_t begin, int64_t end) {
      optim::CombineRun(scaled, whole + first + begin, static_cast<float>(keep), end - begin, weight + first + begin);
    });
  }
}

}  // namespace shoal
