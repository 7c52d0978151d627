#include <gmock/gmock.h>
#include <google/protobuf/message.h>
#include <google/protobuf/text_format.h>
#include <gtest/gtest.h>

#include <fstream>

#include "absl/strings/str_cat.h"
#include "launch/config_loader.h"
#include "launch/predict.h"
#include "launch/resolve.h"
#include "launch/sequence_setup.h"
#include "runtime/base/str.h"

namespace shoal {
namespace {

using testing::HasSubstr;

std::string Errors(const std::string& text, const std::vector<std::string>& sets = {}) {
  config::Job job;
  ConfigErrors errors;
  FieldPlaces places;
  ParseTextConfig(text, "job.textproto", job, errors, places);
  for (const auto& set : sets) ApplySet(set, "--set", job, errors, places);
  return std::string(errors.Result().message());
}

struct ErrorRow {
  const char* text;
  const char* message;
};
void PrintTo(const ErrorRow& row, std::ostream* out) { *out << row.text; }

class ConfigErrorTable : public testing::TestWithParam<ErrorRow> {};
TEST_P(ConfigErrorTable, NamesPlaceAndRemedy) { EXPECT_THAT(Errors(GetParam().text), HasSubstr(GetParam().message)); }

INSTANTIATE_TEST_SUITE_P(
    All, ConfigErrorTable,
    testing::Values(ErrorRow{"seeed: 1", "job.textproto:1:1: unknown field 'seeed'; did you mean 'seed'?"},
                    ErrorRow{"optim {\n  learning_rte: 1 }",
                             "job.textproto:2:3: unknown field 'optim.learning_rte'; did you mean 'learning_rate'?"},
                    ErrorRow{"seed: \"x\"", "job.textproto:1:7: 'seed' is \"x\"; it takes a whole number"},
                    ErrorRow{"seed: -1", "'seed' is -1; the nearest value that fits is 0"},
                    ErrorRow{"data { max_tokens: 99999999999 }",
                             "'data.max_tokens' is 99999999999; the nearest value that fits is 2147483647"},
                    ErrorRow{"data { over_long: SPLITT }", "'data.over_long' is SPLITT; did you mean 'SPLIT'?"},
                    ErrorRow{"data: 3", "'data' is a group; write data { ... } with: dataset"},
                    ErrorRow{"seed { }", "':' is missing after 'seed'"},
                    ErrorRow{"seed: 1 seed: 2", "job.textproto:1:9: 'seed' is set twice, first at job.textproto:1:1"},
                    ErrorRow{"duration { steps: 3 tokens: 4 }",
                             "'duration.tokens' and 'duration.steps' (job.textproto:1:12) exclude each other"},
                    ErrorRow{"log { tensorboard: yes }", "'log.tensorboard' is yes; it takes true or false"},
                    ErrorRow{"optim {", "the group optim is not closed"},
                    ErrorRow{"data { dataset [ { path: \"x\" } }",
                             "the list data.dataset is not closed: ']' is missing"},
                    ErrorRow{"seed: }", "'seed' has no value"}, ErrorRow{"seed: {}", "'seed' is no group"},
                    ErrorRow{"= 3", "'=' where the name of a field should stand"}));

TEST(Config, AllErrorsComeAtOnce) {
  const std::string errors = Errors("seeed: 1\nname: 3\ndata { held_out: \"a\" max_tokns: 3 }\n");
  EXPECT_THAT(errors, HasSubstr("job.textproto:1:1:"));
  EXPECT_THAT(errors, HasSubstr("job.textproto:2:7: 'name' is 3; it takes a string in quotes"));
  EXPECT_THAT(errors, HasSubstr("job.textproto:3:18:"));
  EXPECT_THAT(errors, HasSubstr("job.textproto:3:22: unknown field 'data.max_tokns'"));
}

TEST(Config, SetOverridesAnything) {
  config::Job job;
  ConfigErrors errors;
  FieldPlaces places;
  ParseTextConfig("name: \"a\" data { dataset { path: \"x\" } dataset { path: \"y\" } } duration { steps: 5 }", "f",
                  job, errors, places);
  for (const char* set : {"name=b c", "optim.learning_rate=3e-4", "data.dataset={ path: \"z\" weight: 2 }",
                          "duration={ tokens: 9 }", "optim.sgd.nesterov=true", "data.over_long=drop"}) {
    ApplySet(set, "--set", job, errors, places);
  }
  EXPECT_TRUE(errors.Result().ok()) << errors.Result();
  EXPECT_EQ(job.name(), "b c");
  EXPECT_EQ(job.optim().learning_rate(), 3e-4);
  ASSERT_EQ(job.data().dataset_size(), 1);
  EXPECT_EQ(job.data().dataset(0).path(), "z");
  EXPECT_EQ(job.duration().tokens(), 9);
  EXPECT_TRUE(job.optim().sgd().nesterov());
  EXPECT_EQ(job.data().over_long(), config::DataConfig::DROP);
  EXPECT_THAT(Errors("", {"optim.lerning_rate=1"}), HasSubstr("did you mean 'learning_rate'?"));
  EXPECT_THAT(Errors("", {"seed=1 2"}), HasSubstr("'2' is left over"));
  EXPECT_THAT(Errors("", {"seed"}), HasSubstr("write --set path.to.field=value"));
  EXPECT_THAT(Errors("", {"seed.x=1"}), HasSubstr("'seed' is no group"));
}

TEST(Config, ImpossibleCombinationsCarryTheirPlace) {
  LoadedJob loaded;
  ConfigErrors errors;
  ParseTextConfig(
      "model { transformer { layers: 2 width: 100\n heads: 3 } }\nduration { steps: 0 }\nruntime { device: CUDA "
      "}\nmicro_batch { tokens: 10 } parallel { recompute_blocks: 2 }",
      "f", loaded.job, errors, loaded.places);
  const std::string message(ResolveJob(loaded, 1).status().message());
  EXPECT_THAT(message, HasSubstr("f:2:2: model.transformer.heads is 3 and width is 100"));
  EXPECT_THAT(message, HasSubstr("f:3:1: duration is 0"));
  EXPECT_THAT(message, HasSubstr("f:4:11: runtime.device is CUDA, but this build has no CUDA back end"));
  EXPECT_THAT(message, HasSubstr("micro_batch.tokens is 10 and data.max_tokens is 1024"));
  EXPECT_THAT(message,
              HasSubstr("parallel.recompute_blocks is given and parallel.recompute is NONE; set it to MLP or"));
  EXPECT_THAT(message, HasSubstr("global_batch is not given"));
  EXPECT_THAT(message, HasSubstr("data.dataset is not given"));
}

TEST(Config, PlannedCodesWaitForTheLearningRate) {
  const std::string job =
      "model { transformer { layers: 1 width: 32 heads: 4 } }\ndata { dataset { path: \"d\" } max_tokens: 64 }\n"
      "duration { steps: 1000 }\n";
  const std::string planned = "comm { compression { mode: LGRECO_BYTES } }",
                    uniform = "comm { compression { mode: UNIFORM codec: \"q4\" } }";
  struct Row {
    std::string text;
    int exact_steps;
  };
  const Row rows[] = {
      {"global_batch { tokens: 1000 } optim { schedule { warmup { steps: 70 } } }" + planned, 70},
      {"global_batch { tokens: 1000 } optim { schedule { warmup { tokens: 70001 } } }" + planned, 71},
      {"global_batch { sequences: 8 } optim { schedule { warmup { samples: 400 } } }" + planned, 50},
      {"global_batch { sequences: 8 } optim { schedule { warmup { steps: 5 } } }" + planned, 20},
      {"global_batch { sequences: 8 } optim { schedule { warmup { tokens: 90000 } } }" + planned, 20},  // who knows
      {"global_batch { sequences: 8 } optim { schedule { warmup { steps: 70 } } }" + uniform, 20},
      {"global_batch { sequences: 8 } optim { schedule { warmup { steps: 70 } } }"
       "comm { compression { mode: LGRECO_BYTES warmup_steps: 30 } }",
       30}};
  for (const Row& row : rows) {
    LoadedJob loaded;
    ConfigErrors errors;
    ParseTextConfig(job + row.text, "job.textproto", loaded.job, errors, loaded.places);
    const auto resolved = ResolveJob(loaded, 2);
    ASSERT_TRUE(resolved.ok()) << resolved.status();
    EXPECT_EQ(resolved->comm().compression().warmup_steps(), row.exact_steps) << row.text;
  }
}

// "optim.adamw.beta1: double = 0.9" of every field below `d`.
void ListFields(const google::protobuf::Descriptor& d, const std::string& path, std::string& to) {
  for (int i = 0; i < d.field_count(); ++i) {
    const auto& field = *d.field(i);
    const std::string name = path + field.name();
    if (field.message_type() != nullptr) {
      ListFields(*field.message_type(), name + ".", to);
      continue;
    }
    to += name + ": " + (field.enum_type() != nullptr ? field.enum_type()->name() : field.type_name());
    if (field.has_default_value()) {
      std::string value;
      const auto* prototype =
          google::protobuf::MessageFactory::generated_factory()->GetPrototype(field.containing_type());
      google::protobuf::TextFormat::PrintFieldValueToString(*prototype, &field, -1, &value);
      to += " = " + value;
    }
    to += "\n";
  }
}

TEST(Config, SequencesThatCannotBeSpreadAreNamed) {
  const std::string job =
      "model { transformer { layers: 1 width: 32 heads: 4 } }\n"
      "data { dataset { path: \"d\" } max_tokens: 4096 }\n"
      "global_batch { sequences: 2 }\nduration { steps: 1 }\n";
  struct Row {
    const char* text;
    int ranks;
    const char* message;  // empty: none
  };
  const Row rows[] = {
      {"micro_batch { tokens: 512 } parallel { sequence {} }", 8, ""},
      {"micro_batch { tokens: 512 }", 8, "or parallel { sequence {} }, which spreads long sequences over ranks"},
      {"micro_batch { tokens: 512 } parallel { sequence {} }", 7,
       "data.max_tokens is 4096, but a group of 4 ranks, the largest here (7 ranks), holds 2048 tokens"},
      {"micro_batch { tokens: 512 } parallel { sequence {} }", 7, "Raise micro_batch.tokens to 1024, which takes "},
      {"micro_batch { tokens: 512 } parallel { sequence {} }", 7, "or let groups have 8 ranks"},
      {"micro_batch { tokens: 512 } parallel { sequence { mode: ULYSSES } }", 8,
       "a group of 4 ranks, the largest here (heads in mode ULYSSES: 4)"},
      {"micro_batch { tokens: 512 } parallel { sequence { max_degree: 2 } }", 8,
       "a group of 2 ranks, the largest here (parallel.sequence.max_degree: 2)"},
      {"micro_batch { tokens: 512 } parallel { sequence { planner: \"static\" degree: 4 } }", 8,
       "a group of 4 ranks, the largest here (parallel.sequence.degree)"},
      {"micro_batch { tokens: 1024 } parallel { sequence { planner: \"per_batch\" } }", 6,
       "a group of 2 ranks, the largest here (planner per_batch takes degrees that divide 6 ranks)"},
      {"micro_batch { tokens: 512 } parallel { sequence { mode: ULYSSES planner: \"static\" degree: 8 } }", 8,
       "parallel.sequence.degree is 8; the highest here is 4 (heads in mode ULYSSES: 4)"},
      {"parallel { sequence {} }", 8, "parallel.sequence needs micro_batch { tokens: N }"},
      {"micro_batch { tokens: 4096 } parallel { sequence { planner: \"flexps\" } }", 1, "did you mean 'flexsp'"},
      {"micro_batch { tokens: 4096 } parallel { sequence { max_degree: 3 } }", 1, "degrees are powers of two"},
      {"micro_batch { tokens: 4096 } parallel { sequence { degree: 2 } }", 2, "chooses degrees itself: remove one"},
      {"micro_batch { tokens: 4096 } parallel { sequence { planner: \"static\" degree: 2 } }", 3, "does not divide 3"},
  };
  for (const Row& row : rows) {
    LoadedJob loaded;
    ConfigErrors errors;
    ParseTextConfig(job + row.text, "job.textproto", loaded.job, errors, loaded.places);
    ASSERT_TRUE(errors.Result().ok()) << errors.Result();
    const auto resolved = ResolveJob(loaded, row.ranks);
    EXPECT_EQ(resolved.ok(), row.message[0] == 0) << row.text << ": " << resolved.status();
    EXPECT_THAT(std::string(resolved.status().message()), HasSubstr(row.message)) << row.text;
    if (!resolved.ok()) {
      EXPECT_THAT(std::string(resolved.status().message()), HasSubstr("job.textproto:")) << row.text;
    }
  }
}

// The longest sequence's memory on a rank, and with recomputation, are those of a micro-batch that holds its share.
TEST(Config, WhatALongSequenceNeedsIsADryRunsMemory) {
  const auto job = [](const std::string& recompute, int tokens) {
    LoadedJob loaded;
    ConfigErrors errors;
    ParseTextConfig(absl::StrCat("model { transformer { layers: 3 width: 32 heads: 4 } }\n"
                                 "data { dataset { path: \"d\" } max_tokens: 4096 }\n"
                                 "global_batch { sequences: 2 }\nduration { steps: 1 }\n"
                                 "parallel { sequence {} recompute: ",
                                 recompute, " } micro_batch { tokens: ", tokens, " }"),
                    "job.textproto", loaded.job, errors, loaded.places);
    EXPECT_TRUE(errors.Result().ok()) << errors.Result();
    return loaded;
  };
  const auto memory = [&](const std::string& recompute, int tokens) {
    const auto resolved = ResolveJob(job(recompute, tokens), 4096 / tokens);
    EXPECT_TRUE(resolved.ok()) << resolved.status();
    const int64_t bytes = ActivationBytes(*resolved, tokens);
    EXPECT_NEAR(static_cast<double>(PredictMemory(*resolved, 4096 / tokens, Checkpoints::kNo).activations),
                static_cast<double>(bytes), 0.25 * static_cast<double>(bytes))
        << "of the largest micro-batch, which also exchanges";
    return HumanBytes(static_cast<double>(bytes));
  };
  const std::string refused(ResolveJob(job("NONE", 512), 4).status().message());
  EXPECT_THAT(refused, HasSubstr(absl::StrCat("Of activations a rank would need ", memory("NONE", 1024), " and has ",
                                              memory("NONE", 512), ". Raise micro_batch.tokens to 1024, which takes ",
                                              memory("BLOCK", 1024), " with parallel { recompute: BLOCK }, or ")));
  EXPECT_NE(memory("BLOCK", 1024), memory("NONE", 1024));
  EXPECT_THAT(std::string(ResolveJob(job("BLOCK", 512), 4).status().message()),
              testing::Not(HasSubstr("recompute: BLOCK")));
}

TEST(Config, ModesOfSequencesAreToldByDegree) {
  const auto modes = [](const std::string& sequence, int ranks) {
    config::Job job;
    ConfigErrors errors;
    FieldPlaces places;
    ParseTextConfig(
        absl::StrCat("model { transformer { heads: 6 kv_heads: 3 } } parallel { sequence { ", sequence, " } }"), "job",
        job, errors, places);
    EXPECT_TRUE(errors.Result().ok()) << errors.Result();
    return SequenceModesText(job, ranks);
  };
  EXPECT_EQ(modes("mode: ULYSSES", 8),
            "  degree 2: 6 heads between 2 ranks\n"
            "  degree 4: 6 heads between 4 ranks, not evenly: up to 2 each, key heads on several");
  EXPECT_EQ(modes("", 4),
            "  degree 2: 6 heads between 2 ranks\n"
            "  degree 4: 6 heads between 2 ranks; keys go round between 2 teams");
  EXPECT_EQ(modes("mode: RING max_degree: 2", 8), "  degree 2: keys go round between 2 ranks");
  EXPECT_EQ(modes("", 1), "");
}

// A field that is added, renamed or given another default shows here, so that it is done on purpose: jobs of users and
// of old runs hold these names.
TEST(Config, FieldsAreThoseOfTheGoldenList) {
  std::string fields;
  ListFields(*config::Job::descriptor(), "", fields);
  std::ifstream file("tests/launch/config_fields.golden");
  const std::string golden((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  EXPECT_EQ(fields, golden) << "if this is meant, tests/launch/config_fields.golden becomes:\n" << fields;
}

TEST(Config, ResolvedTextReadsBackAndOnlyResultsCount) {
  LoadedJob loaded;
  ConfigErrors errors;
  ParseTextConfig(
      "model { transformer { layers: 2 width: 64 heads: 4 } } data { dataset { path: \"x\" } } global_batch { tokens: "
      "2048 } duration { steps: 3 }",
      "f", loaded.job, errors, loaded.places);
  const auto job = ResolveJob(loaded, 1);
  ASSERT_TRUE(job.ok()) << job.status();
  config::Job again;
  ParseTextConfig(JobText(*job), "resolved", again, errors, loaded.places);
  EXPECT_TRUE(errors.Result().ok()) << errors.Result();
  EXPECT_TRUE(ResultChanges(*job, again, {}).empty());
  again.mutable_log()->set_every_steps(7);
  again.mutable_optim()->set_learning_rate(1);
  EXPECT_THAT(ResultChanges(*job, again, {}), testing::ElementsAre("optim.learning_rate: unset -> 1"));
  EXPECT_TRUE(ResultChanges(*job, again, {"optim.learning_rate"}).empty());
  EXPECT_TRUE(ResultChanges(*job, again, {"optim"}).empty()) << "a group accepts its fields";
  EXPECT_EQ(ResultChanges(*job, again, {"opt"}).size(), 1u);
  // Gradients' codes change results; what becomes of earlier ones' residuals, buckets and deadlines do not count.
  config::Job codes = *job;
  codes.mutable_comm()->set_deadline_seconds(10);
  codes.mutable_comm()->mutable_compression()->set_resume(config::CompressionConfig::RESET);
  EXPECT_TRUE(ResultChanges(*job, codes, {}).empty());
  codes.mutable_comm()->mutable_compression()->set_codec("q2");
  EXPECT_THAT(ResultChanges(*job, codes, {}), testing::ElementsAre("comm.compression.codec: unset -> \"q2\""));
  EXPECT_TRUE(ResultChanges(*job, codes, {"comm"}).empty());
  again.mutable_optim()->mutable_sgd();
  EXPECT_THAT(ResultChanges(*job, again, {"optim"}), testing::ElementsAre(HasSubstr("optim.kind: AdamW -> SGD")));
  EXPECT_TRUE(ResultChanges(*job, again, {"optim", "optim.kind"}).empty());
}

}  // namespace
}  // namespace shoal
