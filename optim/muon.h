// Muon: momentum, orthogonalised (github.com/KellerJordan/Muon; config::MuonConfig). Hidden matrices by this rule, all
// else by AdamW.
//
// Orthogonalising needs whole matrices, so shards end at tensors: from ZeRO 1 on each matrix is updated by its owner
// and gathered with the weights; with ZeRO 0 every rank updates all, which gives equal weights only on processors with
// the same instructions.
#pragma once

#include <optional>

#include "optim/newton_schulz.h"
#include "optim/noise_adaptive.h"
#include "optim/optimizer.h"

namespace shoal {

class Muon : public Optimizer {
 public:
  // InvalidArgument names a split or a noise group that matches no matrix, and rows that do not sum up.
  static absl::StatusOr<std::unique_ptr<Optimizer>> Create(const config::MuonConfig& config, GroupTable groups,
                                                           DType moment_type);
  static UpdateTraits Traits(const config::MuonConfig& config);
  // Of what AdamW updates; `learning_rate` is optim.learning_rate.
  static UpdateTraits AdamWTraits(const config::MuonConfig& config, double learning_rate);

  ShardGranularity granularity() const override { return ShardGranularity::kMatrix; }
  std::vector<std::string> state_names(const Param& param) const override;
  std::vector<std::string> scalar_names() const override;
  double UpdateCost(const Param& param) const override;
  absl::Status Step(const OptimizerEnv& env, const OptimizerStep& step, const OptimizerShard& shard) override;

 private:
  Muon(const config::MuonConfig& config, GroupTable groups, DType moment_type)
      : Optimizer(std::move(groups), moment_type), config_(config), orthogonalize_(config.coefficients()) {}
  bool Own(const Param& param) const { return groups().rows[param.id].update == ParamOptions::Update::kOwn; }
  double Scale(int64_t rows, int64_t columns) const;
  // Squared size of the noise in a matrix's gradient: of its difference from the previous step's.
  double SquaredNoise(ThreadPool& pool, const OptimizerStep& step, OptimizerPiece& piece);
  void UpdateMatrix(ThreadPool& pool, const OptimizerStep& step, OptimizerPiece& piece, double rate);
  // The blocks of a matrix that are orthogonalised alone, as views of `matrix`.
  std::vector<Tensor> Blocks(const Param& param, const Tensor& matrix) const;
  // Memory for one matrix [out, everything else].
  Tensor Scratch(Tensor& held, const Param& param);

  config::MuonConfig config_;
  Orthogonalizer orthogonalize_;
  std::vector<std::vector<int64_t>> rows_;  // by Param::id: of its blocks; empty: one block
  std::optional<NoiseAdaptive> noise_;
  std::vector<int> layer_of_;  // by Param::id: its index in noise_, or -1
  Tensor update_, difference_;
};

}  // namespace shoal
