#include "runtime/obs/sequence_report.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <nlohmann/json.hpp>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/types/span.h"
#include "runtime/obs/run_metrics.h"
#include "runtime/obs/svg_plot.h"

namespace shoal {
namespace {

using nlohmann::json;

constexpr double kGanttWidth = 900, kGanttLeft = 120, kGanttTop = 14, kGanttGap = 10;
constexpr size_t kSteps = 4;

// Whether all that is drawn of a plan is there.
bool IsPlan(const json& plan) {
  const auto lengths = plan.at("lengths").get<std::vector<int64_t>>();
  for (const json& micro : plan.at("micro_batches")) {
    for (const json& group : micro) {
      if (group.at("degree").get<int>() < 1 || group.at("first_rank").get<int>() < 0) return false;
      for (const auto s : group.at("sequences").get<std::vector<size_t>>()) {
        if (s >= lengths.size()) return false;
      }
    }
  }
  for (const char* seconds : {"predicted", "measured"}) plan.at(seconds).get<std::vector<double>>();
  for (const char* number : {"step", "predicted_step", "measured_step", "gap"}) plan.value(number, 0.0);
  plan.value("groups", std::string());
  return true;
}

int Ranks(const json& plan) {
  int ranks = 1;
  for (const json& micro : plan.at("micro_batches")) {
    for (const json& group : micro)
      ranks = std::max(ranks, group.at("first_rank").get<int>() + group.at("degree").get<int>());
  }
  return ranks;
}

double Sum(const json& seconds) {
  double sum = 0;
  for (const json& s : seconds) sum += s.get<double>();
  return sum;
}

// One step's micro-batches as long as `seconds` says, from the top `y`.
std::string Lane(const json& plan, const json& seconds, const std::string& label, double y, double rank_height,
                 double per_second) {
  const json &micros = plan.at("micro_batches"), &lengths = plan.at("lengths");
  std::string svg = absl::StrFormat("<text x=\"%g\" y=\"%.1f\" font-size=\"10\" text-anchor=\"end\">%s</text>",
                                    kGanttLeft - 8, y + 10, MarkupEscape(label));
  double x = kGanttLeft;
  for (size_t m = 0; m < micros.size() && m < seconds.size(); ++m) {
    const double width = seconds[m].get<double>() * per_second;
    for (const json& group : micros[m]) {
      const int degree = group.at("degree").get<int>(), first = group.at("first_rank").get<int>();
      int64_t tokens = 0, longest = 0;
      for (const json& s : group.at("sequences")) {
        const int64_t length = lengths.at(s.get<size_t>()).get<int64_t>();
        tokens += length;
        longest = std::max(longest, length);
      }
      const double shade = 0.15 + 0.12 * std::countr_zero(static_cast<unsigned>(degree));
      absl::StrAppendFormat(&svg,
                            "<rect x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\" fill=\"currentColor\" "
                            "fill-opacity=\"%.2f\"><title>micro-batch %d, %.1f ms: ranks %d to %d, degree %d, %d "
                            "sequences, %d tokens, the longest %d</title></rect>",
                            x, y + rank_height * first, std::max(0.5, width - 1), rank_height * degree - 1,
                            std::min(shade, 0.95), m + 1, 1e3 * seconds[m].get<double>(), first, first + degree - 1,
                            degree, group.at("sequences").size(), tokens, longest);
    }
    x += width;
  }
  return svg;
}

}  // namespace

std::string SequenceMap(const std::string& lines) {
  const JsonLines read = ReadJsonLines(lines, IsPlan);
  const std::string note = read.Note("plans/sequences.jsonl");
  const absl::Span<const json> plans = absl::MakeConstSpan(read.whole).last(std::min(kSteps, read.whole.size()));
  if (plans.empty()) return note;
  int ranks = 1;
  double longest = 0;
  for (const json& plan : plans) {
    ranks = std::max(ranks, Ranks(plan));
    longest = std::max({longest, Sum(plan.at("predicted")), Sum(plan.at("measured"))});
  }
  if (longest <= 0) return note;
  const double rank_height = std::clamp(96.0 / ranks, 1.5, 12.0), per_second = (kGanttWidth - kGanttLeft) / longest;
  double y = kGanttTop;
  std::string svg, captions;
  for (const json& plan : plans) {
    const auto step = plan.value("step", int64_t{0});
    svg += Lane(plan, plan.at("predicted"), absl::StrCat("step ", step, " predicted"), y, rank_height, per_second);
    y += rank_height * ranks + 2;
    svg += Lane(plan, plan.at("measured"), "measured", y, rank_height, per_second);
    y += rank_height * ranks + kGanttGap;
    absl::StrAppendFormat(&captions,
                          "<li>step %d: %s, step %.0f ms predicted, %.0f ms measured, gap at most %.1f %%</li>", step,
                          MarkupEscape(plan.value("groups", "")), 1e3 * plan.value("predicted_step", 0.0),
                          1e3 * plan.value("measured_step", 0.0), 100 * plan.value("gap", 0.0));
  }
  absl::StrAppendFormat(&svg,
                        "<text x=\"%g\" y=\"%.1f\" font-size=\"10\">0</text><text x=\"%g\" y=\"%.1f\" font-size=\"10\" "
                        "text-anchor=\"end\">%.0f ms</text>",
                        kGanttLeft, y, kGanttWidth, y, 1e3 * longest);
  return absl::StrFormat(
      "<h2>Sequence groups over ranks and time</h2><p>Rows are ranks, darker groups have more of them.</p><svg "
      "viewBox=\"0 0 %g %g\" role=\"img\" aria-label=\"groups of the last steps\">%s</svg><ul>%s</ul>%s\n",
      kGanttWidth, y + 4, svg, captions, note);
}

}  // namespace shoal
