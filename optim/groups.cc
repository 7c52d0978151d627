#include "optim/groups.h"

#include <algorithm>
#include <map>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "runtime/base/regex.h"
#include "runtime/base/status.h"

namespace shoal {
namespace {

using Update = ParamOptions::Update;
using Adapt = ParamOptions::Adapt;

const char* ClassName(ParamClass param_class) {
  switch (param_class) {
    case ParamClass::kMatrix:
      return "matrix";
    case ParamClass::kEmbedding:
      return "embedding";
    case ParamClass::kReadout:
      return "readout";
    case ParamClass::kVector:
      break;
  }
  return "vector";
}

const UpdateTraits& TraitsOf(const OptimizerTraits& traits, Update update) {
  return update == Update::kAdamW ? *traits.adamw : traits.own;
}

absl::Status NotOffered(const OptimizerTraits& traits, const config::ParamGroup& group, const Param& param,
                        const char* option) {
  return absl::InvalidArgumentError(absl::StrCat("optim.group.", option, " of group '", group.match(),
                                                 "' does not apply to '", param.name, "', which ", traits.name,
                                                 " updates without it"));
}

// Group and width rule applied to one parameter; `group` may be null.
absl::StatusOr<ParamOptions> Resolve(const Param& param, const config::ParamGroup* group, const OptimizerTraits& traits,
                                     const config::WidthRule& rule, const ModelScale& scale, double m) {
  ParamOptions options;
  options.param = &param;
  if (traits.adamw.has_value()) {
    bool own = IsHiddenMatrix(param);
    if (group != nullptr && group->has_update()) own = group->update() == config::ParamGroup::MUON;
    if (own && param.shape.size() < 2) return NotOffered(traits, *group, param, "update");
    options.update = own ? Update::kOwn : Update::kAdamW;
  }
  const UpdateTraits& of = TraitsOf(traits, options.update);
  const bool vector = param.param_class == ParamClass::kVector;
  const bool decayed = DecayedByDefault(rule, param.param_class) == Decayed::kYes;
  options.learning_rate_factor = of.learning_rate_factor;
  options.weight_decay = decayed ? of.weight_decay.value_or(0) : 0;
  options.epsilon = of.epsilon.value_or(0);
  if (group != nullptr) {
    options.group = group->match();
    options.learning_rate_factor *= group->learning_rate_factor();
    if (group->has_weight_decay() && !of.weight_decay.has_value())
      return NotOffered(traits, *group, param, "weight_decay");
    if (group->has_epsilon() && !of.epsilon.has_value()) return NotOffered(traits, *group, param, "epsilon");
    if (group->has_weight_decay()) options.weight_decay = group->weight_decay();
    if (group->has_epsilon()) options.epsilon = group->epsilon();
  }
  if (of.width == UpdateTraits::Width::kScaled) {
    const WidthFactors factors =
        FactorsOf(rule, scale, param.param_class, m, of.decay.value_or(config::COUPLED_TO_RATE));
    options.learning_rate_factor *= factors.learning_rate;
    options.weight_decay *= factors.weight_decay;
    options.epsilon *= factors.epsilon;
  }
  if (of.adapts.has_value()) {
    bool adapts = *of.adapts == Adapts::kAll || (*of.adapts == Adapts::kDecayed && options.weight_decay != 0) ||
                  (*of.adapts == Adapts::kAllButVectors && !vector);
    if (group != nullptr && group->has_adapt()) adapts = group->adapt();
    options.adapt = adapts ? Adapt::kYes : Adapt::kNo;
  }
  return options;
}

// Some names, for the message about a group that matches none.
std::string Examples(absl::Span<const Param* const> params) {
  constexpr size_t kShown = 4;
  std::vector<std::string> patterns;
  for (const Param* param : params) {
    const std::string pattern = NamePattern(param->name);
    if (std::find(patterns.begin(), patterns.end(), pattern) == patterns.end()) patterns.push_back(pattern);
  }
  const bool more = patterns.size() > kShown;
  if (more) patterns.resize(kShown);
  return absl::StrCat(absl::StrJoin(patterns, ", "), more ? ", ..." : "");
}

std::string OptionsText(const ParamOptions& options, const OptimizerTraits& traits, double learning_rate) {
  const UpdateTraits& of = TraitsOf(traits, options.update);
  const double rate = learning_rate * options.learning_rate_factor;
  std::string text = absl::StrFormat("%-9s  rate %.3g", ClassName(options.param->param_class), rate);
  if (of.weight_decay.has_value()) absl::StrAppendFormat(&text, "  decay %.3g", options.weight_decay);
  if (of.decay.has_value() && options.weight_decay > 0) {
    const double per_step = options.weight_decay * (*of.decay == config::INDEPENDENT ? 1 : rate);
    absl::StrAppendFormat(&text, " (forgets in %.3g steps)", 1 / per_step);
  }
  if (of.epsilon.has_value()) absl::StrAppendFormat(&text, "  epsilon %.3g", options.epsilon);
  if (of.adapts.has_value()) absl::StrAppend(&text, options.adapt == Adapt::kYes ? "  adapts" : "  does not adapt");
  if (traits.adamw.has_value())
    absl::StrAppend(&text, "  by ", options.update == Update::kAdamW ? "AdamW" : traits.name);
  if (!options.group.empty()) absl::StrAppend(&text, "  group '", options.group, "'");
  return text;
}

}  // namespace

std::string NamePattern(const std::string& name) {
  std::vector<std::string> parts = absl::StrSplit(name, '.');
  for (std::string& part : parts) {
    if (!part.empty() && std::all_of(part.begin(), part.end(), [](char c) { return absl::ascii_isdigit(c); }))
      part.assign(1, '*');
  }
  return absl::StrJoin(parts, ".");
}

const UpdateTraits& GroupTable::RuleOf(const ParamOptions& options) const { return TraitsOf(traits, options.update); }

std::string GroupTable::Text(double learning_rate) const {
  std::vector<std::pair<std::string, std::string>> lines;  // name pattern, options
  std::map<std::pair<std::string, std::string>, int> counts;
  size_t widest = 0;
  for (const ParamOptions& options : rows) {
    std::pair<std::string, std::string> line{NamePattern(options.param->name),
                                             OptionsText(options, traits, learning_rate)};
    if (counts[line]++ == 0) lines.push_back(line);
  }
  std::vector<std::string> names;
  for (const auto& line : lines) {
    const int count = counts[line];
    names.push_back(count == 1 ? line.first : absl::StrCat(line.first, " x", count));
    widest = std::max(widest, names.back().size());
  }
  std::string text;
  for (size_t i = 0; i < lines.size(); ++i) {
    absl::StrAppendFormat(&text, "%s%-*s  %s", i == 0 ? "" : "\n", static_cast<int>(widest), names[i], lines[i].second);
  }
  return text;
}

absl::Status CheckGroups(const config::OptimConfig& config, const OptimizerTraits& traits) {
  std::vector<std::string> wrong;
  const auto not_offered = [&](const char* option) {
    wrong.push_back(absl::StrCat("optim.", option, " does not apply to ", traits.name));
  };
  const auto offered = [&](auto has) { return has(traits.own) || (traits.adamw.has_value() && has(*traits.adamw)); };
  for (const auto& group : config.group()) {
    if (!group.has_match()) wrong.push_back("optim.group has no match; it takes a regular expression of names");
    if (auto regex = Regex::Compile(group.match()); !regex.ok())
      wrong.push_back(absl::StrCat("optim.group.match: ", regex.status().message()));
    for (const auto& [name, value] : {std::pair{"learning_rate_factor", group.learning_rate_factor()},
                                      {"weight_decay", group.weight_decay()},
                                      {"epsilon", group.epsilon()}}) {
      if (value < 0) wrong.push_back(absl::StrCat("optim.group.", name, " is ", value, "; it must not be below 0"));
    }
    if (group.has_weight_decay() && !offered([](const UpdateTraits& of) { return of.weight_decay.has_value(); }))
      not_offered("group.weight_decay");
    if (group.has_epsilon() && !offered([](const UpdateTraits& of) { return of.epsilon.has_value(); }))
      not_offered("group.epsilon");
    if (group.has_adapt() && !traits.own.adapts.has_value()) not_offered("group.adapt");
    if (group.has_update() && !traits.adamw.has_value()) not_offered("group.update");
  }
  if (config.has_width_rule()) {
    if (!offered([](const UpdateTraits& of) { return of.width == UpdateTraits::Width::kScaled; }))
      not_offered("width_rule");
    if (absl::Status status = CheckWidthRule(config.width_rule()); !status.ok()) wrong.emplace_back(status.message());
  }
  if (config.moments() == config::BF16 && traits.moments == OptimizerTraits::Offer::kNo) not_offered("moments: BF16");
  if (config.has_reference_batch() && traits.reference_batch == OptimizerTraits::Offer::kNo &&
      !config.ema().has_decay())
    not_offered("reference_batch");
  return wrong.empty() ? absl::OkStatus() : absl::InvalidArgumentError(absl::StrJoin(wrong, "\n"));
}

absl::StatusOr<GroupTable> ResolveGroups(absl::Span<const Param* const> params, const config::OptimConfig& config,
                                         const OptimizerTraits& traits, const ModelScale& scale) {
  const config::WidthRule no_rule = [] {
    config::WidthRule none;
    none.set_preset(config::WidthRule::NONE);
    return none;
  }();
  const config::WidthRule& rule = config.has_width_rule() ? config.width_rule() : no_rule;
  SHOAL_ASSIGN_OR_RETURN(const auto ratios, WidthRatios(rule, scale, params));
  std::vector<Regex> regexes;
  for (const auto& group : config.group()) {
    SHOAL_ASSIGN_OR_RETURN(Regex regex, Regex::Compile(group.match()));
    regexes.push_back(std::move(regex));
  }
  GroupTable table{.rows = {}, .traits = traits};
  std::vector<int> matched(regexes.size()), taken(regexes.size());
  for (size_t i = 0; i < params.size(); ++i) {
    const config::ParamGroup* group = nullptr;
    for (int g = 0; g < config.group_size(); ++g) {
      if (!regexes[g].Matches(params[i]->name)) continue;
      ++matched[g];
      if (group != nullptr) continue;
      group = &config.group(g);
      ++taken[g];
    }
    SHOAL_ASSIGN_OR_RETURN(ParamOptions options, Resolve(*params[i], group, traits, rule, scale, ratios[i]));
    table.rows.push_back(std::move(options));
  }
  for (int g = 0; g < config.group_size(); ++g) {
    if (taken[g] > 0) continue;
    return absl::InvalidArgumentError(
        absl::StrCat("optim.group.match '", config.group(g).match(),
                     matched[g] == 0 ? absl::StrCat("' matches no parameter; there are ", Examples(params))
                                     : "' matches only parameters that an earlier group has"));
  }
  return table;
}

}  // namespace shoal
