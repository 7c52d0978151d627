#include "launch/compression_setup.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "runtime/base/status.h"

namespace shoal {

absl::StatusOr<ExchangeCosts> ExchangeCostsFor(const config::Job& job, const CalibrationKey& key,
                                               const GradientCodecs& codecs, Communicator& world, std::string* how) {
  std::string known, of = "`shoal calibrate` keeps it";
  absl::Status failed;
  const bool named = job.runtime().has_calibration();
  if (world.rank() == 0) {
    const auto calibration = FindCalibration(named ? job.runtime().calibration() : CalibrationPath(), key,
                                             named ? CalibrationFile::kNamed : CalibrationFile::kUsual);
    if (calibration.ok() && calibration->exchange.ranks == world.size()) {
      known = ExchangeText(calibration->exchange);
    } else if (!calibration.ok() && !absl::IsNotFound(calibration.status())) {
      failed = calibration.status();
    }
  }
  SHOAL_RETURN_IF_ERROR(failed);
  SHOAL_ASSIGN_OR_RETURN(known, BroadcastString(world, known, 0, {.tag = "calibration"}));
  ExchangeCosts costs;
  const auto most = static_cast<int64_t>(job.comm().bucket_mib() * (1 << 20));
  if (!known.empty()) {
    SHOAL_ASSIGN_OR_RETURN(costs, ParseExchange(known));
    SHOAL_ASSIGN_OR_RETURN(const LinkCheck links, CheckLinks(world, costs));
    if (!links.agrees) {
      const std::string others = absl::StrFormat("of other links: 1 MiB is all-reduced in %.1f ms there, %.1f ms here",
                                                 links.said * 1e3, links.measured * 1e3);
      if (named)
        return absl::FailedPreconditionError(absl::StrCat("runtime.calibration ", job.runtime().calibration(), " is ",
                                                          others, "; run `shoal calibrate` here"));
      of = absl::StrCat("the calibration is ", others);
      known.clear();
    }
  }
  if (known.empty()) {
    SHOAL_ASSIGN_OR_RETURN(costs, MeasureExchange(world, most, key.threads));
  }
  std::vector<const Codec*> unknown;
  for (const Codec* codec : codecs.options) {
    if (!costs.codecs.contains(std::string(codec->name()))) unknown.push_back(codec);
  }
  SHOAL_RETURN_IF_ERROR(MeasureCodecs(world, unknown, costs));
  *how = absl::StrFormat("links: all-reduce %.0f us + %.3f ns a byte, %s", costs.all_reduce.latency * 1e6,
                         costs.all_reduce.per_byte * 1e9,
                         known.empty() ? absl::StrCat("measured now (", of, ")") : "as calibrated");
  return costs;
}

}  // namespace shoal
