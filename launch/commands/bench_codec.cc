#include "launch/commands/bench_codec.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "comm/codec/codec.h"
#include "runtime/base/rng.h"
#include "runtime/base/status.h"
#include "runtime/obs/span.h"

namespace shoal {
namespace {

constexpr int64_t kBlock = 1024;
constexpr int64_t kFeedbackElements = int64_t{1} << 20;
constexpr int kFeedbackSteps = 20;

std::vector<std::string> EveryCodec() {
  std::vector<std::string> names = {"fp32", "bf16"};
  for (const CodecFamily& family : CodecFamilies()) {
    for (const absl::string_view name : family.codecs) names.emplace_back(name);
  }
  return names;
}

const CodecFamily* FamilyOf(absl::string_view name) {
  for (const CodecFamily& family : CodecFamilies()) {
    if (std::find(family.codecs.begin(), family.codecs.end(), name) != family.codecs.end()) return &family;
  }
  return nullptr;
}

// Normal values whose scale varies from layer to layer, as gradients do.
std::vector<float> LayerLike(int64_t size, uint64_t stream) {
  constexpr int64_t kLayer = 4096;
  const Rng rng({.seed = 1, .purpose = RngPurpose::kTest, .name = stream});
  std::vector<float> x(static_cast<size_t>(size));
  float scale = 1;
  for (int64_t i = 0; i < size; ++i) {
    if (i % kLayer == 0) scale = std::exp(rng.Normal(1, static_cast<uint64_t>(i / kLayer)));
    x[i] = scale * rng.Normal(0, static_cast<uint64_t>(i));
  }
  return x;
}

struct Buffers {
  std::vector<float> gradient, residual, left, out;
};

// The largest share of a gradient's squares that any of some steps of error feedback leaves behind.
double Contraction(const Codec& codec, const std::vector<float>& gradient) {
  const int64_t size = std::min(kFeedbackElements, static_cast<int64_t>(gradient.size()));
  std::vector<float> residual(static_cast<size_t>(size)), left(residual.size());
  std::vector<uint8_t> code(static_cast<size_t>(codec.Bytes(size)));
  double most = 0;
  for (int step = 0; step < kFeedbackSteps; ++step) {
    const Encoded encoded =
        codec.Encode({.gradient = gradient.data(), .residual = residual.data(), .size = size, .left = left.data()},
                     {.seed = 1, .step = static_cast<uint32_t>(step)}, code.data());
    most = std::max(most, encoded.error_squares / encoded.squares);
    residual.swap(left);
  }
  return most;
}

nlohmann::json Measure(const BenchArgs& args, const Codec& codec, Buffers& buffers) {
  const auto size = static_cast<int64_t>(buffers.gradient.size());
  const CodecInput plain{.gradient = buffers.gradient.data(), .size = size};
  CodecInput feedback = plain;
  feedback.residual = buffers.residual.data();
  feedback.left = buffers.left.data();
  std::vector<uint8_t> code(static_cast<size_t>(codec.Bytes(size)));
  const CodecFamily* family = FamilyOf(codec.name());
  std::vector<double> errors(family == nullptr ? 0 : family->codecs.size());

  nlohmann::json result = {{"codec", codec.name()},
                           {"bits_per_element", 8 * static_cast<double>(code.size()) / static_cast<double>(size)},
                           {"contraction", Contraction(codec, buffers.gradient)}};
  for (int i = 0; i < args.warmup + args.steps; ++i) {
    const auto timed = [&](const char* name, const auto& fn) {
      const double start = SteadySeconds();
      fn();
      const double seconds = SteadySeconds() - start;
      if (i >= args.warmup) result[name].push_back(seconds);
    };
    const CodecKey key{.seed = 1, .step = static_cast<uint32_t>(i)};
    timed("copy_seconds",
          [&] { std::memcpy(buffers.out.data(), buffers.gradient.data(), sizeof(float) * buffers.out.size()); });
    timed("encode_feedback_seconds", [&] { codec.Encode(feedback, key, code.data()); });
    Encoded encoded;
    timed("encode_seconds", [&] { encoded = codec.Encode(plain, key, code.data()); });
    result["relative_error"] = std::sqrt(encoded.error_squares / encoded.squares);
    timed("decode_seconds", [&] { codec.Decode(code.data(), size, Codec::Into::kOverwrite, buffers.out.data()); });
    timed("decode_add_seconds", [&] { codec.Decode(code.data(), size, Codec::Into::kAdd, buffers.out.data()); });
    if (family != nullptr) timed("errors_seconds", [&] { family->errors(plain, kBlock, absl::MakeSpan(errors)); });
  }
  return result;
}

}  // namespace

absl::Status BenchCodec(const BenchArgs& args) {
  const int64_t size = args.parameters.value_or(int64_t{16} << 20);
  const std::vector<std::string> names = args.codec.empty() ? EveryCodec() : std::vector<std::string>{args.codec};
  std::vector<std::unique_ptr<Codec>> codecs;
  for (const std::string& name : names) {
    SHOAL_ASSIGN_OR_RETURN(auto codec, MakeCodec(name, kBlock));
    codecs.push_back(std::move(codec));
  }
  Buffers buffers{LayerLike(size, 1), LayerLike(size, 2), std::vector<float>(static_cast<size_t>(size)),
                  std::vector<float>(static_cast<size_t>(size))};
  nlohmann::json results = nlohmann::json::array();
  for (const auto& codec : codecs) results.push_back(Measure(args, *codec, buffers));
  std::cout << nlohmann::json{{"parameters", size}, {"codecs", std::move(results)}}.dump() << std::endl;
  return absl::OkStatus();
}

}  // namespace shoal
