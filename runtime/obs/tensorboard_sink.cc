#include "runtime/obs/tensorboard_sink.h"

#include <unistd.h>

#include <array>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <ctime>

#include "absl/strings/str_cat.h"
#include "runtime/base/file_system.h"
#include "runtime/base/status.h"

namespace shoal {
namespace {

constexpr std::array<uint32_t, 256> CrcTable() {
  std::array<uint32_t, 256> table{};
  for (uint32_t i = 0; i < 256; ++i) {
    uint32_t c = i;
    for (int k = 0; k < 8; ++k) c = (c & 1) != 0 ? 0x82f63b78u ^ (c >> 1) : c >> 1;
    table[i] = c;
  }
  return table;
}

// Protobuf wire format of the few fields that TensorBoard reads (tensorflow/core/util/event.proto).
void Varint(std::string& to, uint64_t v) {
  for (; v >= 128; v >>= 7) to += static_cast<char>((v & 127) | 128);
  to += static_cast<char>(v);
}
template <class T>
void Fixed(std::string& to, int field, T value) {
  Varint(to, static_cast<uint64_t>(field) << 3 | (sizeof(T) == 8 ? 1 : 5));
  to.append(reinterpret_cast<const char*>(&value), sizeof(T));
}
void Bytes(std::string& to, int field, absl::string_view value) {
  Varint(to, static_cast<uint64_t>(field) << 3 | 2);
  Varint(to, value.size());
  to.append(value.data(), value.size());
}

std::string EventRecord(double wall_time, int64_t step) {
  std::string event;
  Fixed(event, 1, wall_time);
  Varint(event, 2 << 3);
  Varint(event, static_cast<uint64_t>(step));
  return event;
}

double WallTime() {
  timespec t;
  clock_gettime(CLOCK_REALTIME, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

}  // namespace

uint32_t Crc32c(absl::string_view data) {
  static constexpr std::array<uint32_t, 256> kTable = CrcTable();
  uint32_t c = ~0u;
  for (const char byte : data) c = kTable[(c ^ static_cast<uint8_t>(byte)) & 255] ^ (c >> 8);
  return ~c;
}

uint32_t MaskedCrc32c(absl::string_view data) {
  const uint32_t c = Crc32c(data);
  return (c >> 15 | c << 17) + 0xa282ead8u;
}

absl::StatusOr<std::unique_ptr<TensorBoardSink>> TensorBoardSink::Open(const std::string& folder) {
  SHOAL_RETURN_IF_ERROR(PosixFiles().MakeDirs(folder));
  char host[256] = {};
  ::gethostname(host, sizeof(host) - 1);
  const std::string path =
      absl::StrCat(folder, "/events.out.tfevents.", static_cast<int64_t>(WallTime()), ".", host, ".", ::getpid());
  std::FILE* file = std::fopen(path.c_str(), "wbe");
  if (file == nullptr) return EnvironmentError(absl::StrCat(path, ": ", std::strerror(errno)));
  auto sink = std::unique_ptr<TensorBoardSink>(new TensorBoardSink(path, file));
  std::string event = EventRecord(WallTime(), 0);
  Bytes(event, 3, "brain.Event:2");
  SHOAL_RETURN_IF_ERROR(sink->Append(event));
  return sink;
}

TensorBoardSink::~TensorBoardSink() { std::fclose(file_); }

absl::Status TensorBoardSink::Append(const std::string& event) {
  const uint64_t length = event.size();
  const absl::string_view header(reinterpret_cast<const char*>(&length), sizeof(length));
  std::string record(header);
  for (const uint32_t crc : {MaskedCrc32c(header), MaskedCrc32c(event)}) {
    if (record.size() > sizeof(length)) record += event;
    record.append(reinterpret_cast<const char*>(&crc), sizeof(crc));
  }
  if (std::fwrite(record.data(), 1, record.size(), file_) == record.size() && std::fflush(file_) == 0)
    return absl::OkStatus();
  return EnvironmentError(absl::StrCat(path_, ": ", std::strerror(errno)));
}

absl::Status TensorBoardSink::Write(const StepRecord& r) {
  std::string summary;
  const auto scalar = [&](const char* tag, double value) {
    std::string one;
    Bytes(one, 1, tag);
    Fixed(one, 2, static_cast<float>(value));
    Bytes(summary, 1, one);
  };
  scalar("loss/train", r.loss);
  if (std::isfinite(r.eval_loss)) scalar("loss/held_out", r.eval_loss);
  if (std::isfinite(r.accuracy)) scalar("accuracy/train", r.accuracy);
  if (std::isfinite(r.eval_accuracy)) scalar("accuracy/held_out", r.eval_accuracy);
  scalar("optimizer/learning_rate", r.learning_rate);
  scalar("optimizer/grad_norm", r.grad_norm);
  if (r.batch > 0) scalar("batch/samples", static_cast<double>(r.samples));
  if (!std::isnan(r.noise_scale)) scalar("batch/noise_scale", r.noise_scale);
  scalar("time/step_seconds", r.seconds);
  scalar("time/comm_exposed_seconds", r.comm_exposed_seconds);
  const bool tokens = r.unit == StepRecord::Unit::kTokens;
  if (r.seconds > 0) {
    scalar(tokens ? "throughput/tokens_per_second" : "throughput/images_per_second",
           static_cast<double>(r.units) / r.seconds);
  }
  scalar("memory/bytes", static_cast<double>(r.memory_bytes));
  std::string event = EventRecord(WallTime(), r.step);
  Bytes(event, 5, summary);
  return Append(event);
}

absl::Status WritePrometheus(const std::string& path, const std::string& job, const StepRecord& r) {
  std::string text;
  const auto gauge = [&](const char* name, double value, const char* help) {
    absl::StrAppend(&text, "# HELP shoal_", name, " ", help, "\n# TYPE shoal_", name, " gauge\nshoal_", name, "{job=\"",
                    job, "\"} ", std::isfinite(value) ? absl::StrCat(value) : "NaN", "\n");
  };
  gauge("step", static_cast<double>(r.step), "optimizer steps done");
  gauge("loss", r.loss, "training loss of the newest step");
  gauge("grad_norm", r.grad_norm, "global gradient norm before clipping");
  gauge("learning_rate", r.learning_rate, "scheduled learning rate");
  if (r.batch > 0) gauge("batch_samples", static_cast<double>(r.samples), "samples of the newest step, all ranks");
  gauge("step_seconds", r.seconds, "wall time of the newest step");
  const bool tokens = r.unit == StepRecord::Unit::kTokens;
  gauge(tokens ? "tokens_per_second" : "images_per_second",
        r.seconds > 0 ? static_cast<double>(r.units) / r.seconds : 0,
        tokens ? "predictions per second, all ranks" : "images per second, all ranks");
  gauge("comm_exposed_seconds", r.comm_exposed_seconds, "communication not hidden behind computation");
  gauge("memory_bytes", static_cast<double>(r.memory_bytes), "resident high-water of rank 0");
  gauge("eta_seconds", r.eta_seconds, "time left");
  const std::string partial = path + ".tmp";
  std::FILE* file = std::fopen(partial.c_str(), "we");
  if (file == nullptr) return EnvironmentError(absl::StrCat(partial, ": ", std::strerror(errno)));
  const bool written = std::fwrite(text.data(), 1, text.size(), file) == text.size();
  if (std::fclose(file) != 0 || !written) return EnvironmentError(absl::StrCat(partial, ": ", std::strerror(errno)));
  return PosixFiles().Rename(partial, path);
}

}  // namespace shoal
