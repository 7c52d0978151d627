// Entropy-coded scalar quantisation (Gish and Pierce, 1968): one uniform grid for all elements, whose levels are
// spelled in as many bits as they are unlikely (level_model.h, rans.h). What is large costs more bits and what is small
// fewer, so that for its bytes hardly any scalar code leaves less; ranges of blocks, which outliers stretch, play no
// part.
//
// The bytes are fixed, by `bits` per element, so that receivers know them, and the step of the grid is chosen so that
// the code fills them; from frame to frame it is mended by a few percent at most, unless frames differ. What a code
// says is the same on every machine; which step is found for a gradient may differ in its last bits between
// mathematical libraries. Code of a run: frames of 32 Ki elements one after the other, then zeros. A frame is
//
//   f32 step; 0: all elements are zero, NaN: one was not finite; nothing follows of those
//   u8 first class, u8 last class, u8 frequency of each of them out of 256, if there are several
//   u32 state x 32, u16 word ...: classes of groups, then levels (spelling.h); element and group i are of state i % 32
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "comm/codec/codecs.h"
#include "comm/codec/kernels.h"
#include "comm/codec/level_model.h"
#include "comm/codec/rans.h"
#include "comm/codec/spelling.h"

namespace shoal {
namespace {

constexpr int64_t kFrame = 32768, kFrameGroups = kFrame / kLevelGroup;
constexpr int kClassBits = 8;
constexpr int64_t kFixed = 4 + 2 + 4 * kRansStates;  // bytes before a frame's words, without frequencies
constexpr int64_t kHead = kFixed + 10;               // that are granted for it
constexpr int64_t kWord = sizeof(uint16_t);
constexpr int64_t kSpare = kSpellingSpare;  // behind the last frame
constexpr int64_t kSampledGroups = 512;

// In the unit of costs.
constexpr int64_t CostOfBytes(int64_t bytes) { return 8 * kCostUnit * bytes; }

// Up to a frame's elements, on a grid.
class Frame {
 public:
  int64_t size = 0;
  float x[kFrame];
  double squares = 0;
  bool finite = true;
  float largest = 0;  // magnitude

  void Clear() {
    size = 0;
    squares = 0;
    finite = true;
    largest = 0;
  }
  void Append(const CodecInput& input, int64_t at, int64_t n) {
    for (int64_t i = 0; i < n; i += kMostElements) {
      const Stretch stretch = LoadRun(input, at + i, std::min(kMostElements, n - i), x + size + i);
      squares += stretch.squares;
      finite = finite && stretch.finite;
      largest = std::max({largest, stretch.max, -stretch.min});
    }
    size += n;
  }

  // Some elements are not zero, and all are finite: what the rest asks for.
  bool has_levels() const { return finite && largest > 0; }

  float step() const { return step_; }
  // Puts elements on the grid of a step, or of the least one on which no level is too large.
  void Quantise(float step);
  // What Spell will take of that, about, header included.
  int64_t Cost();
  // Puts elements on about the finest grid of a cost within `budget`, near `guess` if it can be. Its cost.
  int64_t Fit(float guess, int64_t budget);
  // A first guess, as if elements were normal.
  float Guess(double bits) const {
    const double deviation = std::sqrt(squares / static_cast<double>(size));
    return static_cast<float>(std::min(4.13 * deviation * std::exp2(-bits), 1e38));
  }
  // Of each group, after Cost; without that of its class.
  const uint32_t* group_costs() const { return group_costs_; }

  // Makes the code of what Quantise or Fit did; its bytes. Then writes it; where it ends.
  int64_t Spell();
  uint8_t* Write(uint8_t* at) const;
  double Errors(float* left) const { return LevelErrorsRun(x, levels_, size, step_, left); }

 private:
  float Least() const { return std::max(largest / kMostLevel, std::numeric_limits<float>::denorm_min()); }
  int64_t groups() const { return (size + kLevelGroup - 1) / kLevelGroup; }
  uint32_t CostOfGroup(int64_t group) const;
  void CountClasses();
  void PutClasses(RansWriter& words, uint32_t* states) const;

  float step_ = 0;
  int16_t levels_[kFrame];
  uint32_t sums_[kFrameGroups], group_costs_[kFrameGroups];
  uint8_t classes_[kFrameGroups];
  int first_class_ = 0, last_class_ = 0;
  int class_frequency_[kLevelClasses];
  uint32_t states_[kRansStates];
  uint16_t words_[2 * (kFrame + kFrameGroups) + kSpellingSpare / kWord];  // the last first
  int64_t spelled_ = 0;                                                   // words
};

// Frequencies out of 2^kClassBits, at least 1 for each class there is.
void Frame::CountClasses() {
  constexpr int kAll = 1 << kClassBits;
  int counts[kLevelClasses] = {};
  for (int64_t g = 0; g < groups(); ++g) ++counts[classes_[g]];
  first_class_ = static_cast<int>(std::find_if(counts, counts + kLevelClasses, [](int n) { return n > 0; }) - counts);
  last_class_ = first_class_;
  int rest = kAll, most = first_class_;
  for (int c = 0; c < kLevelClasses; ++c) {
    class_frequency_[c] = 0;
    if (counts[c] == 0) continue;
    last_class_ = c;
    if (counts[c] > counts[most]) most = c;
    const auto share = static_cast<int>((int64_t{counts[c]} * kAll + groups() / 2) / groups());
    rest -= class_frequency_[c] = std::max(1, share);
  }
  class_frequency_[most] += rest;
}

uint32_t Frame::CostOfGroup(int64_t group) const {
  const LevelClass of = LevelClasses()[classes_[group]];
  if (of.table == nullptr) return 0;
  const int64_t first = group * kLevelGroup, n = std::min<int64_t>(kLevelGroup, size - first);
  const int16_t* const levels = levels_ + first;
  const uint16_t* const costs = of.table->cost.data();
  uint32_t cost = 0;
  if (of.shift == 0) {
    for (int64_t i = 0; i < n; ++i) cost += costs[std::min(std::abs(levels[i]), kReach + 1)];
    return cost;
  }
  for (int64_t i = 0; i < n; ++i) cost += costs[std::min(std::abs(HighPart(levels[i], of.shift)), kReach + 1)];
  return cost + static_cast<uint32_t>(n * of.shift * kCostUnit);
}

void Frame::Quantise(float step) {
  constexpr float kMost = std::numeric_limits<float>::max();
  step_ = std::max(step, Least());
  // No level's value is infinite. On an infinite grid there is zero alone.
  float most = std::min(static_cast<float>(kMostLevel), std::floor(kMost / step_));
  if (!std::isfinite(step_)) {
    step_ = kMost;
    most = 0;
  }
  LevelsRun(x, size, step_, most, levels_, sums_);
  for (int64_t g = 0; g < groups(); ++g) classes_[g] = static_cast<uint8_t>(LevelClassOf(sums_[g]));
  CountClasses();
}

int64_t Frame::Cost() {
  int64_t cost = CostOfBytes(kFixed);
  for (int64_t g = 0; g < groups(); ++g) cost += group_costs_[g] = CostOfGroup(g);
  if (first_class_ == last_class_) return cost;
  cost += CostOfBytes(last_class_ - first_class_ + 1);
  double class_costs[kLevelClasses] = {};
  for (int c = first_class_; c <= last_class_; ++c)
    class_costs[c] = kCostUnit * (kClassBits - std::log2(std::max(1, class_frequency_[c])));
  double sum = 0;
  for (int64_t g = 0; g < groups(); ++g) sum += class_costs[classes_[g]];
  return cost + static_cast<int64_t>(sum);
}

int64_t Frame::Fit(float guess, int64_t budget) {
  constexpr int kTries = 12;
  constexpr double kMostOctaves = 6;
  const int64_t close = budget / 256;
  const float least = Least();
  // Of steps that cost too much the largest, of those that do not the smallest; and an octave's worth.
  double over = 0, within = std::numeric_limits<double>::infinity(), last = 0, last_cost = 0;
  auto per_octave = 0.75 * static_cast<double>(size * kCostUnit);
  auto step = static_cast<double>(std::max(guess, least));
  int64_t cost = 0;
  for (int i = 0; i < kTries; ++i) {
    Quantise(static_cast<float>(step));
    cost = Cost();
    if (cost <= budget && (budget - cost <= close || step_ <= least)) return cost;
    (cost <= budget ? within : over) = step;
    const double apart = last > 0 ? std::log2(step / last) : 0;
    if (std::abs(apart) > 1e-3 && (last_cost - static_cast<double>(cost)) / apart > 0)
      per_octave = (last_cost - static_cast<double>(cost)) / apart;
    last = step;
    last_cost = static_cast<double>(cost);
    const double octaves = static_cast<double>(cost - budget + close / 2) / per_octave;
    double next = step * std::exp2(std::clamp(octaves, -kMostOctaves, kMostOctaves));
    if (next <= over || next >= within) next = std::sqrt(over * within);
    step = std::max(next, static_cast<double>(least));
    if (step > static_cast<double>(std::numeric_limits<float>::max())) break;
  }
  if (cost <= budget) return cost;
  Quantise(std::isfinite(within) ? static_cast<float>(within) : std::numeric_limits<float>::infinity());
  return Cost();
}

void Frame::PutClasses(RansWriter& words, uint32_t* states) const {
  if (first_class_ == last_class_) return;
  RansSymbol symbols[kLevelClasses];
  uint32_t start = 0;
  for (int c = first_class_; c <= last_class_; ++c) {
    const auto frequency = static_cast<uint32_t>(class_frequency_[c]);
    if (frequency > 0) symbols[c] = RansSymbol::Of(start, frequency, kClassBits);
    start += frequency;
  }
  for (int64_t g = groups() - 1; g >= 0; --g) words.Put(states[g % kRansStates], symbols[classes_[g]], kClassBits);
}

int64_t Frame::Spell() {
  std::fill_n(states_, kRansStates, kRansLeast);
  RansWriter words{words_};
  const int64_t whole = size / kLevelGroup;
  if (whole < groups()) {
    const auto rest = static_cast<int>(size - whole * kLevelGroup);
    SpellGroup(levels_ + whole * kLevelGroup, rest, LevelClasses()[classes_[whole]], states_, words);
  }
  SpellGroups(levels_, classes_, whole, states_, words);
  PutClasses(words, states_);
  spelled_ = words.at - words_;
  const int64_t several = first_class_ == last_class_ ? 0 : last_class_ - first_class_ + 1;
  return kFixed + several + spelled_ * kWord;
}

uint8_t* Frame::Write(uint8_t* at) const {
  std::memcpy(at, &step_, sizeof(step_));
  at += sizeof(step_);
  *at++ = static_cast<uint8_t>(first_class_);
  *at++ = static_cast<uint8_t>(last_class_);
  for (int c = first_class_; c <= last_class_ && first_class_ != last_class_; ++c)
    *at++ = static_cast<uint8_t>(class_frequency_[c]);
  std::memcpy(at, states_, sizeof(states_));
  at += sizeof(states_);
  for (int64_t i = spelled_ - 1; i >= 0; --i, at += kWord) std::memcpy(at, words_ + i, kWord);
  return at;
}

Frame& ThreadsFrame() {
  thread_local const auto frame = std::make_unique<Frame>();
  return *frame;
}

int64_t FramesOf(int64_t size) { return (size + kFrame - 1) / kFrame; }

int64_t BytesOf(double bits, int64_t size) {
  return FramesOf(size) * kHead + kSpare + static_cast<int64_t>(std::ceil(bits * static_cast<double>(size) / 8));
}

// A run of one frame, or of several a sample: groups that lie as far apart as they can.
struct Sample {
  explicit Sample(const CodecInput& input, Frame& into) : frame(into), all(input.size) {
    frame.Clear();
    if (all <= kFrame) {
      frame.Append(input, 0, all);
      return;
    }
    const int64_t apart = std::max<int64_t>(1, all / kLevelGroup / kSampledGroups) * kLevelGroup;
    for (int64_t at = 0; at + kLevelGroup <= all && frame.size < kFrame; at += apart) {
      frame.Append(input, at, kLevelGroup);
      frame_of.push_back(at / kFrame);
    }
  }
  bool tells() const { return frame.has_levels(); }
  float StepOf(double bits, float guess) {
    frame.Fit(guess, all <= kFrame ? CostOfBytes(BytesOf(bits, all) - kSpare)
                                   : CostOfBytes(kFixed) +
                                         static_cast<int64_t>(bits * kCostUnit * static_cast<double>(frame.size)));
    return frame.step();
  }
  // What the run's frames are expected to cost at the step found last.
  std::vector<double> Costs() const {
    std::vector<double> costs(static_cast<size_t>(FramesOf(all)));
    const double each = static_cast<double>(all) / static_cast<double>(frame.size);
    for (size_t g = 0; g < frame_of.size(); ++g)
      costs[static_cast<size_t>(frame_of[g])] += each * frame.group_costs()[g];
    return costs;
  }

  Frame& frame;
  int64_t all;
  std::vector<int64_t> frame_of;  // [group]
};

// Where a run of several frames stands: all take one step, which is mended as it shows what they cost.
class Pace {
 public:
  Pace(double bits, const CodecInput& input, Frame& frame) : to_come_(input.size) {
    if (input.size <= kFrame) return;
    Sample sample(input, frame);
    if (!sample.tells()) return;
    step_ = sample.StepOf(bits, frame.Guess(bits));
    costs_ = sample.Costs();
    for (const double cost : costs_) expected_to_come_ += cost;
    // The sample's own word weighs as much as an eighth of the run.
    spent_ = expected_ = expected_to_come_ / 8;
    elements_ = static_cast<double>(input.size) / 8;
  }
  // Puts the next frame on its grid and spells it, with `room` bytes for it and all behind it. Its bytes.
  int64_t Take(double bits, int64_t room, Frame& frame) {
    int64_t bytes = 0;
    const bool last = to_come_ == frame.size;
    const double expected = costs_.empty() ? 0 : costs_[next_++];
    expected_to_come_ -= expected;
    if (!frame.has_levels()) {
      expected_ += expected;
    } else if (last || step_ == 0) {
      const double share = static_cast<double>(frame.size) / static_cast<double>(to_come_);
      frame.Fit(step_ > 0 ? step_ : frame.Guess(bits),
                static_cast<int64_t>(share * static_cast<double>(CostOfBytes(room))));
      bytes = frame.Spell();
    } else {
      frame.Quantise(step_);
      bytes = frame.Spell();
      double octaves = OctavesOver(bytes, room, expected, to_come_);
      if (std::abs(octaves) > kFarOff) {
        Mend(octaves);
        frame.Quantise(step_);
        bytes = frame.Spell();
      }
      octaves = OctavesOver(bytes, room, expected, to_come_ - frame.size);
      spent_ += static_cast<double>(CostOfBytes(bytes));
      expected_ += expected;
      elements_ += static_cast<double>(frame.size);
      if (std::abs(octaves) < kFarOff) Mend(octaves);
    }
    to_come_ -= frame.size;
    // Frames are fitted by what they should cost, and words may be a few more; a frame unlike the others, many more.
    while (bytes > room) {
      const double octaves = static_cast<double>(CostOfBytes(bytes - room)) /
                             (kBitsPerOctave * kCostUnit * static_cast<double>(frame.size));
      frame.Quantise(frame.step() * static_cast<float>(std::exp2(std::max(octaves, 0.015))));
      bytes = frame.Spell();
    }
    return bytes;
  }

 private:
  static constexpr double kBitsPerOctave = 0.8;  // of an element: some levels are zero whatever the step
  static constexpr double kFarOff = 0.1;         // octaves; what is less is left to the frames behind

  // By how much the step is too small if `elements` are to make up for what is too much, after a frame of `bytes`.
  double OctavesOver(int64_t bytes, int64_t room, double expected, int64_t elements) const {
    const double taken = expected_ + expected, spent = spent_ + static_cast<double>(CostOfBytes(bytes));
    const double behind = taken > 0 ? expected_to_come_ * spent / taken : 0;
    return (static_cast<double>(CostOfBytes(bytes - room)) + behind) /
           (kBitsPerOctave * kCostUnit * static_cast<double>(elements));
  }
  // Another step, and what would have been spent with it.
  void Mend(double octaves) {
    octaves = std::clamp(octaves, -1.0, 1.0);
    step_ = static_cast<float>(static_cast<double>(step_) * std::exp2(octaves));
    spent_ = std::max(spent_ - octaves * kBitsPerOctave * kCostUnit * elements_, spent_ / 4);
  }

  int64_t to_come_;                             // elements
  size_t next_ = 0;                             // frame
  float step_ = 0;                              // 0: a sample tells nothing
  std::vector<double> costs_;                   // [frame], expected of the sample
  double expected_to_come_ = 0, expected_ = 0;  // costs of frames to come, and of those taken
  double spent_ = 0, elements_ = 0;             // on what was taken, and how much it was
};

class Ecsq : public Codec {
 public:
  Ecsq(absl::string_view name, double bits) : name_(name), bits_(bits) {}
  absl::string_view name() const override { return name_; }
  bool exact() const override { return false; }
  bool biased() const override { return true; }
  int64_t block() const override { return kFrame; }
  int64_t Bytes(int64_t size) const override { return BytesOf(bits_, size); }

  Encoded Encode(const CodecInput& input, const CodecKey&, uint8_t* code) const override {
    Encoded encoded;
    uint8_t *at = code, *const end = code + Bytes(input.size);
    Frame& frame = ThreadsFrame();
    Pace pace(bits_, input, frame);
    int64_t frames_behind = FramesOf(input.size);
    for (int64_t first = 0; first < input.size; first += kFrame) {
      frame.Clear();
      frame.Append(input, first, std::min(kFrame, input.size - first));
      --frames_behind;
      const int64_t room = end - at - kSpare - frames_behind * kHead;
      pace.Take(bits_, room, frame);
      encoded.squares += frame.squares;
      encoded.finite = encoded.finite && frame.finite;
      float* const left = input.left == nullptr ? nullptr : input.left + first;
      if (!frame.has_levels()) {
        const float step = frame.finite ? 0 : std::numeric_limits<float>::quiet_NaN();
        std::memcpy(at, &step, sizeof(step));
        at += sizeof(step);
        if (left != nullptr) std::copy(frame.x, frame.x + frame.size, left);
        continue;
      }
      at = frame.Write(at);
      encoded.error_squares += frame.Errors(left);
    }
    std::fill(at, end, uint8_t{0});
    return encoded;
  }

  void Decode(const uint8_t* code, int64_t size, Into into, float* out) const override {
    RansReader reader{code};
    std::vector<int16_t> levels(static_cast<size_t>(std::min(size, kFrame)));
    for (int64_t first = 0; first < size; first += kFrame) {
      const int64_t n = std::min(kFrame, size - first);
      float step;
      std::memcpy(&step, reader.at, sizeof(step));
      reader.at += sizeof(step);
      if (step > 0) {
        DecodeLevels(reader, n, levels.data());
        FromLevelsRun(levels.data(), n, step, into, out + first);
      } else if (std::isnan(step) || into == Into::kOverwrite) {
        std::fill_n(out + first, n, step);
      }
    }
  }

 private:
  static void DecodeLevels(RansReader& reader, int64_t n, int16_t* levels);

  std::string name_;
  double bits_;
};

// Classes of groups from the states that all symbols share.
void DecodeClasses(RansReader& reader, int first, int last, int64_t groups, uint32_t* states, uint8_t* classes) {
  if (first == last) {
    std::fill_n(classes, groups, static_cast<uint8_t>(first));
    return;
  }
  constexpr uint32_t kAll = 1U << kClassBits;
  uint8_t found[kAll] = {};
  uint32_t start[kLevelClasses] = {}, frequency[kLevelClasses] = {}, sum = 0;
  const uint8_t* const frequencies = reader.at - 4 * kRansStates - (last - first + 1);
  for (int c = first; c <= last; ++c) {
    start[c] = sum;
    frequency[c] = frequencies[c - first];
    for (uint32_t i = 0; i < frequency[c]; ++i) found[sum++] = static_cast<uint8_t>(c);
  }
  for (int64_t g = 0; g < groups; ++g) {
    uint32_t& state = states[g % kRansStates];
    const uint32_t slot = state & (kAll - 1);
    classes[g] = found[slot];
    reader.Take(state, frequency[classes[g]], slot - start[classes[g]], kClassBits);
  }
}

void Ecsq::DecodeLevels(RansReader& reader, int64_t n, int16_t* levels) {
  const int first = *reader.at++, last = *reader.at++;
  if (first != last) reader.at += last - first + 1;
  uint32_t states[kRansStates];
  std::memcpy(states, reader.at, sizeof(states));
  reader.at += sizeof(states);
  const int64_t groups = (n + kLevelGroup - 1) / kLevelGroup, whole = n / kLevelGroup;
  uint8_t classes[kFrameGroups];
  DecodeClasses(reader, first, last, groups, states, classes);
  ReadGroups(reader, classes, whole, states, levels);
  if (whole == groups) return;
  const auto rest = static_cast<int>(n - whole * kLevelGroup);
  ReadGroup(reader, rest, LevelClasses()[classes[whole]], states, levels + whole * kLevelGroup);
}

}  // namespace

std::unique_ptr<Codec> MakeEcsq(absl::string_view name, double bits) { return std::make_unique<Ecsq>(name, bits); }

double EcsqErrors(const CodecInput& input, int64_t /*block*/, absl::Span<double> errors) {
  Frame& frame = ThreadsFrame();
  Sample sample(input, frame);
  float steps[std::size(kEcsqBits)];
  for (size_t i = 0; i < errors.size() && sample.tells(); ++i) {
    const double bits = kEcsqBits[i];
    const float guess =
        i == 0 ? frame.Guess(bits) : steps[i - 1] * static_cast<float>(std::exp2(kEcsqBits[i - 1] - bits));
    steps[i] = sample.StepOf(bits, guess);
  }
  std::fill(errors.begin(), errors.end(), 0.0);
  float x[kMostElements];
  double squares = 0;
  for (int64_t at = 0; at < input.size; at += kMostElements) {
    const int64_t n = std::min(kMostElements, input.size - at);
    squares += LoadRun(input, at, n, x).squares;
    if (sample.tells()) StepErrorsRun(x, n, absl::MakeConstSpan(steps, errors.size()), errors.data());
  }
  // A sample of zeros alone.
  if (!sample.tells()) std::fill(errors.begin(), errors.end(), squares);
  return squares;
}

}  // namespace shoal
