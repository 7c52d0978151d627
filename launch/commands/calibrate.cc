// calibrate: short training runs of small models, from whose op times the step time of any other is predicted.
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <iostream>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "comm/world.h"
#include "launch/calibration.h"
#include "launch/commands.h"
#include "launch/config_loader.h"
#include "launch/predict.h"
#include "launch/rank_setup.h"
#include "launch/resolve.h"
#include "launch/run_dir.h"
#include "launch/trainer.h"
#include "runtime/base/status.h"
#include "runtime/data/indexed_dataset.h"
#include "runtime/ops/dispatch.h"

namespace shoal {
namespace {

constexpr int kVocabulary = 8192, kWarmup = 1, kSteps = 4, kLongest = 2048;

// Small and wide, short and long sequences, few tokens (weights stream from memory) and many; both styles. `tokens` are
// those of one rank, so that ranks do not run out of them. Deep ones scale their residual branches (JobFor).
struct TrialModel {
  const char* transformer;
  int tokens, sequences;
};
constexpr TrialModel kModels[] = {
    {"preset: GPT2 layers: 3 width: 256 heads: 4 vocabulary: 1024", 128, 4},
    {"preset: LLAMA layers: 2 width: 512 heads: 8 vocabulary: 512", 512, 2},
    {"preset: GPT2 layers: 1 width: 768 heads: 12 vocabulary: 8192", 1024, 1},
    {"preset: LLAMA layers: 2 width: 256 heads: 4 kv_heads: 2 vocabulary: 512 qk_norm: true", 2048, 1},
    {"preset: GPT2 layers: 3 width: 1024 heads: 16 vocabulary: 8192", 64, 2},
    {"preset: LLAMA layers: 3 width: 320 heads: 5 vocabulary: 256", 256, 6},
};

absl::StatusOr<config::Job> JobFor(const TrialModel& model, const std::string& data, int ranks,
                                   config::RuntimeConfig::Compute compute, int threads) {
  LoadedJob loaded;
  ConfigErrors errors;
  ParseTextConfig(
      absl::StrFormat("model { transformer { %s } } data { dataset { path: \"%s\" } max_tokens: %d held_out: 0 } "
                      "global_batch { sequences: %d } duration { steps: %d } "
                      "optim { clip_norm: 1 width_rule { preset: COMPLETE_P base_width: 256 base_depth: 1 } } "
                      "runtime { threads_per_rank: %d }",
                      model.transformer, data, model.tokens, model.sequences * ranks, kWarmup + kSteps, threads),
      "calibrate", loaded.job, errors, loaded.places);
  SHOAL_RETURN_IF_ERROR(errors.Result());
  loaded.job.mutable_runtime()->set_compute(compute);
  return ResolveJob(loaded, ranks);
}

absl::Status WriteData(const std::string& prefix) {
  SHOAL_ASSIGN_OR_RETURN(const auto writer, DatasetWriter::Create(PosixFiles(), prefix, kVocabulary));
  std::vector<int32_t> document(kLongest + 1);
  for (int d = 0; d < 64; ++d) {
    for (size_t i = 0; i < document.size(); ++i)
      document[i] = static_cast<int32_t>((i * 7919 + static_cast<size_t>(d)) % 256);
    SHOAL_RETURN_IF_ERROR(writer->AddDocument(document));
  }
  return writer->Finish();
}

// Of the collectives between these ranks, and of every codec there is.
absl::StatusOr<ExchangeCosts> MeasureCosts(Communicator& world, int threads) {
  SHOAL_ASSIGN_OR_RETURN(ExchangeCosts costs, MeasureExchange(world, 4 << 20, threads));
  std::vector<std::unique_ptr<Codec>> codecs;
  std::vector<const Codec*> all;
  for (const CodecFamily& family : CodecFamilies()) {
    for (const absl::string_view name : family.codecs) {
      SHOAL_ASSIGN_OR_RETURN(codecs.emplace_back(), MakeCodec(name));
      if (!codecs.back()->plain()) all.push_back(codecs.back().get());
    }
  }
  SHOAL_RETURN_IF_ERROR(MeasureCodecs(world, all, costs));
  return costs;
}

std::string ExchangeLines(const ExchangeCosts& costs) {
  std::string text;
  if (costs.ranks > 1) {
    for (const auto& [name, time] : {std::pair{"all-reduce", costs.all_reduce},
                                     {"reduce-scatter", costs.reduce_scatter},
                                     {"all-to-all", costs.all_to_all},
                                     {"all-gather", costs.all_gather}}) {
      absl::StrAppendFormat(&text, "%-86s %7.0f us + %.3f ns a byte\n",
                            absl::StrCat(name, " of f32 between ", costs.ranks, " ranks"), time.latency * 1e6,
                            time.per_byte * 1e9);
    }
  }
  for (const auto& [name, codec] : costs.codecs) {
    absl::StrAppendFormat(&text, "%-86s %5.2f GB/s", absl::StrCat("codec ", name, ": encodes f32 at"),
                          1e-9 / codec.encode.per_byte);
    if (codec.decode.per_byte > 0)
      absl::StrAppendFormat(&text, ", decodes it at %.2f GB/s", 1e-9 / codec.decode.per_byte);
    text += "\n";
  }
  return text;
}

absl::Status Calibrate(const CalibrateArgs& args, Communicator& world) {
  config::RuntimeConfig::Compute compute = config::RuntimeConfig::AUTO;
  config::RuntimeConfig::Compute_Parse(args.compute, &compute);
  config::Job asked;
  asked.mutable_runtime()->set_compute(compute);
  if (args.threads > 0) asked.mutable_runtime()->set_threads_per_rank(args.threads);
  compute = SettleCompute(asked, HostPrefersBf16() ? WeakestHost::kHasBf16 : WeakestHost::kHasNone).compute;
  std::string warning;
  SHOAL_ASSIGN_OR_RETURN(RankContext rank, MakeRankContext(world, asked, &warning));
  const bool first = world.rank() == 0;
  if (first && !warning.empty()) std::cout << warning << "\n";

  const std::string folder =
      absl::StrCat(std::filesystem::temp_directory_path().string(), "/shoal-calibrate-", ::getpid(), "-", world.rank());
  std::filesystem::create_directories(folder);
  const auto run = [&]() -> absl::Status {
    SHOAL_RETURN_IF_ERROR(WriteData(folder + "/data"));
    const DType dtype = compute == config::RuntimeConfig::BF16 ? DType::kBF16 : DType::kF32;
    CalibrationFit fit(kWarmup);
    double peak = MeasureProductPeak(*rank.pool, dtype);
    struct Measured {
      config::Job job;
      double seconds;
    };
    std::vector<Measured> measured;
    for (const TrialModel& model : kModels) {
      SHOAL_ASSIGN_OR_RETURN(const config::Job job,
                             JobFor(model, folder + "/data", world.size(), compute, rank.pool->threads()));
      std::vector<double> seconds;
      TrainerOptions options{.job = job, .run_dir = "", .console = TrainerOptions::Console::kQuiet};
      options.step_seconds = &seconds;
      if (first) options.spans = &fit;
      SHOAL_RETURN_IF_ERROR(Train(rank, world, options).status());
      fit.EndRun();
      seconds.erase(seconds.begin(), seconds.begin() + kWarmup);
      std::sort(seconds.begin(), seconds.end());
      measured.push_back({job, seconds[seconds.size() / 2]});
      peak = std::max(peak, MeasureProductPeak(*rank.pool, dtype));
    }
    SHOAL_ASSIGN_OR_RETURN(const ExchangeCosts exchange, MeasureCosts(world, rank.pool->threads()));
    SHOAL_ASSIGN_OR_RETURN(const std::string hosts, HostsOf(world));
    if (!first) return absl::OkStatus();
    Calibration calibration = fit.Fit();
    calibration.exchange = exchange;
    calibration.key = {hosts, world.size(), rank.pool->threads(), compute};
    calibration.product_peak = peak;
    SHOAL_RETURN_IF_ERROR(WriteCalibration(args.out, calibration));
    std::cout << absl::StrFormat("%-86s %10s %10s\n",
                                 "model it was fitted to (tokens of a sequence x sequences of a rank)", "measured",
                                 "predicted");
    for (size_t i = 0; i < measured.size(); ++i) {
      const auto batches = FullBatch(measured[i].job, world.size());
      SHOAL_ASSIGN_OR_RETURN(const double predicted,
                             calibration.StepSeconds(StepCost(measured[i].job, world.size(), batches), peak));
      std::cout << absl::StrFormat(
          "%-86s %7.1f ms %7.1f ms\n",
          absl::StrCat(kModels[i].transformer, ", ", kModels[i].tokens, " x ", kModels[i].sequences),
          measured[i].seconds * 1e3, predicted * 1e3);
    }
    std::cout << ExchangeLines(exchange);
    std::cout << absl::StrFormat("products run at %.1f GFLOP/s a rank\n%s holds the calibration of %s\n", peak / 1e9,
                                 args.out, calibration.key.Text());
    return absl::OkStatus();
  };
  const absl::Status status = run();
  std::filesystem::remove_all(folder);
  return status;
}

}  // namespace

int RunCalibrate(CalibrateArgs args) {
  if (args.out.empty()) args.out = CalibrationPath();
  if (args.local_ranks > 0 || !UnderMpiLauncher()) {
    const absl::Status status = RunThreadRanks(std::max(1, args.local_ranks), {},
                                               [&](int, Communicator& world) { return Calibrate(args, world); });
    return status.ok() ? 0 : Fail(status);
  }
  auto world = MpiWorld({});
  if (!world.ok()) AbortJob(Fail(world.status()));
  const absl::Status status = Calibrate(args, **world);
  if (!status.ok()) AbortJob(Fail(status));
  world->reset();
  FinalizeMpi();
  return 0;
}

}  // namespace shoal
