// The registry of codecs: a new one is a row of CodecFamilies.
#include <algorithm>
#include <cmath>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "comm/codec/codecs.h"
#include "comm/codec/kernels.h"

namespace shoal {
namespace {

using MadeCodec = absl::StatusOr<std::unique_ptr<Codec>>;

constexpr absl::string_view kExact[] = {"fp32"};
constexpr absl::string_view kRounded[] = {"bf16"};
constexpr absl::string_view kNearest[] = {"q2", "q3", "q4", "q5", "q6", "q7", "q8"};
constexpr absl::string_view kStochastic[] = {"q2_stochastic", "q3_stochastic", "q4_stochastic", "q5_stochastic",
                                             "q6_stochastic", "q7_stochastic", "q8_stochastic"};
constexpr absl::string_view kEcsq[] = {"ecsq_1",   "ecsq_1.5", "ecsq_2", "ecsq_2.5", "ecsq_3",
                                       "ecsq_3.5", "ecsq_4",   "ecsq_5", "ecsq_6"};
constexpr absl::string_view kTopK[] = {"topk_0.001", "topk_0.003", "topk_0.01", "topk_0.03", "topk_0.1"};
constexpr absl::string_view kFactored[] = {"powersgd_1", "powersgd_2",  "powersgd_4",
                                           "powersgd_8", "powersgd_16", "powersgd_32"};
constexpr double kLeastEcsqBits = 0.5, kMostEcsqBits = 8;
constexpr int kMostFactorRank = 256;

MadeCodec MakeNearestOf(const CodecName& name) {
  return MakeQuantiser(name.text[1] - '0', Rounding::kNearest, name.block);
}
MadeCodec MakeStochasticOf(const CodecName& name) {
  return MakeQuantiser(name.text[1] - '0', Rounding::kStochastic, name.block);
}
MadeCodec MakeEcsqOf(const CodecName& name) {
  if (name.number >= kLeastEcsqBits && name.number <= kMostEcsqBits) return MakeEcsq(name.text, name.number);
  return absl::InvalidArgumentError(absl::StrCat("'", name.text, "' has ", name.number,
                                                 " bits an element; they are from ", kLeastEcsqBits, " to ",
                                                 kMostEcsqBits));
}
MadeCodec MakeTopKOf(const CodecName& name) {
  if (name.number > 0 && name.number <= 1) return MakeTopK(name.text, name.number);
  return absl::InvalidArgumentError(
      absl::StrCat("'", name.text, "' keeps a share of ", name.number, "; it lies above 0 and is at most 1"));
}
MadeCodec MakeFactoredOf(const CodecName& name) {
  if (name.number >= 1 && name.number <= kMostFactorRank && name.number == std::floor(name.number))
    return MakeFactored(name.text, static_cast<int>(name.number));
  return absl::InvalidArgumentError(
      absl::StrCat("'", name.text, "' is of rank ", name.number, "; it is a whole number from 1 to ", kMostFactorRank));
}

// "topk_<density>, as topk_0.01".
std::string ChoiceText(const CodecFamily& family) {
  return absl::StrCat(family.spelling, absl::StrContains(family.spelling, '<')
                                           ? absl::StrCat(", as ", family.codecs[family.codecs.size() / 2])
                                           : "");
}

}  // namespace

absl::Span<const CodecFamily> CodecFamilies() {
  static constexpr CodecFamily kFamilies[] = {
      {"exact", "fp32", kExact, [](const CodecName&) -> MadeCodec { return MakeFp32Codec(); }},
      {"round", "bf16", kRounded, [](const CodecName&) -> MadeCodec { return MakeBf16Codec(); }, Bf16Errors},
      {"quantise", "q2..q8", kNearest, MakeNearestOf, NearestErrors},
      {"quantise_stochastic", "q2_stochastic..q8_stochastic", kStochastic, MakeStochasticOf, StochasticErrors},
      {"entropy_coded", "ecsq_<bits>", kEcsq, MakeEcsqOf, EcsqErrors},
      {"topk", "topk_<density>", kTopK, MakeTopKOf, TopKErrors},
      {"factors", "powersgd_<rank>", kFactored, MakeFactoredOf}};
  return kFamilies;
}

absl::StatusOr<std::unique_ptr<Codec>> MakeCodec(absl::string_view name, int64_t block) {
  if (block < 8 || block % 8 != 0 || block > kMostElements)
    return absl::InvalidArgumentError(
        absl::StrCat("blocks of ", block, " elements; a block is a multiple of 8, at most ", kMostElements));
  for (const CodecFamily& family : CodecFamilies()) {
    const size_t open = family.spelling.find('<');
    double number = 0;
    const bool numbered = open != absl::string_view::npos && absl::StartsWith(name, family.spelling.substr(0, open)) &&
                          absl::SimpleAtod(name.substr(open), &number);
    if (numbered || std::find(family.codecs.begin(), family.codecs.end(), name) != family.codecs.end())
      return family.make({name, number, block});
  }
  return absl::InvalidArgumentError(absl::StrCat(
      "no codec is called '", name, "'; there are ",
      absl::StrJoin(CodecFamilies(), ", ",
                    [](std::string* out, const CodecFamily& family) { out->append(ChoiceText(family)); })));
}

}  // namespace shoal
