// The registry of codecs: a new one is a line in MakeCodec and, where planners choose among its options, a family.
#include <cmath>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "comm/codec/codecs.h"
#include "comm/codec/kernels.h"

namespace shoal {
namespace {

constexpr absl::string_view kRounded[] = {"bf16"};
constexpr absl::string_view kNearest[] = {"q2", "q3", "q4", "q5", "q6", "q7", "q8"};
constexpr absl::string_view kStochastic[] = {"q2_stochastic", "q3_stochastic", "q4_stochastic", "q5_stochastic",
                                             "q6_stochastic", "q7_stochastic", "q8_stochastic"};
constexpr absl::string_view kTopK[] = {"topk_0.001", "topk_0.003", "topk_0.01", "topk_0.03", "topk_0.1"};
constexpr absl::string_view kEcsq[] = {"ecsq_1",   "ecsq_1.5", "ecsq_2", "ecsq_2.5", "ecsq_3",
                                       "ecsq_3.5", "ecsq_4",   "ecsq_5", "ecsq_6"};
constexpr double kLeastEcsqBits = 0.5, kMostEcsqBits = 8;
constexpr int kMostFactorRank = 256;
constexpr char kChoices[] =
    "fp32, bf16, q2..q8, q2_stochastic..q8_stochastic, ecsq_<bits>, as ecsq_2.5, topk_<density>, as "
    "topk_0.01, powersgd_<rank>, as powersgd_4";

}  // namespace

absl::Span<const CodecFamily> CodecFamilies() {
  static constexpr CodecFamily kFamilies[] = {{"round", kRounded, Bf16Errors},
                                              {"quantise", kNearest, NearestErrors},
                                              {"quantise_stochastic", kStochastic, StochasticErrors},
                                              {"entropy_coded", kEcsq, EcsqErrors},
                                              {"topk", kTopK, TopKErrors}};
  return kFamilies;
}

absl::Span<const int> FactorRanks() {
  static constexpr int kRanks[] = {1, 2, 4, 8, 16, 32};
  return kRanks;
}

absl::StatusOr<std::unique_ptr<Codec>> MakeCodec(absl::string_view name, int64_t block) {
  if (block < 8 || block % 8 != 0 || block > kMostElements)
    return absl::InvalidArgumentError(
        absl::StrCat("blocks of ", block, " elements; a block is a multiple of 8, at most ", kMostElements));
  if (name == "fp32") return MakeFp32Codec();
  if (name == "bf16") return MakeBf16Codec();
  for (const bool stochastic : {false, true}) {
    for (int bits = kLeastBits; bits <= kMostBits; ++bits) {
      if (name == (stochastic ? kStochastic : kNearest)[bits - kLeastBits])
        return MakeQuantiser(bits, stochastic ? Rounding::kStochastic : Rounding::kNearest, block);
    }
  }
  constexpr absl::string_view kEcsqPrefix = "ecsq_";
  double bits = 0;
  if (absl::StartsWith(name, kEcsqPrefix) && absl::SimpleAtod(name.substr(kEcsqPrefix.size()), &bits)) {
    if (bits >= kLeastEcsqBits && bits <= kMostEcsqBits) return MakeEcsq(name, bits);
    return absl::InvalidArgumentError(absl::StrCat("'", name, "' has ", bits, " bits an element; they are from ",
                                                   kLeastEcsqBits, " to ", kMostEcsqBits));
  }
  constexpr absl::string_view kTopKPrefix = "topk_";
  double density = 0;
  if (absl::StartsWith(name, kTopKPrefix) && absl::SimpleAtod(name.substr(kTopKPrefix.size()), &density)) {
    if (density > 0 && density <= 1) return MakeTopK(name, density);
    return absl::InvalidArgumentError(
        absl::StrCat("'", name, "' keeps a share of ", density, "; it lies above 0 and is at most 1"));
  }
  constexpr absl::string_view kFactoredPrefix = "powersgd_";
  int rank = 0;
  if (absl::StartsWith(name, kFactoredPrefix) && absl::SimpleAtoi(name.substr(kFactoredPrefix.size()), &rank)) {
    if (rank >= 1 && rank <= kMostFactorRank) return MakeFactored(name, rank);
    return absl::InvalidArgumentError(
        absl::StrCat("'", name, "' is of rank ", rank, "; it is from 1 to ", kMostFactorRank));
  }
  return absl::InvalidArgumentError(absl::StrCat("no codec is called '", name, "'; there are ", kChoices));
}

}  // namespace shoal
