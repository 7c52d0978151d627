// Parameter groups and width rules.
#include "optim/groups.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "optim/optimizer.h"
#include "runtime/base/status.h"
#include "tests/optim/optimizer_fixture.h"

namespace shoal {
namespace {

using config::WidthRule;
using testing::HasSubstr;

// A model of width 256, tuned at 64.
Problem Wide() {
  Problem p;
  p.Add("embedding", {1000, 256}, ParamClass::kEmbedding);
  p.Add("blocks.0.up.weight", {1024, 256}, ParamClass::kMatrix);
  p.Add("blocks.0.down.weight", {256, 1024}, ParamClass::kMatrix);
  p.Add("blocks.1.up.weight", {1024, 256}, ParamClass::kMatrix);
  p.Add("blocks.1.down.weight", {256, 1024}, ParamClass::kMatrix);
  p.Add("norm.weight", {256}, ParamClass::kVector);
  p.Add("head.weight", {1000, 256}, ParamClass::kReadout);
  return p;
}
constexpr ModelScale kScale = {.width = 256, .depth = 2};

absl::StatusOr<std::vector<ParamOptions>> Resolved(const config::OptimConfig& config) {
  static const auto* problem = new Problem(Wide());
  SHOAL_ASSIGN_OR_RETURN(const auto optimizer, MakeOptimizer(config, problem->pointers(), kScale));
  return optimizer->groups().rows;
}
std::string ErrorOf(const config::OptimConfig& config) { return std::string(Resolved(config).status().message()); }

config::ParamGroup& Group(config::OptimConfig& config, const char* match) {
  auto& group = *config.add_group();
  group.set_match(match);
  return group;
}

TEST(Groups, FirstMatchWinsAndTheRestHasDefaults) {
  config::OptimConfig config;
  Group(config, "up").set_learning_rate_factor(0.5);
  Group(config, "blocks.*weight").set_weight_decay(0.7);
  Group(config, "norm").set_weight_decay(0.2);
  const auto rows = *Resolved(config);
  EXPECT_EQ(rows[1].group, "up");
  EXPECT_EQ(rows[1].learning_rate_factor, 0.5);
  EXPECT_EQ(rows[1].weight_decay, 0.1);
  EXPECT_EQ(rows[2].learning_rate_factor, 1);
  EXPECT_EQ(rows[2].weight_decay, 0.7);
  EXPECT_EQ(rows[5].weight_decay, 0.2) << "a group decays vectors when it says so";
  EXPECT_EQ(rows[0].group, "");
  EXPECT_EQ(rows[0].weight_decay, 0.1);
}

TEST(Groups, TextPutsEqualLayersIntoOneLine) {
  config::OptimConfig config;
  Group(config, "1.down").set_weight_decay(0);
  const Problem problem = Wide();
  const auto optimizer = *MakeOptimizer(config, problem.pointers(), kScale);
  const std::string text = optimizer->groups().Text(1e-3);
  EXPECT_THAT(text, HasSubstr("blocks.*.up.weight x2  matrix     rate 0.001  decay 0.1 (forgets in 1e+04 steps)"));
  EXPECT_THAT(text, HasSubstr("blocks.*.down.weight   matrix     rate 0.001  decay 0  epsilon 1e-08  group '1.down'"));
  EXPECT_THAT(text, HasSubstr("norm.weight"));
}

TEST(Groups, WhatMatchesNothingIsAnError) {
  config::OptimConfig config;
  Group(config, "blocks.7");
  EXPECT_THAT(ErrorOf(config), HasSubstr("optim.group.match 'blocks.7' matches no parameter; there are embedding, "));
  EXPECT_EQ(ExitCodeFor(Resolved(config).status()), ExitCode::kConfig);
  config.clear_group();
  Group(config, "blocks");
  Group(config, "up");
  EXPECT_THAT(ErrorOf(config), HasSubstr("'up' matches only parameters that an earlier group has"));
  config.clear_group();
  Group(config, "(");
  EXPECT_THAT(ErrorOf(config), HasSubstr("optim.group.match"));
}

TEST(Groups, OptionsThatDoNotApplyAreErrors) {
  config::OptimConfig config;
  config.mutable_adagrad_norm();
  Group(config, "up").set_weight_decay(0.1);
  EXPECT_THAT(ErrorOf(config), HasSubstr("optim.group.weight_decay does not apply to AdaGrad-Norm"));
  config.clear_group();
  config.set_moments(config::BF16);
  config.mutable_width_rule()->set_base_width(64);
  config.mutable_reference_batch()->set_tokens(1);
  EXPECT_THAT(ErrorOf(config), HasSubstr("optim.moments: BF16 does not apply to AdaGrad-Norm"));
  EXPECT_THAT(ErrorOf(config), HasSubstr("optim.width_rule does not apply to AdaGrad-Norm"));
  EXPECT_THAT(ErrorOf(config), HasSubstr("optim.reference_batch does not apply to AdaGrad-Norm"));
  config.Clear();
  Group(config, "up").set_adapt(true);
  Group(config, "down").set_update(config::ParamGroup::MUON);
  EXPECT_THAT(ErrorOf(config), HasSubstr("optim.group.adapt does not apply to AdamW"));
  EXPECT_THAT(ErrorOf(config), HasSubstr("optim.group.update does not apply to AdamW"));
  config.Clear();
  config.mutable_muon();
  Group(config, "up").set_epsilon(1e-6);
  EXPECT_THAT(ErrorOf(config), HasSubstr("does not apply to 'blocks.0.up.weight', which Muon updates without it"));
}

TEST(Groups, MuonLeavesAllButHiddenMatricesToAdamW) {
  config::OptimConfig config;
  config.set_learning_rate(0.02);
  config.mutable_muon()->set_adamw_learning_rate(0.001);
  config.mutable_muon()->mutable_adamw()->set_weight_decay(0.3);
  Group(config, "1.up").set_update(config::ParamGroup::ADAMW);
  const auto rows = *Resolved(config);
  using Update = ParamOptions::Update;
  EXPECT_EQ(rows[0].update, Update::kAdamW);
  EXPECT_DOUBLE_EQ(rows[0].learning_rate_factor, 0.05);
  EXPECT_EQ(rows[0].weight_decay, 0.3);
  EXPECT_EQ(rows[1].update, Update::kOwn);
  EXPECT_EQ(rows[1].learning_rate_factor, 1);
  EXPECT_EQ(rows[1].weight_decay, 0.1);
  EXPECT_EQ(rows[3].update, Update::kAdamW);
  EXPECT_EQ(rows[6].update, Update::kAdamW);
}

TEST(WidthRule, TableOfFactors) {
  WidthRule rule;
  rule.set_base_width(64);
  const auto of = [&](double m) { return FactorsOf(rule, kScale, ParamClass::kMatrix, m, config::COUPLED_TO_RATE); };
  struct Row {
    double m, rate, robust, robust_product;
  };
  for (const Row& row : {Row{2, .5, 1.414, .707}, {4, .25, 2, .5}, {8, .125, 2.83, .354}}) {
    rule.set_preset(WidthRule::ROBUST_DECAY);
    EXPECT_NEAR(of(row.m).learning_rate, row.rate, 1e-12);
    EXPECT_NEAR(of(row.m).weight_decay, row.robust, 5e-3);
    EXPECT_NEAR(of(row.m).learning_rate * of(row.m).weight_decay, row.robust_product, 5e-4);
    rule.set_preset(WidthRule::MUP);
    EXPECT_NEAR(of(row.m).learning_rate * of(row.m).weight_decay, 1, 1e-12);
    EXPECT_NEAR(of(row.m).epsilon, 1 / row.m, 1e-12);
    rule.mutable_matrix()->set_weight_decay(0);
    EXPECT_NEAR(of(row.m).learning_rate * of(row.m).weight_decay, row.rate, 1e-12);
    rule.clear_matrix();
    // Independent decay shrinks a weight by as much per step.
    const WidthFactors independent = FactorsOf(rule, kScale, ParamClass::kMatrix, row.m, config::INDEPENDENT);
    EXPECT_NEAR(independent.weight_decay, 1, 1e-12);
  }
  rule.set_preset(WidthRule::NONE);
  EXPECT_EQ(of(8).learning_rate, 1);
  EXPECT_EQ(of(8).epsilon, 1);
}

TEST(WidthRule, EveryClassHasItsExponents) {
  config::OptimConfig config;
  config.mutable_adamw()->set_epsilon(1e-8);
  config.mutable_width_rule()->set_base_width(64);
  auto rows = *Resolved(config);
  for (const ParamOptions& row : rows) {
    const bool matrix = row.param->param_class == ParamClass::kMatrix;
    EXPECT_DOUBLE_EQ(row.learning_rate_factor, matrix ? 0.25 : 1) << row.param->name;
    EXPECT_DOUBLE_EQ(row.epsilon, 0.25e-8) << row.param->name;
    const double decay = row.param->param_class == ParamClass::kVector ? 0 : matrix ? 0.4 : 0.1;
    EXPECT_DOUBLE_EQ(row.weight_decay, decay) << row.param->name;
  }
  config.mutable_width_rule()->set_preset(WidthRule::ROBUST_DECAY);
  rows = *Resolved(config);
  EXPECT_DOUBLE_EQ(rows[0].weight_decay, 0) << "vector-like parameters are not decayed";
  EXPECT_DOUBLE_EQ(rows[1].weight_decay, 0.2);
  EXPECT_DOUBLE_EQ(rows[6].weight_decay, 0);
  config.mutable_width_rule()->mutable_readout()->set_learning_rate(-0.5);
  EXPECT_DOUBLE_EQ((*Resolved(config))[6].learning_rate_factor, 0.5);
  // A feed-forward width that was 512 at base width: m = 2.
  auto& base = *config.mutable_width_rule()->add_base_fan_in();
  base.set_match("down");
  base.set_fan_in(512);
  EXPECT_DOUBLE_EQ((*Resolved(config))[2].learning_rate_factor, 0.5);
  base.set_match("sideways");
  EXPECT_THAT(ErrorOf(config), HasSubstr("optim.width_rule.base_fan_in.match 'sideways' matches no matrix"));
}

TEST(WidthRule, CompletePFollowsTheDepthToo) {
  config::OptimConfig config;
  auto& rule = *config.mutable_width_rule();
  rule.set_preset(WidthRule::COMPLETE_P);
  rule.set_base_width(256);
  EXPECT_THAT(ErrorOf(config), HasSubstr("optim.width_rule has no base_depth"));
  rule.set_base_depth(1);
  EXPECT_DOUBLE_EQ((*Resolved(config))[1].epsilon, 0.5e-8);
  EXPECT_DOUBLE_EQ((*Resolved(config))[1].learning_rate_factor, 1);
  EXPECT_DOUBLE_EQ(ResidualMultiplier(rule, 2), 0.5);
  rule.set_depth_alpha(0.5);
  EXPECT_DOUBLE_EQ((*Resolved(config))[1].learning_rate_factor, std::sqrt(0.5));
  EXPECT_DOUBLE_EQ(ResidualMultiplier(rule, 2), std::sqrt(0.5));
}

TEST(WidthRule, WithoutBaseWidthItIsAnError) {
  config::OptimConfig config;
  config.mutable_width_rule()->set_preset(WidthRule::MUP);
  EXPECT_THAT(ErrorOf(config), HasSubstr("optim.width_rule has no base_width"));
  EXPECT_EQ(ExitCodeFor(Resolved(config).status()), ExitCode::kConfig);
  config.mutable_width_rule()->set_base_width(64);
  config.mutable_width_rule()->set_base_depth(2);
  EXPECT_THAT(ErrorOf(config), HasSubstr("are for preset COMPLETE_P"));
  config.mutable_width_rule()->Clear();
  config.mutable_width_rule()->set_preset(WidthRule::NONE);
  EXPECT_TRUE(Resolved(config).ok());
}

TEST(WidthRule, MultipliersOfModels) {
  WidthRule rule;
  rule.set_base_width(64);
  EXPECT_DOUBLE_EQ(ReadoutMultiplier(rule, 256), 0.25);
  EXPECT_DOUBLE_EQ(AttentionScale(rule, 32), 1 / 32.0);
  EXPECT_DOUBLE_EQ(InitialFactor(rule, ParamClass::kMatrix, 4), 0.5);
  EXPECT_DOUBLE_EQ(InitialFactor(rule, ParamClass::kEmbedding, 4), 1);
  EXPECT_DOUBLE_EQ(ResidualMultiplier(rule, 100), 1);
  rule.set_base_head_size(16);
  EXPECT_DOUBLE_EQ(AttentionScale(rule, 32), 4 / 32.0);
  rule.Clear();
  rule.set_preset(WidthRule::NONE);
  EXPECT_DOUBLE_EQ(ReadoutMultiplier(rule, 256), 1);
  EXPECT_DOUBLE_EQ(AttentionScale(rule, 64), 1 / 8.0);
  EXPECT_EQ(FanIn({7}), 1);
  EXPECT_EQ(FanIn({8, 3, 3, 5}), 45);
}

}  // namespace
}  // namespace shoal
