#include "launch/commands/plan_lengths.h"

#include <algorithm>
#include <cmath>
#include <iostream>
#include <iterator>
#include <limits>
#include <nlohmann/json.hpp>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "launch/commands.h"
#include "launch/commands/plan_outcomes.h"
#include "parallel/linear_program.h"
#include "parallel/sequence_planner.h"
#include "runtime/base/file_system.h"
#include "runtime/base/rng.h"
#include "runtime/base/status.h"
#include "runtime/base/str.h"
#include "runtime/data/indexed_dataset.h"

namespace shoal {
namespace {

constexpr int kSequences = 512, kBatches = 10;
constexpr int64_t kMostLeftOut = 1000;                                  // for each sequence that is kept
constexpr absl::string_view kBoundNames[] = {"quick", "lp", "search"};  // as PlanBounds
constexpr char kQuantilesHeader[] = "probability,tokens";

struct Line {
  size_t number = 0;  // from 1
  absl::string_view text;
};

// Lines with something on them; # begins a comment.
std::vector<Line> Lines(const std::string& text) {
  std::vector<Line> lines;
  size_t number = 0;
  for (absl::string_view line : absl::StrSplit(text, '\n')) {
    ++number;
    line = absl::StripAsciiWhitespace(line.substr(0, line.find('#')));
    if (!line.empty()) lines.push_back({number, line});
  }
  return lines;
}

absl::Status Wrong(const std::string& file, size_t line, const std::string& reason) {
  return absl::DataLossError(absl::StrCat(file, ":", line, ": ", reason));
}

absl::StatusOr<int32_t> ReadTokens(const std::string& file, const Line& line, absl::string_view text) {
  int64_t tokens = 0;
  if (!absl::SimpleAtoi(text, &tokens))
    return Wrong(file, line.number, absl::StrCat("'", text.substr(0, 40), "' is no number of tokens"));
  if (tokens < 1 || tokens > std::numeric_limits<int32_t>::max())
    return Wrong(
        file, line.number,
        absl::StrCat("a length of ", tokens, " tokens; lengths are 1 to ", std::numeric_limits<int32_t>::max()));
  return static_cast<int32_t>(tokens);
}

struct Quantile {
  double probability = 0;
  int32_t tokens = 0;
};

absl::StatusOr<std::vector<Quantile>> ReadQuantiles(const std::string& file, absl::Span<const Line> lines) {
  std::vector<Quantile> rows;
  for (const Line& line : lines) {
    const std::vector<absl::string_view> fields = absl::StrSplit(line.text, ',');
    if (fields.size() != 2)
      return Wrong(file, line.number, absl::StrCat("'", line.text.substr(0, 40), "' is not 'probability,tokens'"));
    Quantile row;
    if (!absl::SimpleAtod(fields[0], &row.probability) || !(row.probability >= 0 && row.probability <= 1))
      return Wrong(file, line.number, absl::StrCat("'", fields[0].substr(0, 40), "' is no probability"));
    SHOAL_ASSIGN_OR_RETURN(row.tokens, ReadTokens(file, line, fields[1]));
    if (!rows.empty() && (row.probability <= rows.back().probability || row.tokens < rows.back().tokens))
      return Wrong(file, line.number, "quantiles ascend: probability and tokens are those of the row before, or less");
    rows.push_back(row);
  }
  if (rows.size() < 2)
    return absl::DataLossError(absl::StrCat(file, ": has ", rows.size(), " quantiles; it takes two at least"));
  return rows;
}

// The length at probability u: linear in log(length) between rows, the first and last beyond them.
int32_t Interpolate(absl::Span<const Quantile> rows, double u) {
  const auto above = std::upper_bound(rows.begin(), rows.end(), u,
                                      [](double value, const Quantile& row) { return value < row.probability; });
  if (above == rows.begin()) return rows.front().tokens;
  if (above == rows.end()) return rows.back().tokens;
  const Quantile& low = *(above - 1);
  const double share = (u - low.probability) / (above->probability - low.probability);
  const double log = std::log(low.tokens) * (1 - share) + std::log(above->tokens) * share;
  return std::max(1, static_cast<int32_t>(std::lround(std::exp(log))));
}

absl::StatusOr<LengthBatches> SampleLengths(const PlanLengthsArgs& args, absl::Span<const Quantile> rows,
                                            int64_t longest) {
  if (rows.front().tokens > longest)
    return absl::InvalidArgumentError(absl::StrCat(args.file, ": no sequence is as short as ", longest, " tokens"));
  const int batch = args.batch.value_or(kSequences), batches = args.batches.value_or(kBatches);
  LengthBatches read;
  const Rng rng({args.seed, RngPurpose::kData, NameHash("plan --lengths")});
  uint64_t draws = 0;
  for (int b = 0; b < batches; ++b) {
    auto& lengths = read.batches.emplace_back();
    while (static_cast<int>(lengths.size()) < batch) {
      const int32_t tokens = Interpolate(rows, rng.Uniform53(0, draws++));
      if (tokens > longest)
        ++read.left_out;
      else
        lengths.push_back(tokens);
      if (read.left_out > kMostLeftOut * (1 + static_cast<int64_t>(draws) - read.left_out))
        return absl::InvalidArgumentError(
            absl::StrCat(args.file, ": not one in ", kMostLeftOut, " sequences has at most ", longest, " tokens"));
    }
  }
  read.source = absl::StrFormat("%s: %d batches of %d, sampled from quantiles with seed %d", args.file, batches, batch,
                                static_cast<int64_t>(args.seed));
  return read;
}

absl::StatusOr<LengthBatches> FromDataset(const PlanLengthsArgs& args, int64_t longest) {
  SHOAL_ASSIGN_OR_RETURN(const auto dataset, TokenDataset::Open(args.file));
  const auto batch = static_cast<size_t>(args.batch.value_or(kSequences));
  const auto batches = static_cast<size_t>(args.batches.value_or(kBatches));
  LengthBatches read;
  for (int64_t d = 0; d < dataset->documents(); ++d) {
    const int64_t tokens = dataset->length(d);
    if (tokens < 1) continue;
    if (tokens > longest) {
      ++read.left_out;
      continue;
    }
    if (read.batches.empty() || read.batches.back().size() == batch) {
      if (read.batches.size() == batches) break;
      read.batches.emplace_back();
    }
    read.batches.back().push_back(static_cast<int32_t>(tokens));
  }
  if (read.batches.empty())
    return absl::DataLossError(absl::StrCat(args.file, ": has no document of 1 to ", longest, " tokens"));
  read.source = absl::StrFormat("%s: %d batches of %d of its documents, in order", args.file, read.batches.size(),
                                read.batches.front().size());
  return read;
}

absl::StatusOr<LengthBatches> FromList(const PlanLengthsArgs& args, absl::Span<const Line> lines) {
  LengthBatches read;
  const size_t batch = args.batch ? static_cast<size_t>(*args.batch) : lines.size();
  for (const Line& line : lines) {
    SHOAL_ASSIGN_OR_RETURN(const int32_t tokens, ReadTokens(args.file, line, line.text));
    if (read.batches.empty() || read.batches.back().size() == batch) {
      if (args.batches && read.batches.size() == static_cast<size_t>(*args.batches)) break;
      read.batches.emplace_back();
    }
    read.batches.back().push_back(tokens);
    read.lines.push_back(line.number);
  }
  if (read.batches.empty()) return absl::DataLossError(absl::StrCat(args.file, ": has no lengths"));
  read.source = absl::StrFormat("%s: %d batches of %d", args.file, read.batches.size(), read.batches.front().size());
  return read;
}

std::string ModelText(const PlanLengthsArgs& args, const SequenceCostModel& m) {
  std::string text = absl::StrFormat(
      "assumed: GPT-%s on %d ranks, 8 to a node (A100-40GB): constants published with FlexSP (arXiv 2412.01523), not "
      "measured on this machine\n"
      "  s tokens at degree d: (%.4g s^2 + %.5g s) ms / d, and s x %s / d over the bandwidth; %.1f ms per micro-batch\n"
      "  bandwidth of all-to-alls, 1000 MiB/s by degree:",
      args.model, args.ranks, m.quadratic * 1e3, m.linear * 1e3, HumanBytes(m.exchange_bytes_per_token), m.fixed * 1e3);
  for (size_t k = 0; k < m.bandwidth.size(); ++k)
    absl::StrAppendFormat(&text, "%s %d: %.4g", k > 0 ? "," : "", 2 << k, m.bandwidth[k] / (1000.0 * (1 << 20)));
  absl::StrAppendFormat(&text, "\n  %d tokens a rank; degrees to %d, which holds %d\n", m.tokens_per_rank,
                        m.LargestDegree(args.ranks), m.LargestDegree(args.ranks) * m.tokens_per_rank);
  if (m.longest < args.longest)
    absl::StrAppendFormat(&text, "  the limit of %d tokens is lowered to %d, which the largest degree holds\n",
                          args.longest, m.longest);
  return text;
}

// How the bounds of the table were found.
std::string BoundsText(PlanBounds kind, const LpBounds& bounds) {
  if (kind == PlanBounds::kQuick)
    return HasLinearSolver() ? "quick bounds\n" : "quick bounds; built without CLP (install coinor-libclp-dev)\n";
  return absl::StrFormat("bounds by linear programs, %.0f ms a batch; %s\n%s", 1e3 * bounds.Mean(), LinearSolverName(),
                         ErrorsText(bounds));
}

std::string Table(const std::vector<PlanOutcome>& outcomes, const LpBounds& bounds) {
  const PlanOutcome& ours = outcomes.front();
  std::string text = absl::StrFormat("%-16s %12s %9s %10s %7s %9s %14s\n", "planner", "step", "to " + ours.name,
                                     "bound", "gap", "plan", "micro-batches");
  for (const PlanOutcome& o : outcomes) {
    if (!o.status.ok()) {
      absl::StrAppend(&text, o.name, ": ", o.status.message(), "\n");
      continue;
    }
    const std::string gap = bounds.errors.empty()
                                ? absl::StrFormat("%.2f %%", 100 * o.Mean([&](size_t i) { return o.steps[i].gap(); }))
                                : "unknown";
    absl::StrAppendFormat(&text, "%-16s %10.3f s %8.3fx %8.3f s %7s %6.1f ms %14.1f\n", o.name,
                          o.Mean([&](size_t i) { return o.steps[i].seconds; }),
                          o.Mean([&](size_t i) { return o.steps[i].seconds / ours.steps[i].seconds; }),
                          o.Mean([&](size_t i) { return o.steps[i].bound(); }), gap,
                          1e3 * o.Mean([&](size_t i) { return o.plan_seconds[i]; }),
                          o.Mean([&](size_t i) { return static_cast<double>(o.steps[i].plan.micro_batches.size()); }));
  }
  return text;
}

std::string Explain(const PlanOutcome& outcome, const LpBounds& bounds, const std::vector<int32_t>& lengths,
                    const SequenceCostModel& model) {
  const PlannedStep& step = outcome.steps.front();
  std::string text = absl::StrFormat(
      "first step by %s: %s\n  %.3f s, bound %.3f s (area %.3f, longest sequence %.3f, around it %.3f%s), "
      "gap %s, hash %016x\n",
      outcome.name, step.plan.Text(), step.seconds, step.bound(), step.bounds.area, step.bounds.longest,
      step.bounds.crowding, step.bounds.lp > 0 ? absl::StrFormat(", linear programs %.3f", step.bounds.lp) : "",
      bounds.errors.contains(0) ? "unknown" : absl::StrFormat("%.2f %%", 100 * step.gap()), step.plan.Hash());
  for (size_t m = 0; m < step.plan.micro_batches.size(); ++m) {
    const auto& batch = step.plan.micro_batches[m];
    absl::StrAppendFormat(&text, "  micro-batch %d: %.3f s, %.3f s of it fixed\n", m,
                          MicroBatchSeconds(batch, lengths, model), model.fixed);
    for (const auto& group : batch.groups) {
      int64_t tokens = 0, longest = 0;
      for (const int32_t k : group.sequences) {
        tokens += lengths[static_cast<size_t>(k)];
        longest = std::max<int64_t>(longest, lengths[static_cast<size_t>(k)]);
      }
      absl::StrAppendFormat(
          &text, "    ranks %3d-%-3d %7.3f s  %4d sequences, longest %6d, %7d tokens (%.0f %% of memory)\n",
          group.first_rank, group.first_rank + group.degree - 1, GroupSeconds(group, lengths, model),
          group.sequences.size(), longest, tokens,
          100.0 * static_cast<double>(tokens) / static_cast<double>(group.degree * model.tokens_per_rank));
    }
  }
  return text;
}

nlohmann::json Json(const PlanLengthsArgs& args, const LengthBatches& read, const SequenceCostModel& model,
                    const std::vector<PlanOutcome>& outcomes, PlanBounds kind, const LpBounds& bounds) {
  return {{"model", args.model},
          {"bound", std::string(kBoundNames[static_cast<size_t>(kind)])},
          {"solver", LinearSolverName()},
          {"bound_seconds", bounds.seconds},
          {"bound_errors", bounds.errors.size()},
          {"ranks", args.ranks},
          {"batches", read.batches.size()},
          {"tokens_per_rank", model.tokens_per_rank},
          {"longest", model.longest},
          {"planners", OutcomesJson(outcomes, bounds)}};
}

// Without a solver: quick where nothing is asked for, else an error that names what to install.
absl::StatusOr<PlanBounds> BoundsAskedFor(const std::string& name) {
  if (name.empty()) return HasLinearSolver() ? PlanBounds::kLp : PlanBounds::kQuick;
  const auto* at = std::find(std::begin(kBoundNames), std::end(kBoundNames), name);
  if (at == std::end(kBoundNames))
    return absl::InvalidArgumentError(absl::StrCat("--bound is '", name, "'; it is quick, lp or search"));
  const auto bounds = static_cast<PlanBounds>(at - std::begin(kBoundNames));
  if (bounds != PlanBounds::kQuick && !HasLinearSolver())
    return Annotate(MakeLinearSolver({}).status(), absl::StrCat("--bound ", name));
  return bounds;
}

absl::Status PlanLengths(const PlanLengthsArgs& args) {
  if (args.longest < 1)
    return absl::InvalidArgumentError(absl::StrCat("--max-tokens is ", args.longest, "; it is at least 1"));
  SHOAL_ASSIGN_OR_RETURN(const PlanBounds kind, BoundsAskedFor(args.bound));
  SHOAL_ASSIGN_OR_RETURN(SequenceCostModel model, PublishedCostModel(args.model, args.ranks, args.longest));
  SHOAL_ASSIGN_OR_RETURN(const LengthBatches read, ReadLengths(args, model.longest));
  SHOAL_ASSIGN_OR_RETURN(auto outcomes,
                         ComparePlanners({args.planner, args.degree, kind}, args.file, read, args.ranks, model));
  LpBounds bounds;
  if (kind != PlanBounds::kQuick) {
    SHOAL_ASSIGN_OR_RETURN(bounds, AddLpBounds(read, args.ranks, model, outcomes));
  }
  const PlanOutcome& best = kind == PlanBounds::kSearch ? outcomes[1] : outcomes.front();
  const PlanOutcome& shown = args.planner.empty() || best.planner->name == args.planner ? best : outcomes.back();
  if (args.json) {
    std::cout << Json(args, read, model, outcomes, kind, bounds).dump() << "\n";
    return absl::OkStatus();
  }
  std::cout << ModelText(args, model) << LengthsText(read) << BoundsText(kind, bounds) << Table(outcomes, bounds);
  if (!args.planner.empty()) SHOAL_RETURN_IF_ERROR(shown.status);
  if (args.explain) std::cout << Explain(shown, bounds, read.batches.front(), model);
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<LengthBatches> ReadLengths(const PlanLengthsArgs& args, int64_t longest) {
  FileSystem& files = PosixFiles();
  if (absl::EndsWith(args.file, ".idx") || absl::EndsWith(args.file, ".bin") || files.Exists(args.file + ".idx"))
    return FromDataset(args, longest);
  SHOAL_ASSIGN_OR_RETURN(const std::string text, files.Read(args.file));
  const std::vector<Line> lines = Lines(text);
  if (lines.empty() || lines.front().text != kQuantilesHeader) return FromList(args, lines);
  SHOAL_ASSIGN_OR_RETURN(const auto rows, ReadQuantiles(args.file, absl::MakeConstSpan(lines).subspan(1)));
  return SampleLengths(args, rows, longest);
}

int RunPlanLengths(const PlanLengthsArgs& args) {
  const absl::Status status = PlanLengths(args);
  return status.ok() ? 0 : Fail(status);
}

}  // namespace shoal
