#include "launch/calibration.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "absl/strings/str_cat.h"
#include "comm/world.h"
#include "launch/compression_setup.h"

namespace shoal {
namespace {

using testing::HasSubstr;

void Step(CalibrationFit& fit, const std::vector<Span>& ops, double outside) {
  double inside = 0;
  for (const Span& op : ops) {
    fit.Add(op);
    inside += op.seconds;
  }
  Span step;
  step.name = "step";
  step.seconds = inside + outside;
  fit.Add(step);
}

Span Op(const char* name, double flops, double bytes, double seconds) {
  Span span;
  span.name = name;
  span.flops = flops;
  span.bytes = bytes;
  span.seconds = seconds;
  return span;
}

TEST(Calibration, FindsTheRatesThatTheTimesWereMadeOf) {
  CalibrationFit fit(1);
  const auto product = [](double flops, double bytes) {
    return Op("Matmul.NT", flops, bytes, 1e-6 + 2e-12 * flops + 3e-11 * bytes);
  };
  const auto gelu = [](double bytes) { return Op("GeluFwd", 0, bytes, 2e-11 * bytes); };
  for (int run = 0; run < 2; ++run) {
    Step(fit, {Op("Matmul.NT", 1e6, 1e3, 99), Op("GeluFwd", 0, 10, 99)}, 99);  // warming up: not counted
    for (int i = 0; i < 3; ++i) {
      Step(fit, {product(1e9, 1e6), product(1e6, 4e6), product(1e4, 1e3), gelu(1e6), gelu(1e7)}, 1e-3);
    }
    fit.EndRun();
  }
  Calibration c = fit.Fit();
  EXPECT_NEAR(c.ops["Matmul.NT"].call, 1e-6, 1e-8);
  EXPECT_NEAR(c.ops["Matmul.NT"].flop, 2e-12, 2e-14);
  EXPECT_NEAR(c.ops["Matmul.NT"].byte, 3e-11, 3e-13);
  EXPECT_NEAR(c.ops["GeluFwd"].byte, 2e-11, 1e-13);
  EXPECT_NEAR(c.step_seconds, 1e-3, 1e-9);

  CostSheet cost;
  cost.ops["Matmul.NT"] = {10, 5e9, 2e7};
  cost.ops["GeluFwd"] = {4, 0, 3e6};
  c.product_peak = 100;
  const double expected = 1e-3 + 10e-6 + 1e-2 + 6e-4 + 6e-5;
  EXPECT_NEAR(*c.StepSeconds(cost, 100), expected, 1e-2 * expected);
  EXPECT_NEAR(*c.StepSeconds(cost, 50), 2 * expected, 2e-2 * expected) << "half the speed now";
  cost.ops["SiluFwd"] = {1, 0, 8};
  EXPECT_THAT(c.StepSeconds(cost, 100).status().message(), HasSubstr("has no SiluFwd"));
}

TEST(Calibration, RatesAreNeverNegative) {
  CalibrationFit fit(0);
  Step(fit, {Op("Add", 0, 1e3, 5e-6), Op("Add", 0, 1e6, 4e-6), Op("Add", 0, 2e6, 3e-6)}, 0);
  const OpRate rate = fit.Fit().ops.at("Add");
  EXPECT_GE(rate.call, 0);
  EXPECT_GE(rate.byte, 0);
  EXPECT_GT(rate.Seconds({1, 0, 1e6}), 2e-6);
}

TEST(Calibration, FileKeepsOneEntryPerKeyAndNamesWhatIsMissing) {
  const std::string path = testing::TempDir() + "/calibrations/c.json";
  std::filesystem::remove_all(testing::TempDir() + "/calibrations");
  Calibration one;
  one.key = {"node", 2, 1, config::RuntimeConfig::FP32};
  one.product_peak = 1e11;
  one.step_seconds = 0.5;
  one.ops["Add"] = {1e-6, 0, 1e-10};
  EXPECT_THAT(FindCalibration(path, one.key).status().message(),
              HasSubstr("no calibration of 2 ranks x 1 thread, FP32, on node; make one: mpirun -n 2"));
  Calibration other = one;
  other.key.threads = 4;
  ASSERT_EQ(WriteCalibration(path, one), absl::OkStatus());
  ASSERT_EQ(WriteCalibration(path, other), absl::OkStatus());
  one.step_seconds = 0.75;
  ASSERT_EQ(WriteCalibration(path, one), absl::OkStatus());
  EXPECT_EQ(ReadCalibrations(path)->size(), 2u);
  const auto found = FindCalibration(path, one.key);
  ASSERT_TRUE(found.ok()) << found.status();
  EXPECT_EQ(found->step_seconds, 0.75);
  EXPECT_EQ(found->ops.at("Add").byte, 1e-10);
  // A file that the user names and that is of another machine is refused, with both.
  CalibrationKey elsewhere = one.key;
  elsewhere.hosts = "other";
  const absl::Status refused = FindCalibration(path, elsewhere, CalibrationFile::kNamed).status();
  EXPECT_TRUE(absl::IsFailedPrecondition(refused));
  EXPECT_THAT(refused.message(), HasSubstr("is of 2 ranks x 1 thread, FP32, on node; of 2 ranks x 4 threads"));
  EXPECT_THAT(refused.message(), HasSubstr("this run is of 2 ranks x 1 thread, FP32, on other"));
  // Whoever looks for no host in particular, as plans for a cluster do elsewhere, takes what fits otherwise.
  CalibrationKey anywhere = one.key;
  anywhere.hosts = "";
  EXPECT_EQ(FindCalibration(path, anywhere, CalibrationFile::kNamed)->step_seconds, 0.75);
  anywhere.ranks = 3;
  EXPECT_THAT(FindCalibration(path, anywhere, CalibrationFile::kNamed).status().message(),
              HasSubstr("this run is of 3 ranks x 1 thread, FP32, on any host"));
  std::ofstream(path) << "[{";
  EXPECT_TRUE(absl::IsDataLoss(FindCalibration(path, one.key).status()));
}

// Four ranks on one host are not four ranks on four, which begin on the same one.
TEST(Calibration, KeysTellWhereAllRanksAre) {
  EXPECT_EQ(HostsText({"a", "a", "a"}), "a");
  EXPECT_EQ(HostsText({"a", "a", "b", "b"}), "a x 2, b x 2");
  EXPECT_EQ(HostsText({"a", "b", "a"}), "a x 1, b x 1, a x 1");
  CalibrationKey key{HostsText({"a", "b", "c", "d", "e", "f"}), 6, 1, config::RuntimeConfig::FP32};
  const std::string six = key.Text();
  EXPECT_THAT(six, HasSubstr("on a x 1, b x 1, c x 1, d x 1 and 2 more (#"));
  key.hosts = HostsText({"a", "b", "c", "d", "e", "g"});
  EXPECT_NE(key.Text(), six);
}

TEST(Calibration, CostsOfCollectivesAndCodecsAreKept) {
  ExchangeCosts costs{.ranks = 4,
                      .all_reduce = {1e-4, 2e-9},
                      .reduce_scatter = {2e-4, 1e-9},
                      .all_to_all = {3e-4, 3e-9},
                      .all_gather = {4e-4, 4e-9},
                      .cpu_per_byte = 5e-10,
                      .delay_per_cpu_second = 2.2,
                      .codecs = {{"q4", {{1e-6, 3e-10}, {2e-6, 1e-10}}}}};
  const auto read = ParseExchange(ExchangeText(costs));
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(ExchangeText(*read), ExchangeText(costs));
  EXPECT_EQ(read->codecs.at("q4").decode.per_byte, 1e-10);
  EXPECT_TRUE(absl::IsDataLoss(ParseExchange("{}").status()));
}

// A calibration of the same ranks and hosts, whose links were memory: measured again, or refused where it is named.
TEST(Calibration, OfOtherLinksIsNotTaken) {
  const std::string path = absl::StrCat(testing::TempDir(), "/other_links.json");
  std::filesystem::remove(path);
  Calibration calibration;
  calibration.key = {"node", 2, 1, config::RuntimeConfig::FP32};
  calibration.exchange = {.ranks = 2, .all_reduce = {1e-6, 1e-11}};
  ASSERT_TRUE(WriteCalibration(path, calibration).ok());
  config::Job job;
  job.mutable_runtime()->set_calibration(path);
  CommOptions options;
  options.thread_link_bytes_per_second = 100e6 / 8;
  const absl::Status status = RunThreadRanks(2, options, [&](int, Communicator& world) -> absl::Status {
    std::string how;
    return ExchangeCostsFor(job, calibration.key, GradientCodecs(), world, &how).status();
  });
  EXPECT_TRUE(absl::IsFailedPrecondition(status)) << status;
  EXPECT_THAT(status.message(), HasSubstr("is of other links: 1 MiB is all-reduced in 0.0 ms there, "));
}

// alpha + beta s of exact points; never negative.
TEST(Calibration, LinearTimesAreFitted) {
  std::vector<std::pair<double, double>> points;
  for (const double bytes : {1e4, 1e5, 1e6}) points.emplace_back(bytes, 1e-4 + 2e-9 * bytes);
  const LinearTime fit = FitLinearTime(points);
  EXPECT_NEAR(fit.latency, 1e-4, 1e-9);
  EXPECT_NEAR(fit.per_byte, 2e-9, 1e-14);
  const LinearTime falling = FitLinearTime(std::vector<std::pair<double, double>>{{1e4, 2e-3}, {1e6, 1e-3}});
  EXPECT_GE(falling.latency, 0);
  EXPECT_GE(falling.per_byte, 0);
}

}  // namespace
}  // namespace shoal
