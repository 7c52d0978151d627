#include "parallel/sequence_plan_text.h"

#include <bit>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "runtime/base/rng.h"
#include "runtime/base/status.h"

namespace shoal {
namespace {

using nlohmann::json;

constexpr absl::string_view kMagic = "shoalseq";
constexpr uint32_t kVersion = 1;
enum class Kind : uint32_t { kPlan = 0, kError = 1 };

class Writer {
 public:
  void Put32(uint32_t value) { Put(value, 4); }
  void Put64(uint64_t value) { Put(value, 8); }
  void Put(double value) { Put64(std::bit_cast<uint64_t>(value)); }
  void Put(absl::string_view text) {
    Put32(static_cast<uint32_t>(text.size()));
    absl::StrAppend(&bytes_, text);
  }
  void Header(Kind kind, int64_t step, uint64_t batch_hash) {
    absl::StrAppend(&bytes_, kMagic);
    Put32(kVersion);
    Put32(static_cast<uint32_t>(kind));
    Put64(static_cast<uint64_t>(step));
    Put64(batch_hash);
  }
  uint64_t Hash() const { return NameHash(bytes_); }
  std::string Finish() {
    Put64(Hash());
    return std::move(bytes_);
  }

 private:
  void Put(uint64_t value, int size) {
    for (int i = 0; i < size; ++i) bytes_.push_back(static_cast<char>(value >> (8 * i) & 0xff));
  }
  std::string bytes_;
};

// Reads zeros once there is nothing left; `whole` says whether that was so.
class Reader {
 public:
  explicit Reader(absl::string_view bytes) : rest_(bytes) {}
  uint32_t Get32() { return static_cast<uint32_t>(Get(4)); }
  uint64_t Get64() { return Get(8); }
  double GetDouble() { return std::bit_cast<double>(Get64()); }
  int32_t GetInt() { return static_cast<int32_t>(Get32()); }
  std::string GetText() {
    const size_t size = GetCount(1);
    std::string text(rest_.substr(0, size));
    rest_.remove_prefix(size);
    return text;
  }
  // A count of items of at least `bytes` each: never more than there can be.
  size_t GetCount(size_t bytes) {
    const size_t count = Get32();
    if (count <= rest_.size() / bytes) return count;
    whole_ = false;
    return 0;
  }
  bool whole() const { return whole_; }
  bool at_end() const { return rest_.empty(); }

 private:
  uint64_t Get(size_t size) {
    if (rest_.size() < size) {
      whole_ = false;
      rest_ = {};
      return 0;
    }
    uint64_t value = 0;
    for (size_t i = 0; i < size; ++i) value |= uint64_t{static_cast<unsigned char>(rest_[i])} << (8 * i);
    rest_.remove_prefix(size);
    return value;
  }
  absl::string_view rest_;
  bool whole_ = true;
};

StepPlan ReadPlan(Reader& reader) {
  StepPlan plan;
  plan.micro_batches.resize(reader.GetCount(4));
  for (auto& batch : plan.micro_batches) {
    batch.groups.resize(reader.GetCount(12));
    for (auto& group : batch.groups) {
      group.degree = reader.GetInt();
      group.first_rank = reader.GetInt();
      group.sequences.resize(reader.GetCount(4));
      for (int32_t& k : group.sequences) k = reader.GetInt();
    }
  }
  return plan;
}

std::string Hex(uint64_t value) { return absl::StrCat("0x", absl::Hex(value, absl::kZeroPad16)); }

absl::StatusOr<uint64_t> FromHex(const std::string& text) {
  uint64_t value = 0;
  if (!absl::SimpleHexAtoi(text, &value)) return absl::DataLossError(absl::StrCat("'", text, "' is no hash"));
  return value;
}

json ToJson(const StepPlan& plan) {
  json batches = json::array();
  for (const auto& batch : plan.micro_batches) {
    json groups = json::array();
    for (const auto& group : batch.groups)
      groups.push_back({{"degree", group.degree}, {"first_rank", group.first_rank}, {"sequences", group.sequences}});
    batches.push_back(std::move(groups));
  }
  return batches;
}

StepPlan PlanOf(const json& batches) {
  StepPlan plan;
  for (const json& groups : batches) {
    auto& batch = plan.micro_batches.emplace_back();
    for (const json& group : groups)
      batch.groups.push_back({group.at("degree").get<int>(), group.at("first_rank").get<int>(),
                              group.at("sequences").get<std::vector<int32_t>>()});
  }
  return plan;
}

}  // namespace

uint64_t BatchHash(int64_t first_position, absl::Span<const int32_t> lengths) {
  Writer writer;
  writer.Put64(static_cast<uint64_t>(first_position));
  for (const int32_t length : lengths) writer.Put32(static_cast<uint32_t>(length));
  return writer.Hash();
}

std::string PlanBytes(const SequencePlanRecord& record) {
  Writer writer;
  writer.Header(Kind::kPlan, record.step, record.batch_hash);
  writer.Put64(static_cast<uint64_t>(record.first_position));
  for (const std::string* text : {&record.planner, &record.tier, &record.source}) writer.Put(*text);
  writer.Put32(static_cast<uint32_t>(record.plan.micro_batches.size()));
  for (const auto& batch : record.plan.micro_batches) {
    writer.Put32(static_cast<uint32_t>(batch.groups.size()));
    for (const auto& group : batch.groups) {
      writer.Put32(static_cast<uint32_t>(group.degree));
      writer.Put32(static_cast<uint32_t>(group.first_rank));
      writer.Put32(static_cast<uint32_t>(group.sequences.size()));
      for (const int32_t k : group.sequences) writer.Put32(static_cast<uint32_t>(k));
    }
  }
  for (const double number :
       {record.planned_seconds, record.bound, record.plan_ms, record.exposed_ms, record.predicted_step})
    writer.Put(number);
  writer.Put32(static_cast<uint32_t>(record.predicted.size()));
  for (const double seconds : record.predicted) writer.Put(seconds);
  return writer.Finish();
}

std::string PlanErrorBytes(const absl::Status& error, int64_t step, uint64_t batch_hash) {
  Writer writer;
  writer.Header(Kind::kError, step, batch_hash);
  writer.Put32(static_cast<uint32_t>(error.raw_code()));
  writer.Put(error.message());
  return writer.Finish();
}

absl::StatusOr<SequencePlanRecord> PlanFromBytes(absl::string_view bytes, int64_t step, uint64_t batch_hash) {
  constexpr size_t kHash = 8, kLeast = kMagic.size() + 4 + 4 + 8 + 8 + kHash;
  const auto damaged = [](const auto&... what) {
    return absl::DataLossError(absl::StrCat("the sequence plan is damaged: ", what...));
  };
  if (bytes.size() < kLeast) return damaged("it has ", bytes.size(), " bytes, and no plan has less than ", kLeast);
  if (bytes.substr(0, kMagic.size()) != kMagic) return damaged("it does not begin like one");
  const absl::string_view hashed = bytes.substr(0, bytes.size() - kHash);
  const uint64_t says = Reader(bytes.substr(hashed.size())).Get64(), is = NameHash(hashed);
  if (says != is) return damaged("its ", bytes.size(), " bytes hash to ", Hex(is), " and it says ", Hex(says));

  Reader reader(hashed.substr(kMagic.size()));
  if (const uint32_t version = reader.Get32(); version != kVersion)
    return absl::FailedPreconditionError(absl::StrCat("the sequence plan is of version ", version,
                                                      ", this program's is ", kVersion,
                                                      "; all ranks have to run one build"));
  const auto kind = static_cast<Kind>(reader.Get32());
  SequencePlanRecord record;
  record.step = static_cast<int64_t>(reader.Get64());
  if (record.step != step)
    return absl::FailedPreconditionError(
        absl::StrCat("the sequence plan is stale: of step ", record.step, ", and this is step ", step));
  record.batch_hash = reader.Get64();
  if (record.batch_hash != batch_hash)
    return absl::FailedPreconditionError(absl::StrCat("the sequence plan is of another batch: of hash ",
                                                      Hex(record.batch_hash), ", and this rank's batch of step ", step,
                                                      " has ", Hex(batch_hash)));
  if (kind == Kind::kError) {
    const auto code = static_cast<absl::StatusCode>(reader.Get32());
    const std::string message = reader.GetText();
    if (!reader.whole() || code == absl::StatusCode::kOk) return damaged("it is an error without its message");
    return absl::Status(code, message);
  }
  record.first_position = static_cast<int64_t>(reader.Get64());
  for (std::string* text : {&record.planner, &record.tier, &record.source}) *text = reader.GetText();
  record.plan = ReadPlan(reader);
  for (double* number :
       {&record.planned_seconds, &record.bound, &record.plan_ms, &record.exposed_ms, &record.predicted_step})
    *number = reader.GetDouble();
  record.predicted.resize(reader.GetCount(8));
  for (double& seconds : record.predicted) seconds = reader.GetDouble();
  if (!reader.whole() || !reader.at_end() || record.predicted.size() != record.plan.micro_batches.size())
    return damaged("its counts are not those of its bytes");
  return record;
}

std::string PlanJson(const SequencePlanRecord& record) {
  json j = {{"step", record.step},
            {"first_position", record.first_position},
            {"batch_hash", Hex(record.batch_hash)},
            {"planner", record.planner},
            {"tier", record.tier},
            {"source", record.source},
            {"groups", record.Text()},
            {"micro_batches", ToJson(record.plan)},
            {"plan_hash", Hex(record.plan.Hash())},
            {"planned_seconds", record.planned_seconds},
            {"bound", record.bound},
            {"gap", record.gap()},
            {"plan_ms", record.plan_ms},
            {"exposed_ms", record.exposed_ms},
            {"predicted", record.predicted},
            {"predicted_step", record.predicted_step},
            {"lengths", record.lengths}};
  if (record.measured_step >= 0) {
    j["measured"] = record.measured;
    j["measured_step"] = record.measured_step;
  }
  return j.dump();
}

absl::StatusOr<SequencePlanRecord> PlanFromJson(absl::string_view line) {
  const json j = json::parse(line.begin(), line.end(), nullptr, false);
  if (!j.is_object()) return absl::DataLossError("a line of sequence plans is no JSON object");
  SequencePlanRecord record;
  uint64_t plan_hash = 0;
  try {
    record.step = j.at("step").get<int64_t>();
    record.first_position = j.at("first_position").get<int64_t>();
    SHOAL_ASSIGN_OR_RETURN(record.batch_hash, FromHex(j.at("batch_hash").get<std::string>()));
    record.planner = j.at("planner").get<std::string>();
    record.tier = j.at("tier").get<std::string>();
    record.source = j.at("source").get<std::string>();
    record.plan = PlanOf(j.at("micro_batches"));
    SHOAL_ASSIGN_OR_RETURN(plan_hash, FromHex(j.at("plan_hash").get<std::string>()));
    record.planned_seconds = j.at("planned_seconds").get<double>();
    record.bound = j.at("bound").get<double>();
    record.plan_ms = j.at("plan_ms").get<double>();
    record.exposed_ms = j.at("exposed_ms").get<double>();
    record.predicted = j.at("predicted").get<std::vector<double>>();
    record.predicted_step = j.at("predicted_step").get<double>();
    record.lengths = j.at("lengths").get<std::vector<int32_t>>();
    if (j.contains("measured_step")) {
      record.measured = j.at("measured").get<std::vector<double>>();
      record.measured_step = j.at("measured_step").get<double>();
    }
  } catch (const json::exception& e) {
    return absl::DataLossError(absl::StrCat("a line of sequence plans is damaged: ", e.what()));
  }
  if (record.plan.Hash() != plan_hash)
    return absl::DataLossError(absl::StrCat("the line of step ", record.step, " has a plan that hashes to ",
                                            Hex(record.plan.Hash()), ", and says ", Hex(plan_hash)));
  if (BatchHash(record.first_position, record.lengths) != record.batch_hash)
    return absl::DataLossError(absl::StrCat("the line of step ", record.step, " has lengths that hash to ",
                                            Hex(BatchHash(record.first_position, record.lengths)), ", and says ",
                                            Hex(record.batch_hash)));
  return record;
}

}  // namespace shoal
