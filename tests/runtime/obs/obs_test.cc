#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>
#include <vector>

#include "runtime/base/file_system.h"
#include "runtime/base/memory.h"
#include "runtime/base/status.h"
#include "runtime/obs/metrics_log.h"
#include "runtime/obs/report.h"
#include "runtime/obs/sequence_report.h"
#include "runtime/obs/step_record.h"
#include "runtime/obs/svg_plot.h"
#include "runtime/obs/tensorboard_sink.h"
#include "runtime/obs/trace.h"

namespace shoal {
namespace {

StepRecord Example() {
  StepRecord r;
  r.step = 120, r.total_steps = 2000, r.loss = 3.2145, r.grad_norm = 0.84, r.learning_rate = 3e-4, r.seconds = 0.812,
  r.units = 34185;
  r.forward_seconds = 0.2517, r.backward_seconds = 0.3816, r.comm_exposed_seconds = 0.0731, r.optimizer_seconds = 0.065,
  r.data_seconds = 0.0081;
  r.memory_bytes = int64_t{1932735283}, r.memory_predicted_bytes = int64_t{2576980378}, r.mfu = 0.38,
  r.eta_seconds = 1500;
  return r;
}

TEST(StepLine, IsTheContracts) {
  EXPECT_EQ(StepLine(Example()),
            "step 120/2000 | loss 3.2145 | gnorm 0.84 | lr 3.0e-04 | 42.1k tok/s | 812 ms (fwd 31 bwd 47 comm-exposed "
            "9 opt 8 data 1 %) | mem 1.8/2.4 GiB | mfu 38% | ETA 25m");
  StepRecord r = Example();
  r.skip_reason = "not finite";
  r.slowest_rank = "rank 3", r.slowest_share = 0.8, r.straggler = StepRecord::Straggler::kYes;
  EXPECT_THAT(StepLine(r), testing::HasSubstr("slowest rank 3 (80% of steps) | SKIPPED: not finite"));
}

TEST(StepLine, AGrowingBatchIsShownWithTheNoiseWhereItWasMeasured) {
  StepRecord r = Example();
  EXPECT_FALSE(nlohmann::json::parse(StepJson(r)).contains("batch")) << "it is constant";
  r.batch = 8192, r.samples = 96;
  EXPECT_THAT(StepLine(r), testing::HasSubstr(" | batch 8192 | mfu"));
  EXPECT_EQ(nlohmann::json::parse(StepJson(r))["samples"], 96);
  EXPECT_FALSE(nlohmann::json::parse(StepJson(r)).contains("noise_scale"));
  r.noise_scale = 12.5;
  EXPECT_THAT(StepLine(r), testing::HasSubstr(" | batch 8192 (noise scale 12.5 samples) | mfu"));
  EXPECT_EQ(nlohmann::json::parse(StepJson(r))["noise_scale"], 12.5);
  r.noise_scale = std::numeric_limits<double>::infinity();  // the gradient is not seen in the noise
  EXPECT_TRUE(nlohmann::json::parse(StepJson(r))["noise_scale"].is_null());
}

TEST(MetricsLog, ResumeDropsLaterStepsAndATornLine) {
  const std::string path = testing::TempDir() + "/metrics.jsonl";
  std::filesystem::remove(path);
  StepRecord r = Example();
  {
    auto log = *MetricsLog::Open(path, 0);
    for (r.step = 1; r.step <= 5; ++r.step) ASSERT_TRUE(log->Write(r).ok());
  }
  std::ofstream(path, std::ios::app) << "{\"step\": 6, \"lo";
  r.step = 4;
  r.loss = std::nan("");
  {
    auto log = *MetricsLog::Open(path, 3);
    ASSERT_TRUE(log->Write(r).ok());
  }
  const std::string text = *PosixFiles().Read(path);
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 4);
  EXPECT_THAT(text, testing::HasSubstr("\"loss\":null"));
  EXPECT_THAT(text, testing::Not(testing::HasSubstr("\"step\":5")));
}

TEST(Report, IsOnePageThatEscapesWhatItShows) {
  const std::string run = testing::TempDir() + "/report_run";
  std::filesystem::create_directories(run);
  std::ofstream metrics(run + "/metrics.jsonl");
  for (int i = 1; i <= 50; ++i) {
    StepRecord r = Example();
    r.step = i;
    r.loss = 5.0 / i;
    r.lengths = {i, 3 * i};
    if (i % 10 == 0) r.eval_loss = 5.1 / i;
    metrics << StepJson(r) << "\n";
  }
  metrics.close();
  std::ofstream(run + "/sample.txt") << "a <b> & c";
  ASSERT_TRUE(WriteReport(run, run + "/report.html").ok());
  const std::string html = *PosixFiles().Read(run + "/report.html");
  EXPECT_THAT(html, testing::HasSubstr("a &lt;b&gt; &amp; c"));
  for (const char* title :
       {"Loss", "Tokens per second", "Share of the step", "Learning rate", "Memory of rank 0", "Sequences by length"})
    EXPECT_THAT(html, testing::HasSubstr(title));
  EXPECT_THAT(html, testing::Not(testing::HasSubstr("http"))) << "nothing is fetched";
  EXPECT_FALSE(WriteReport(testing::TempDir() + "/nowhere", testing::TempDir() + "/nowhere.html").ok());
}

TEST(Report, DrawsGradientCodesLayerByStep) {
  const std::string run = testing::TempDir() + "/report_codes";
  std::filesystem::create_directories(run + "/plans");
  std::ofstream metrics(run + "/metrics.jsonl");
  for (int i = 1; i <= 50; ++i) {
    StepRecord r = Example();
    r.step = i;
    r.codec_error = 0.1;
    r.reduced_bytes = 2 << 20;
    r.reduce_exposed_seconds = 0.012;
    r.reduce_predicted_seconds = 0.010;
    r.compression_plan = i / 20;
    metrics << StepJson(r) << "\n";
  }
  metrics.close();
  const std::string rest =
      R"("layers":["a.weight","b<c>"],"bytes":1048576,"plain_bytes":8388608,"uniform_bytes":2097152,"relative_error":0.1,"relative_budget":0.2})";
  std::ofstream(run + "/plans/compression.jsonl")
      << R"({"first_step":20,"codecs":["q4","q2"],"bits_per_element":[4.06,2.06],)" << rest << "\n"
      << R"({"first_step":40,"codecs":["q3","bf16"],"bits_per_element":[3.06,16],)" << rest << "\n"
      << R"({"first_step":60,"codecs":["q3","q3"],)" << rest << "\n{torn";
  ASSERT_TRUE(WriteReport(run, run + "/report.html").ok());
  const std::string html = *PosixFiles().Read(run + "/report.html");
  for (const char* part : {"<title>a.weight: q4, 4.06 bits, from step 20</title>",
                           "<title>b&lt;c&gt;: bf16, 16.00 bits, from step 40</title>", "2.0 MiB", "12.0 ms / 10.0 ms",
                           "Exposed reduction of gradients", "2 damaged lines of plans/compression.jsonl left out."})
    EXPECT_THAT(html, testing::HasSubstr(part));
}

TEST(Report, DrawsSequenceGroupsOverRanksAndTime) {
  const std::string line =
      R"({"step":7,"groups":"<2,1> <1>","lengths":[30,9,5,8],"micro_batches":[[{"degree":2,"first_rank":0,"sequences":[0]},)"
      R"({"degree":1,"first_rank":2,"sequences":[1,2]}],[{"degree":1,"first_rank":0,"sequences":[3]}]],"predicted":[0.02,0.01],)"
      R"("measured":[0.03,0.01],"predicted_step":0.035,"measured_step":0.042,"gap":0.05})";
  const std::string html = SequenceMap("{torn\n" + line + "\n");
  for (const char* part : {"step 7 predicted", "micro-batch 1, 20.0 ms: ranks 0 to 1, degree 2, 1 sequences, 30 tokens",
                           "micro-batch 1, 30.0 ms: ranks 2 to 2, degree 1, 2 sequences, 14 tokens, the longest 9",
                           "step 7: &lt;2,1&gt; &lt;1&gt;, step 35 ms predicted, 42 ms measured, gap at most 5.0 %"})
    EXPECT_THAT(html, testing::HasSubstr(part));
  EXPECT_EQ(SequenceMap(""), "");
  EXPECT_THAT(html, testing::HasSubstr("1 damaged line of plans/sequences.jsonl left out."));
  const auto with = [&](const std::string& from, const std::string& to) {
    std::string damaged = line;
    damaged.replace(damaged.find(from), from.size(), to);
    return SequenceMap(damaged + "\n" + damaged);
  };
  for (const auto& [from, to] :
       {std::pair("\"measured\":", "\"measure\":"), std::pair("[0.03,", "[null,"),
        std::pair("\"step\":7", "\"step\":\"7\""), std::pair("[30,9,", "[30,"),
        std::pair("\"degree\":2", "\"degree\":0"), std::pair("\"micro_batches\":[", "\"m\":[")})
    EXPECT_EQ(with(from, to), "<p>2 damaged lines of plans/sequences.jsonl left out.</p>") << to;
}

TEST(Report, OverlaysRunsAndSaysWhichHaveNoMetrics) {
  const std::string folder = testing::TempDir() + "/overlay";
  std::filesystem::remove_all(folder);
  for (const char* name : {"a", "b", "empty"}) std::filesystem::create_directories(folder + "/" + name);
  for (const char* name : {"a", "b"}) {
    std::ofstream metrics(folder + "/" + name + "/metrics.jsonl");
    for (int i = 1; i <= 20; ++i) {
      StepRecord r = Example();
      r.step = i;
      r.loss = 5.0 / i;
      if (i == 20) r.eval_loss = name[0] == 'a' ? 0.5125 : 0.75;
      metrics << StepJson(r) << "\n";
    }
  }
  std::ofstream(folder + "/b/state") << "stopped at step 20\n";
  std::vector<std::string> without;
  ASSERT_TRUE(WriteOverlay({folder + "/a", folder + "/b", folder + "/empty"}, folder + "/report.html", &without).ok());
  EXPECT_THAT(without, testing::ElementsAre(folder + "/empty"));
  const std::string html = *PosixFiles().Read(folder + "/report.html");
  for (const char* text : {"Training loss", "Held-out loss", "Tokens per second", "Learning rate", "</svg>a</td>",
                           "<td>0.5125</td>", "stopped at step 20", "empty has no metrics"})
    EXPECT_THAT(html, testing::HasSubstr(text));
  EXPECT_THAT(html, testing::Not(testing::HasSubstr("http"))) << "nothing is fetched";
  EXPECT_EQ(ExitCodeFor(WriteOverlay({folder + "/empty", folder + "/c"}, folder + "/none.html", &without)),
            ExitCode::kData);
}

// The vertical places of a plot's circles, in order.
std::vector<double> CircleHeights(const std::string& svg) {
  std::vector<double> heights;
  for (size_t at = svg.find("cy=\""); at != std::string::npos; at = svg.find("cy=\"", at + 1))
    heights.push_back(std::stod(svg.substr(at + 4)));
  return heights;
}

TEST(Plot, LogarithmicAxesSpaceEqualRatiosEqually) {
  Plot log({.low = 1, .high = 100}, {.low = 1, .high = 100, .scale = PlotAxis::Scale::kLog});
  log.Line({"s", {{1, 1}, {10, 10}, {100, 100}}}, 0);
  const auto at = CircleHeights(log.File("a < b", "x", {"s"}));
  ASSERT_EQ(at.size(), 3u);
  EXPECT_NEAR(at[0] - at[1], at[1] - at[2], 0.11);
  EXPECT_THAT(log.File("a < b", "x", {"s"}), testing::HasSubstr("a &lt; b"));
  Plot flat({.low = 3, .high = 3}, {.low = 0, .high = 0});
  flat.Line({"s", {{3, 0}}}, 0);
  EXPECT_THAT(flat.File("t", "x", {"s"}), testing::Not(testing::HasSubstr("nan")));
}

TEST(TensorBoard, ChecksumsAndFraming) {
  EXPECT_EQ(Crc32c("123456789"), 0xe3069283u);
  const std::string folder = testing::TempDir() + "/tensorboard";
  std::filesystem::remove_all(folder);
  {
    auto sink = *TensorBoardSink::Open(folder);
    ASSERT_TRUE(sink->Write(Example()).ok());
  }
  const std::string file = *PosixFiles().Read(std::filesystem::directory_iterator(folder)->path().string());
  size_t at = 0;
  std::vector<std::string> events;
  while (at < file.size()) {
    uint64_t length = 0;
    uint32_t crc = 0;
    std::memcpy(&length, &file[at], 8);
    std::memcpy(&crc, &file[at + 8], 4);
    EXPECT_EQ(crc, MaskedCrc32c(absl::string_view(&file[at], 8)));
    events.push_back(file.substr(at + 12, length));
    std::memcpy(&crc, &file[at + 12 + length], 4);
    EXPECT_EQ(crc, MaskedCrc32c(events.back()));
    at += 16 + length;
  }
  ASSERT_EQ(events.size(), 2u);
  EXPECT_THAT(events[0], testing::HasSubstr("brain.Event:2"));
  EXPECT_THAT(events[1], testing::HasSubstr("loss/train"));
}

TEST(Prometheus, IsTextThatParses) {
  const std::string path = testing::TempDir() + "/metrics.prom";
  ASSERT_TRUE(WritePrometheus(path, "j", Example()).ok());
  EXPECT_THAT(*PosixFiles().Read(path), testing::HasSubstr("# TYPE shoal_loss gauge\nshoal_loss{job=\"j\"} 3.2145\n"));
}

TEST(Trace, RanksShareOneClockAndOneFile) {
  const std::string run = testing::TempDir() + "/trace_run";
  std::filesystem::remove_all(run);
  for (int rank = 0; rank < 2; ++rank) {
    Trace trace(rank, "node \"1\"", rank == 1 ? 2.5 : 0);
    Span op;
    op.name = "GeluFwd";
    op.start = rank == 1 ? 7.5 : 10;  // the same moment by rank 0's clock
    op.seconds = 0.25;
    op.flops = 3;
    op.bytes = 4;
    trace.Add(op);
    op.track = Span::Track::kComm;
    op.name = "all_reduce";
    op.note = "grad bucket 0";
    trace.Add(op);
    ASSERT_EQ(trace.Write(PosixFiles(), run), absl::OkStatus());
  }
  ASSERT_EQ(JoinTraces(PosixFiles(), run, 2), absl::OkStatus());
  const auto events = nlohmann::json::parse(PosixFiles().Read(run + "/trace/all.json").value());
  int ops = 0, begins = 0, ends = 0;
  std::set<std::string> processes;
  for (const auto& e : events) {
    const std::string phase = e["ph"];
    if (phase == "M" && e["name"] == "process_name") processes.insert(e["args"]["name"]);
    if (phase == "M") continue;
    EXPECT_NEAR(e["ts"].get<double>(), phase == "e" ? 10.25e6 : 10e6, 1e-2);
    if (phase == "X") {
      ++ops;
      EXPECT_EQ(e["name"], "GeluFwd");
      EXPECT_NEAR(e["dur"].get<double>(), 0.25e6, 1e-2);
      EXPECT_EQ(e["args"]["bytes"], 4);
    }
    begins += phase == "b" && e["name"] == "grad bucket 0" && e["args"]["op"] == "all_reduce";
    ends += phase == "e";
  }
  EXPECT_EQ(ops, 2);
  EXPECT_EQ(begins, 2);
  EXPECT_EQ(ends, 2);
  EXPECT_THAT(processes, testing::ElementsAre("rank 0 (node \"1\")", "rank 1 (node \"1\")"));
  EXPECT_FALSE(JoinTraces(PosixFiles(), run, 3).ok()) << "a rank's file is missing";
}

TEST(Memory, SomeIsAvailable) { EXPECT_GT(AvailableBytes(), 1 << 20); }

TEST(Memory, ResidentBytesAreCounted) { EXPECT_GT(ResidentBytes(), 1 << 20); }

TEST(Memory, PeakSeesWhatIsGoneAgain) {
  constexpr int64_t kBytes = 64 << 20;
  const int64_t before = ResidentBytes();
  // A mapping of its own: the address sanitizer's allocator keeps what is freed.
  void* block = ::mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(block, MAP_FAILED);
  std::memset(block, 'x', kBytes);
  ASSERT_EQ(::munmap(block, kBytes), 0);
  EXPECT_LT(ResidentBytes(), before + kBytes / 2);
  EXPECT_GT(PeakResidentBytes(), before + kBytes / 2);
}

}  // namespace
}  // namespace shoal
