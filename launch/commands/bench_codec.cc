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

#include "absl/strings/str_cat.h"
#include "comm/codec/codec.h"
#include "comm/codec/power_sgd.h"
#include "runtime/base/rng.h"
#include "runtime/base/status.h"
#include "runtime/obs/span.h"

namespace shoal {
namespace {

constexpr int64_t kBlock = 1024;
constexpr int64_t kFeedbackElements = int64_t{1} << 20;
constexpr int kFeedbackSteps = 20;

std::vector<std::string> EveryCodec() {
  std::vector<std::string> names;
  for (const CodecFamily& family : CodecFamilies()) {
    for (const absl::string_view name : family.codecs) names.emplace_back(name);
  }
  return names;
}

// The one whose pass tells this codec's errors; null: none does.
const CodecFamily* FamilyOf(absl::string_view name) {
  for (const CodecFamily& family : CodecFamilies()) {
    if (family.errors != nullptr && std::find(family.codecs.begin(), family.codecs.end(), name) != family.codecs.end())
      return &family;
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

// Seconds of fn, added to result[name] once the warm-up is over.
template <class F>
void Timed(nlohmann::json& result, const char* name, bool counts, F fn) {
  const double start = SteadySeconds();
  fn();
  const double seconds = SteadySeconds() - start;
  if (counts) result[name].push_back(seconds);
}
void TimedCopy(nlohmann::json& result, bool counts, Buffers& buffers) {
  Timed(result, "copy_seconds", counts,
        [&] { std::memcpy(buffers.out.data(), buffers.gradient.data(), sizeof(float) * buffers.out.size()); });
}

// The largest share of a gradient's squares that any of some steps of error feedback leaves behind; `encode` is one.
template <class F>
double Contraction(const std::vector<float>& gradient, int64_t size, F encode) {
  std::vector<float> residual(static_cast<size_t>(size)), left(residual.size());
  double most = 0;
  for (int step = 0; step < kFeedbackSteps; ++step) {
    const Encoded encoded =
        encode({.gradient = gradient.data(), .residual = residual.data(), .size = size, .left = left.data()}, step);
    most = std::max(most, encoded.error_squares / encoded.squares);
    residual.swap(left);
  }
  return most;
}

double CodeContraction(const Codec& codec, const std::vector<float>& gradient) {
  const int64_t size = std::min(kFeedbackElements, static_cast<int64_t>(gradient.size()));
  std::vector<uint8_t> code(static_cast<size_t>(codec.Bytes(size)));
  return Contraction(gradient, size, [&](const CodecInput& input, int step) {
    return codec.Encode(input, {.seed = 1, .step = static_cast<uint32_t>(step)}, code.data());
  });
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
                           {"contraction", CodeContraction(codec, buffers.gradient)}};
  for (int i = 0; i < args.warmup + args.steps; ++i) {
    const bool counts = i >= args.warmup;
    const CodecKey key{.seed = 1, .step = static_cast<uint32_t>(i)};
    TimedCopy(result, counts, buffers);
    Timed(result, "encode_feedback_seconds", counts, [&] { codec.Encode(feedback, key, code.data()); });
    Encoded encoded;
    Timed(result, "encode_seconds", counts, [&] { encoded = codec.Encode(plain, key, code.data()); });
    result["relative_error"] = std::sqrt(encoded.error_squares / encoded.squares);
    const auto decode = [&](const char* name, Codec::Into into) {
      Timed(result, name, counts, [&] { codec.Decode(code.data(), size, into, buffers.out.data()); });
    };
    decode("decode_seconds", Codec::Into::kOverwrite);
    decode("decode_add_seconds", Codec::Into::kAdd);
    if (family != nullptr)
      Timed(result, "errors_seconds", counts, [&] { family->errors(plain, kBlock, absl::MakeSpan(errors)); });
  }
  return result;
}

// One rank's round of PowerSGD: what it sends are the factors P and Q of the nearest to a square matrix that the
// elements fill. Encoding is both products and the orthonormal columns between them, with feedback also what is left.
class FactorRound {
 public:
  FactorRound(int64_t elements, int rank) {
    shape_.rows = static_cast<int64_t>(std::sqrt(static_cast<double>(elements)));
    shape_.columns = elements / std::max<int64_t>(1, shape_.rows);
    shape_.rank = rank;
  }
  absl::Status Start() {
    if (shape_.rank > shape_.rows)
      return absl::InvalidArgumentError(absl::StrCat(
          "powersgd_", shape_.rank, " of a matrix of ", shape_.rows, " x ", shape_.columns, ", whose rank is ",
          shape_.rows, " at most; take --parameters ", shape_.rank * shape_.rank, " or more"));
    p_.resize(static_cast<size_t>(shape_.rows * shape_.rank));
    q_.resize(static_cast<size_t>(shape_.columns * shape_.rank));
    PowerSgdStart(shape_, 1, 1, 0, 0, q_.data());
    return absl::OkStatus();
  }
  const PowerSgdShape& shape() const { return shape_; }
  int64_t size() const { return shape_.rows * shape_.columns; }
  double bytes() const { return sizeof(float) * static_cast<double>(p_.size() + q_.size()); }
  void Factor(const CodecInput& input) {
    PowerSgdProject(shape_, input, q_.data(), p_.data());
    Orthonormalise(shape_.rows, shape_.rank, p_.data());
    PowerSgdBackProject(shape_, input, p_.data(), q_.data());
  }
  Encoded Residual(const CodecInput& input) const { return PowerSgdResidual(shape_, input, p_.data(), q_.data()); }
  void Reconstruct(float* out) const { PowerSgdReconstruct(shape_, p_.data(), q_.data(), out); }

 private:
  PowerSgdShape shape_;
  std::vector<float> p_, q_;
};

absl::StatusOr<nlohmann::json> MeasureFactors(const BenchArgs& args, const Codec& codec, Buffers& buffers) {
  const auto elements = static_cast<int64_t>(buffers.gradient.size());
  FactorRound round(elements, codec.factor_rank()),
      fed_back(std::min(kFeedbackElements, elements), codec.factor_rank());
  SHOAL_RETURN_IF_ERROR(round.Start());
  SHOAL_RETURN_IF_ERROR(fed_back.Start());
  const CodecInput plain{.gradient = buffers.gradient.data(), .size = round.size()};
  CodecInput feedback = plain;
  feedback.residual = buffers.residual.data();
  feedback.left = buffers.left.data();
  nlohmann::json result = {
      {"codec", codec.name()},
      {"rows", round.shape().rows},
      {"columns", round.shape().columns},
      {"bits_per_element", 8 * round.bytes() / static_cast<double>(round.size())},
      {"contraction", Contraction(buffers.gradient, fed_back.size(), [&](const CodecInput& input, int /*step*/) {
         fed_back.Factor(input);
         return fed_back.Residual(input);
       })}};
  for (int i = 0; i < args.warmup + args.steps; ++i) {
    const bool counts = i >= args.warmup;
    TimedCopy(result, counts, buffers);
    Timed(result, "encode_feedback_seconds", counts, [&] {
      round.Factor(feedback);
      round.Residual(feedback);
    });
    Timed(result, "encode_seconds", counts, [&] { round.Factor(plain); });
    const Encoded encoded = round.Residual(plain);
    result["relative_error"] = std::sqrt(encoded.error_squares / encoded.squares);
    Timed(result, "decode_seconds", counts, [&] { round.Reconstruct(buffers.out.data()); });
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
  for (const auto& codec : codecs) {
    if (codec->factor_rank() == 0) {
      results.push_back(Measure(args, *codec, buffers));
      continue;
    }
    SHOAL_ASSIGN_OR_RETURN(results.emplace_back(), MeasureFactors(args, *codec, buffers));
  }
  std::cout << nlohmann::json{{"parameters", size}, {"codecs", std::move(results)}}.dump() << std::endl;
  return absl::OkStatus();
}

}  // namespace shoal
