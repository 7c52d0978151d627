#include "launch/commands/plan_cluster.h"

#include <algorithm>
#include <cmath>
#include <iostream>
#include <nlohmann/json.hpp>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "launch/cluster_file.h"
#include "launch/commands.h"
#include "launch/commands/plan_outcomes.h"
#include "parallel/cluster.h"
#include "runtime/base/file_system.h"
#include "runtime/base/status.h"
#include "runtime/base/str.h"
#include "runtime/obs/svg_plot.h"

namespace shoal {
namespace {

constexpr double kGB = 1e9;

// Of one number of ranks.
struct ClusterPrediction {
  int ranks = 0;
  ClusterCosts costs;
  LengthBatches read;
  std::vector<PlanOutcome> outcomes;

  const PlanOutcome& ours() const { return outcomes.front(); }
  double Tokens(size_t batch) const {
    return std::accumulate(read.batches[batch].begin(), read.batches[batch].end(), 0.0);
  }
  double Seconds(const PlanOutcome& o, size_t batch) const { return o.steps[batch].seconds + costs.step; }
  double TokensPerSecond(const PlanOutcome& o) const {
    return o.Mean([&](size_t i) { return Tokens(i); }) / o.Mean([&](size_t i) { return Seconds(o, i); });
  }
  StepTerms Terms(const PlanOutcome& o) const {  // means over batches
    StepTerms sum;
    const auto count = static_cast<double>(o.steps.size());
    for (size_t i = 0; i < o.steps.size(); ++i) {
      const StepTerms t = TermsOf(o.steps[i].plan, read.batches[i], ranks, costs.model);
      sum.quadratic += t.quadratic / count;
      sum.linear += t.linear / count;
      sum.exchange += t.exchange / count;
      sum.fixed += t.fixed / count;
      sum.idle += t.idle / count;
    }
    return sum;
  }
};

absl::StatusOr<ClusterPrediction> Predict(const PlanClusterArgs& args, const config::Cluster& cluster, int ranks,
                                          ClusterCosts costs) {
  const auto& lengths = cluster.lengths();
  PlanLengthsArgs source;
  source.file = args.lengths.empty() ? lengths.path() : args.lengths;
  if (lengths.has_batches()) source.batches = lengths.batches();
  if (lengths.has_sequences()) source.batch = lengths.sequences();
  if (lengths.scaling() == config::ClusterLengths::WITH_RANKS) {
    const double share = static_cast<double>(ranks) / cluster.nodes() / cluster.ranks_per_node();
    source.batch = std::max(1, static_cast<int>(std::lround(lengths.sequences() * share)));
  }
  source.seed = lengths.seed();
  ClusterPrediction p;
  p.ranks = ranks;
  p.costs = std::move(costs);
  SHOAL_ASSIGN_OR_RETURN(p.read, ReadLengths(source, p.costs.model.longest));
  SHOAL_ASSIGN_OR_RETURN(p.outcomes,
                         ComparePlanners({args.planner, args.degree}, source.file, p.read, ranks, p.costs.model));
  return p;
}

std::string RatesText(const config::Cluster& c, const SequenceCostModel& model) {
  std::string text = "all-to-all, GB/s by degree:";
  for (size_t k = 0; k < model.bandwidth.size(); ++k)
    absl::StrAppendFormat(&text, "%s %d: %.4g", k > 0 ? "," : "", 2 << k, model.bandwidth[k] / kGB);
  absl::StrAppend(&text, c.links().all_to_all_size() > 0
                             ? " (given)"
                             : " (derived from links; repeated key heads, rings and the part that stays are in them)");
  return text;
}

// All that predictions stand on, but for what differs between numbers of ranks. `costs`: of the largest.
std::string AssumedText(const config::Cluster& c, const ClusterCosts& costs) {
  const auto& m = c.model();
  const auto& links = c.links();
  const auto& compute = c.compute();
  const SequenceCostModel& model = costs.model;
  std::string text = absl::StrFormat("assumed, nothing of it measured on this machine: %s, %d nodes of %d ranks\n",
                                     c.has_name() ? c.name() : "a cluster", c.nodes(), c.ranks_per_node());
  if (c.has_source()) absl::StrAppend(&text, "  numbers: ", c.source(), "\n");
  absl::StrAppendFormat(&text, "  model%s%s: %d layers, width %d, %d heads", m.has_name() ? " " : "", m.name(),
                        m.layers(), m.width(), m.heads());
  if (m.has_kv_heads()) absl::StrAppendFormat(&text, " (%d of keys)", m.kv_heads());
  absl::StrAppendFormat(&text, ", vocabulary %d, %s parameters (%s)\n", m.vocabulary(), HumanCount(costs.parameters),
                        m.has_parameters() ? "given" : "counted");
  absl::StrAppendFormat(
      &text, "  time: s tokens at degree d (%.4g s^2 + %.5g s) ms / d (%s)", model.quadratic * 1e3, model.linear * 1e3,
      compute.has_peak_tflops()
          ? absl::StrFormat("derived: %.4g TFLOP/s, %.0f %% of it in products, %.0f %% in attention",
                            compute.peak_tflops(), 100 * compute.efficiency(), 100 * compute.attention_efficiency())
          : "given");
  absl::StrAppendFormat(&text, "; %.1f ms a micro-batch (%s)\n", model.fixed * 1e3,
                        compute.has_fixed_ms()
                            ? absl::StrFormat("given, and %.1f of latency", costs.latency * 1e3)
                            : absl::StrFormat("derived: gathers and reductions %.1f, latency %.1f, the rest given",
                                              costs.traffic * 1e3, costs.latency * 1e3));
  if (costs.step > 0)
    absl::StrAppendFormat(&text, "  %.1f ms a step of gathers and reductions, in every planner's steps\n",
                          costs.step * 1e3);
  // Where rates and micro-batches are given, links decide nothing.
  if (links.all_to_all().empty() || !compute.has_fixed_ms() || costs.step > 0 || m.ring())
    absl::StrAppendFormat(&text,
                          "  links: %.4g GB/s a rank in its node, %.4g between nodes, %.0f %% of it reached, %.4g us\n",
                          links.intra_gb_per_s(),
                          links.has_inter_gb_per_s_per_node() ? links.inter_gb_per_s_per_node() / c.ranks_per_node()
                                                              : links.inter_gb_per_s_per_rank(),
                          100 * links.efficiency(), links.latency_us());
  absl::StrAppendFormat(&text, "  s x %s / d over the rate of an %s\n", HumanBytes(model.exchange_bytes_per_token),
                        RatesText(c, model));
  absl::StrAppendFormat(&text, "  memory: %.4g GiB a rank usable of %.4g (%s); ZeRO %d; activations %s a token (%s)\n",
                        costs.usable / (1 << 30), c.memory().gib_per_rank(),
                        c.memory().has_usable_gib() ? "given" : "0.8 of it", c.states().zero(),
                        HumanBytes(costs.activation), c.memory().has_activation_mib_per_token() ? "given" : "derived");
  return text;
}

std::string RanksText(const config::Cluster& c, const ClusterPrediction& p) {
  const SequenceCostModel& model = p.costs.model;
  std::string text = absl::StrFormat("\n%d ranks, %d nodes%s: states %s a rank, %d tokens a rank; degrees to %d\n",
                                     p.ranks, p.ranks / c.ranks_per_node(),
                                     p.ranks > c.nodes() * c.ranks_per_node() ? " (more than the file has)" : "",
                                     HumanBytes(p.costs.states), model.tokens_per_rank, model.LargestDegree(p.ranks));
  if (model.longest < c.lengths().max_tokens())
    absl::StrAppendFormat(&text, "  the limit of %d tokens is lowered to %d, which the largest degree holds\n",
                          c.lengths().max_tokens(), model.longest);
  const bool scaled = c.lengths().scaling() == config::ClusterLengths::WITH_RANKS;
  return absl::StrCat(text, "  ", LengthsText(p.read), "  sequences of a step ",
                      scaled ? "grow with the ranks" : "are the same on any number of ranks", "\n");
}

std::string Table(const ClusterPrediction& p) {
  std::string text =
      absl::StrFormat("  %-14s %10s %10s %9s %10s %10s %7s %11s %13s\n", "planner", "step", "tokens/s", "a rank",
                      "to " + std::string(p.ours().planner->name), "bound", "gap", "plan", "micro-batches");
  for (const PlanOutcome& o : p.outcomes) {
    if (!o.status.ok()) {
      absl::StrAppend(&text, "  ", o.planner->name, ": ", o.status.message(), "\n");
      continue;
    }
    const double rate = p.TokensPerSecond(o);
    absl::StrAppendFormat(
        &text, "  %-14s %8.3f s %10s %9s %9.3fx %8.3f s %5.1f %% %8.1f ms %13.1f\n", o.planner->name,
        o.Mean([&](size_t i) { return p.Seconds(o, i); }), HumanCount(rate), HumanCount(rate / p.ranks),
        o.Mean([&](size_t i) { return p.Seconds(o, i) / p.Seconds(p.ours(), i); }),
        o.Mean([&](size_t i) { return o.steps[i].bound() + p.costs.step; }),
        100 * o.Mean([&](size_t i) { return 1 - (o.steps[i].bound() + p.costs.step) / p.Seconds(o, i); }),
        1e3 * o.Mean([&](size_t i) { return o.plan_seconds[i]; }),
        o.Mean([&](size_t i) { return static_cast<double>(o.steps[i].plan.micro_batches.size()); }));
  }
  return text;
}

// What each planner's step is spent on, in seconds and shares.
std::string TermsTable(const ClusterPrediction& p) {
  std::string text = absl::StrFormat("  %-14s %16s %16s %16s %16s %16s   of a step, mean over ranks\n", "spent on",
                                     "attention s^2", "linear in s", "all-to-all", "fixed", "idle");
  for (const PlanOutcome& o : p.outcomes) {
    if (!o.status.ok()) continue;
    const StepTerms t = p.Terms(o);
    absl::StrAppendFormat(&text, "  %-14s", o.planner->name);
    const double step = t.sum() + p.costs.step;
    for (const double seconds : {t.quadratic, t.linear, t.exchange, t.fixed + p.costs.step, t.idle})
      absl::StrAppendFormat(&text, " %7.3f s %4.1f %%", seconds, 100 * seconds / step);
    absl::StrAppend(&text, "\n");
  }
  return text;
}

nlohmann::json Json(const config::Cluster& c, const std::vector<ClusterPrediction>& predictions) {
  nlohmann::json report = {{"cluster", c.name()},
                           {"source", c.source()},
                           {"model", c.model().name()},
                           {"nodes", c.nodes()},
                           {"ranks_per_node", c.ranks_per_node()},
                           {"scaling", config::ClusterLengths::Scaling_Name(c.lengths().scaling())},
                           {"predictions", nlohmann::json::array()}};
  for (const ClusterPrediction& p : predictions) {
    const SequenceCostModel& model = p.costs.model;
    nlohmann::json one = {{"ranks", p.ranks},
                          {"tokens_per_rank", model.tokens_per_rank},
                          {"longest", model.longest},
                          {"left_out", p.read.left_out},
                          {"parameters", p.costs.parameters},
                          {"states_bytes", p.costs.states},
                          {"step_seconds", p.costs.step},
                          {"cost",
                           {{"quadratic", model.quadratic},
                            {"linear", model.linear},
                            {"fixed", model.fixed},
                            {"exchange_bytes_per_token", model.exchange_bytes_per_token},
                            {"bandwidth", model.bandwidth}}},
                          {"planners", OutcomesJson(p.outcomes)}};
    for (size_t i = 0; i < p.read.batches.size(); ++i) {
      one["sequences"].push_back(p.read.batches[i].size());
      one["tokens"].push_back(p.Tokens(i));
    }
    for (const PlanOutcome& o : p.outcomes) {
      if (!o.status.ok()) continue;
      const StepTerms t = p.Terms(o);
      auto& row = one["planners"][o.planner->name];
      row["tokens_per_second"] = p.TokensPerSecond(o);
      row["terms"] = {{"quadratic", t.quadratic}, {"linear", t.linear},   {"exchange", t.exchange},
                      {"fixed", t.fixed},         {"step", p.costs.step}, {"idle", t.idle}};
    }
    report["predictions"].push_back(std::move(one));
  }
  return report;
}

// Tokens per second over ranks, a line for each planner.
std::string PlotRates(const config::Cluster& c, const std::vector<ClusterPrediction>& predictions) {
  std::vector<std::string> names;
  std::vector<Series> lines;
  Extent ranks, rates;
  PlotAxis across{.scale = PlotAxis::Scale::kLog};
  for (const ClusterPrediction& p : predictions) {
    ranks.Add(p.ranks);
    across.ticks.emplace_back(p.ranks, absl::StrCat(p.ranks));
    for (size_t i = 0; i < p.outcomes.size(); ++i) {
      if (lines.size() <= i) {
        names.emplace_back(p.outcomes[i].planner->name);
        lines.push_back({names.back(), {}});
      }
      if (!p.outcomes[i].status.ok()) continue;
      const double rate = p.TokensPerSecond(p.outcomes[i]);
      lines[i].points.emplace_back(p.ranks, rate);
      rates.Add(rate);
    }
  }
  across.low = ranks.low();
  across.high = ranks.high();
  PlotAxis up{.low = std::pow(10, std::floor(std::log10(rates.low()))),
              .high = std::pow(10, std::ceil(std::log10(rates.high()))),
              .scale = PlotAxis::Scale::kLog};
  for (double rate = up.low; rate <= up.high * 1.5; rate *= 10) up.ticks.emplace_back(rate, HumanCount(rate));
  Plot plot(across, up);
  for (size_t i = 0; i < lines.size(); ++i) plot.Line(lines[i], i);
  return plot.File(absl::StrCat(c.name(), ", ", c.model().name(), ": predicted tokens per second"), "ranks", names);
}

absl::Status PlanCluster(const PlanClusterArgs& args) {
  SHOAL_ASSIGN_OR_RETURN(const config::Cluster cluster, LoadCluster(args.file, args.sets));
  if (args.lengths.empty() && cluster.lengths().path().empty())
    return absl::InvalidArgumentError(
        absl::StrCat(args.file, ": names no lengths; set lengths { path: \"FILE\" }, or add --lengths FILE"));
  std::vector<int> ranks = args.ranks;
  if (ranks.empty()) ranks.push_back(cluster.nodes() * cluster.ranks_per_node());
  std::sort(ranks.begin(), ranks.end());
  ranks.erase(std::unique(ranks.begin(), ranks.end()), ranks.end());
  if (!args.plot.empty() && ranks.size() < 2)
    return absl::InvalidArgumentError("--plot draws over ranks: give --ranks several numbers, as in --ranks 8,64,512");

  std::vector<ClusterCosts> costs;  // all before the first plan is made
  for (const int n : ranks) {
    SHOAL_ASSIGN_OR_RETURN(auto one, DeriveCosts(cluster, n));
    costs.push_back(std::move(one));
  }
  std::vector<ClusterPrediction> predictions;
  if (!args.json) std::cout << AssumedText(cluster, costs.back());
  for (size_t i = 0; i < ranks.size(); ++i) {
    SHOAL_ASSIGN_OR_RETURN(auto prediction, Predict(args, cluster, ranks[i], costs[i]));
    predictions.push_back(std::move(prediction));
    const ClusterPrediction& p = predictions.back();
    if (args.json) continue;
    std::cout << RanksText(cluster, p) << Table(p);
    if (args.explain) std::cout << TermsTable(p);
    std::cout.flush();
    if (!args.planner.empty()) SHOAL_RETURN_IF_ERROR(p.outcomes.back().status);
  }
  if (args.json) std::cout << Json(cluster, predictions).dump() << "\n";
  if (args.plot.empty()) return absl::OkStatus();
  return WriteFileAtomically(PosixFiles(), args.plot, PlotRates(cluster, predictions));
}

}  // namespace

int RunPlanCluster(const PlanClusterArgs& args) {
  const absl::Status status = PlanCluster(args);
  return status.ok() ? 0 : Fail(status);
}

}  // namespace shoal
