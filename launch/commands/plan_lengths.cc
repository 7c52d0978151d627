#include "launch/commands/plan_lengths.h"

#include <algorithm>
#include <cmath>
#include <iostream>
#include <limits>
#include <nlohmann/json.hpp>
#include <numeric>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "launch/commands.h"
#include "parallel/sequence_planner.h"
#include "runtime/base/file_system.h"
#include "runtime/base/rng.h"
#include "runtime/base/status.h"
#include "runtime/base/str.h"
#include "runtime/data/indexed_dataset.h"
#include "runtime/obs/span.h"

namespace shoal {
namespace {

constexpr int kBatch = 512, kBatches = 10;
constexpr int64_t kMostLeftOut = 1000;  // for each sequence that is kept
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

absl::StatusOr<LengthBatches> Sample(const PlanLengthsArgs& args, absl::Span<const Quantile> rows, int64_t longest) {
  if (rows.front().tokens > longest)
    return absl::InvalidArgumentError(absl::StrCat(args.file, ": no sequence is as short as ", longest, " tokens"));
  const int batch = args.batch.value_or(kBatch), batches = args.batches.value_or(kBatches);
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
  const auto batch = static_cast<size_t>(args.batch.value_or(kBatch));
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

// What one planner made of every batch.
struct Outcome {
  const SequencePlanner* planner = nullptr;
  std::vector<PlannedStep> steps;
  std::vector<double> plan_seconds;
  absl::Status status;  // of the first batch that it does not apply to

  template <typename Value>
  double Mean(const Value& value) const {
    double sum = 0;
    for (size_t i = 0; i < steps.size(); ++i) sum += value(i);
    return steps.empty() ? 0 : sum / static_cast<double>(steps.size());
  }
};

Outcome PlanAll(const SequencePlanner& planner, const LengthBatches& read, int ranks, const SequenceCostModel& model) {
  Outcome outcome{&planner, {}, {}, {}};
  for (const auto& lengths : read.batches) {
    const double start = SteadySeconds();
    auto step = PlanSequences({.lengths = lengths, .ranks = ranks, .model = &model}, planner.name);
    if (!step.ok()) {
      outcome.status = step.status();
      return outcome;
    }
    outcome.plan_seconds.push_back(SteadySeconds() - start);
    outcome.steps.push_back(*std::move(step));
  }
  return outcome;
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

std::string LengthsText(const LengthBatches& read) {
  double tokens = 0, sequences = 0;
  int32_t longest = 0;
  for (const auto& batch : read.batches) {
    tokens += std::accumulate(batch.begin(), batch.end(), 0.0);
    sequences += static_cast<double>(batch.size());
    longest = std::max(longest, *std::max_element(batch.begin(), batch.end()));
  }
  std::string text = absl::StrFormat("%s; mean %.0f tokens, longest %d", read.source, tokens / sequences, longest);
  if (read.left_out > 0) absl::StrAppendFormat(&text, "; %d longer ones are left out", read.left_out);
  return text + "\n";
}

std::string Table(const std::vector<Outcome>& outcomes) {
  const Outcome& ours = outcomes.front();
  std::string text = absl::StrFormat("%-16s %12s %9s %10s %7s %9s %14s\n", "planner", "step",
                                     "to " + std::string(ours.planner->name), "bound", "gap", "plan", "micro-batches");
  for (const Outcome& o : outcomes) {
    if (!o.status.ok()) {
      absl::StrAppend(&text, o.planner->name, ": ", o.status.message(), "\n");
      continue;
    }
    absl::StrAppendFormat(&text, "%-16s %10.3f s %8.3fx %8.3f s %5.1f %% %6.1f ms %14.1f\n", o.planner->name,
                          o.Mean([&](size_t i) { return o.steps[i].seconds; }),
                          o.Mean([&](size_t i) { return o.steps[i].seconds / ours.steps[i].seconds; }),
                          o.Mean([&](size_t i) { return o.steps[i].bound(); }),
                          100 * o.Mean([&](size_t i) { return o.steps[i].gap(); }),
                          1e3 * o.Mean([&](size_t i) { return o.plan_seconds[i]; }),
                          o.Mean([&](size_t i) { return static_cast<double>(o.steps[i].plan.micro_batches.size()); }));
  }
  return text;
}

std::string Explain(const Outcome& outcome, const std::vector<int32_t>& lengths, const SequenceCostModel& model) {
  const PlannedStep& step = outcome.steps.front();
  std::string text = absl::StrFormat(
      "first step by %s: %s\n  %.3f s, bound %.3f s (area %.3f, longest sequence %.3f, around it %.3f), "
      "gap %.1f %%, hash %016x\n",
      outcome.planner->name, step.plan.Text(), step.seconds, step.bound(), step.bounds.area, step.bounds.longest,
      step.bounds.crowding, 100 * step.gap(), step.plan.Hash());
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
                    const std::vector<Outcome>& outcomes) {
  nlohmann::json report = {{"model", args.model},
                           {"ranks", args.ranks},
                           {"batches", read.batches.size()},
                           {"tokens_per_rank", model.tokens_per_rank},
                           {"longest", model.longest},
                           {"planners", nlohmann::json::object()}};
  for (const Outcome& o : outcomes) {
    nlohmann::json row;
    if (!o.status.ok()) row["does_not_apply"] = std::string(o.status.message());
    for (size_t i = 0; i < o.steps.size(); ++i) {
      row["seconds"].push_back(o.steps[i].seconds);
      row["bound"].push_back(o.steps[i].bound());
      row["gap"].push_back(o.steps[i].gap());
      row["area_gap"].push_back(1 - o.steps[i].bounds.area / o.steps[i].seconds);  // with LB1 alone
      row["plan_seconds"].push_back(o.plan_seconds[i]);
      row["micro_batches"].push_back(o.steps[i].plan.micro_batches.size());
      row["plan"].push_back(o.steps[i].plan.Text());
      row["hash"].push_back(absl::StrFormat("%016x", o.steps[i].plan.Hash()));
    }
    report["planners"][o.planner->name] = row;
  }
  return report;
}

// The error of the first batch that does not pass, with the line of the sequence where a file has lines.
absl::Status CheckBatches(const PlanLengthsArgs& args, const LengthBatches& read, const SequenceCostModel& model) {
  size_t before = 0;
  for (const auto& lengths : read.batches) {
    const absl::Status all = CheckLengths(lengths, args.ranks, model);
    if (!all.ok()) {
      for (size_t k = 0; k < lengths.size() && !read.lines.empty(); ++k) {
        const absl::Status one = CheckLengths(absl::MakeConstSpan(&lengths[k], 1), args.ranks, model);
        if (!one.ok()) return Annotate(all, absl::StrCat(args.file, ":", read.lines[before + k]));
      }
      return Annotate(all, args.file);
    }
    before += lengths.size();
  }
  return absl::OkStatus();
}

absl::Status PlanLengths(const PlanLengthsArgs& args) {
  if (args.longest < 1)
    return absl::InvalidArgumentError(absl::StrCat("--max-tokens is ", args.longest, "; it is at least 1"));
  SHOAL_ASSIGN_OR_RETURN(SequenceCostModel model, PublishedCostModel(args.model, args.ranks, args.longest));
  const auto table = SequencePlanners();
  const auto chosen = std::find_if(table.begin(), table.end(), [&](const auto& p) { return p.name == args.planner; });
  if (!args.planner.empty() && chosen == table.end())  // the error that names them
    return PlanSequences({.model = &model}, args.planner).status();
  SHOAL_ASSIGN_OR_RETURN(const LengthBatches read, ReadLengths(args, model.longest));
  SHOAL_RETURN_IF_ERROR(CheckBatches(args, read, model));

  std::vector<Outcome> outcomes;  // the default planner first: ratios are to it
  for (const SequencePlanner& planner : table) {
    if (args.planner.empty() || &planner == table.data() || planner.name == args.planner)
      outcomes.push_back(PlanAll(planner, read, args.ranks, model));
  }
  SHOAL_RETURN_IF_ERROR(outcomes.front().status);
  const Outcome& shown = args.planner.empty() ? outcomes.front() : outcomes.back();
  if (args.json) {
    std::cout << Json(args, read, model, outcomes).dump() << "\n";
    return absl::OkStatus();
  }
  std::cout << ModelText(args, model) << LengthsText(read) << Table(outcomes);
  if (!args.planner.empty()) SHOAL_RETURN_IF_ERROR(shown.status);
  if (args.explain) std::cout << Explain(shown, read.batches.front(), model);
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
  return Sample(args, rows, longest);
}

int RunPlanLengths(const PlanLengthsArgs& args) {
  const absl::Status status = PlanLengths(args);
  return status.ok() ? 0 : Fail(status);
}

}  // namespace shoal
