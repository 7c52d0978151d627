// Sequence plans as bytes and as lines: whole, or refused with what is wrong.
#include "parallel/sequence_plan_text.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

#include "absl/strings/str_replace.h"
#include "runtime/base/rng.h"

namespace shoal {
namespace {

using testing::HasSubstr;

SequencePlanRecord SomeRecord() {
  SequencePlanRecord record{.step = 41,
                            .first_position = 1640,
                            .planner = "flexsp",
                            .tier = "full",
                            .source = "ahead",
                            .planned_seconds = 0.3,
                            .bound = 0.25,
                            .plan_ms = 12.5,
                            .exposed_ms = 0.01,
                            .predicted = {0.1, 1.0 / 3},
                            .predicted_step = 0.5};
  record.plan.micro_batches.resize(2);
  record.plan.micro_batches[0].groups = {{2, 0, {0}}, {1, 2, {1, 3}}, {1, 3, {4}}};
  record.plan.micro_batches[1].groups = {{4, 0, {2}}};
  const std::vector<int32_t> lengths = {90, 30, 300, 20, 70};
  record.batch_hash = BatchHash(record.first_position, lengths);
  return record;
}
std::vector<int32_t> SomeLengths() { return {90, 30, 300, 20, 70}; }

absl::StatusOr<SequencePlanRecord> Decode(absl::string_view bytes) {
  return PlanFromBytes(bytes, SomeRecord().step, SomeRecord().batch_hash);
}

TEST(SequencePlanText, BytesHoldTheRecord) {
  const auto record = Decode(PlanBytes(SomeRecord()));
  ASSERT_TRUE(record.ok()) << record.status();
  EXPECT_TRUE(*record == SomeRecord());
  EXPECT_EQ(record->Text(), "<2,1x2> <4>");
  EXPECT_NEAR(record->gap(), 1.0 / 6, 1e-12);
  SequencePlanRecord empty;
  ASSERT_TRUE(PlanFromBytes(PlanBytes(empty), 0, 0).ok());
  EXPECT_EQ(empty.gap(), 0);
}

TEST(SequencePlanText, AnyChangedBitIsRefused) {
  const std::string bytes = PlanBytes(SomeRecord());
  for (size_t bit = 0; bit < 8 * bytes.size(); ++bit) {
    std::string damaged = bytes;
    damaged[bit / 8] = static_cast<char>(damaged[bit / 8] ^ (1 << bit % 8));
    const absl::Status status = Decode(damaged).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << "bit " << bit;
    EXPECT_THAT(status.message(), HasSubstr("damaged")) << "bit " << bit;
  }
}

TEST(SequencePlanText, AnyMissingOrAddedByteIsRefused) {
  const std::string bytes = PlanBytes(SomeRecord());
  for (size_t size = 0; size < bytes.size(); ++size)
    EXPECT_EQ(Decode(bytes.substr(0, size)).status().code(), absl::StatusCode::kDataLoss) << size << " bytes";
  EXPECT_EQ(Decode(bytes + '\0').status().code(), absl::StatusCode::kDataLoss);
}

// With a hash that fits: bytes that another program wrote.
std::string Rehashed(std::string bytes) {
  bytes.resize(bytes.size() - 8);
  const uint64_t hash = NameHash(bytes);
  for (int i = 0; i < 8; ++i) bytes.push_back(static_cast<char>(hash >> (8 * i) & 0xff));
  return bytes;
}

TEST(SequencePlanText, StaleOtherBatchesAndVersionsAreRefused) {
  const SequencePlanRecord record = SomeRecord();
  const std::string bytes = PlanBytes(record);
  const absl::Status stale = PlanFromBytes(bytes, 42, record.batch_hash).status();
  EXPECT_EQ(stale.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(stale.message(), HasSubstr("stale: of step 41, and this is step 42"));
  const absl::Status other = PlanFromBytes(bytes, 41, record.batch_hash + 1).status();
  EXPECT_EQ(other.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(other.message(), HasSubstr("of another batch"));
  std::string newer = bytes;
  newer[8] = 2;
  const absl::Status version = Decode(Rehashed(newer)).status();
  EXPECT_EQ(version.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(version.message(), HasSubstr("version 2"));
}

TEST(SequencePlanText, CountsBeyondTheBytesAreRefused) {
  const std::string bytes = PlanBytes(SomeRecord());
  for (size_t at = 32; at + 12 < bytes.size(); ++at) {
    std::string wrong = bytes;
    for (size_t i = 0; i < 4; ++i) wrong[at + i] = '\x7f';
    const auto record = Decode(Rehashed(wrong));  // a number that is no count may be anything
    if (record.ok()) continue;
    EXPECT_EQ(record.status().code(), absl::StatusCode::kDataLoss) << "at " << at;
  }
}

TEST(SequencePlanText, ErrorsTravelInPlaceOfPlans) {
  const absl::Status error = absl::InvalidArgumentError("sequence 3 has 900 tokens");
  const std::string bytes = PlanErrorBytes(error, 5, 77);
  EXPECT_EQ(PlanFromBytes(bytes, 5, 77).status(), error);
  EXPECT_THAT(PlanFromBytes(bytes, 6, 77).status().message(), HasSubstr("stale"));
}

TEST(SequencePlanText, BatchHashesDifferByPositionLengthsAndOrder) {
  const std::set<uint64_t> hashes = {BatchHash(0, {}),        BatchHash(1, {}),     BatchHash(0, {1}),
                                     BatchHash(0, {1, 2}),    BatchHash(0, {2, 1}), BatchHash(5, {1, 2}),
                                     BatchHash(0, {1, 2, 0}), BatchHash(0, {258})};
  EXPECT_EQ(hashes.size(), 8u);
  EXPECT_EQ(BatchHash(1640, SomeLengths()), SomeRecord().batch_hash);
}

TEST(SequencePlanText, LinesHoldTheRecord) {
  SequencePlanRecord record = SomeRecord();
  record.lengths = SomeLengths();
  for (const bool measured : {false, true}) {
    if (measured) {
      record.measured = {0.11, 0.29};
      record.measured_step = 0.48;
    }
    const std::string line = PlanJson(record);
    EXPECT_EQ(line.find('\n'), std::string::npos);
    EXPECT_EQ(line.find("measured") != std::string::npos, measured);
    EXPECT_THAT(line, HasSubstr(R"("groups":"<2,1x2> <4>")"));
    const auto read = PlanFromJson(line);
    ASSERT_TRUE(read.ok()) << read.status();
    EXPECT_TRUE(*read == record);
  }
}

TEST(SequencePlanText, DamagedLinesAreRefused) {
  SequencePlanRecord record = SomeRecord();
  record.lengths = SomeLengths();
  const std::string line = PlanJson(record);
  const std::pair<std::string, const char*> cases[] = {
      {line.substr(0, line.size() / 2), "no JSON object"},
      {"[1]", "no JSON object"},
      {"{}", "damaged"},
      {absl::StrReplaceAll(line, {{"[1,3]", "[3,1]"}}), "has a plan that hashes to"},
      {absl::StrReplaceAll(line, {{"[90,30,", "[91,30,"}}), "has lengths that hash to"},
      {absl::StrReplaceAll(line, {{"0x", "0y"}}), "is no hash"},
      {absl::StrReplaceAll(line, {{"\"step\":41", "\"step\":\"41\""}}), "damaged"}};
  for (const auto& [text, says] : cases) {
    const absl::Status status = PlanFromJson(text).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << says;
    EXPECT_THAT(status.message(), HasSubstr(says));
  }
}

}  // namespace
}  // namespace shoal
