// powersgd_<rank>: no code of bytes; the matrix travels as factors (parallel/factored_gradients.h), and reductions of
// codes pass it by.
#include <string>

#include "comm/codec/codecs.h"

namespace shoal {
namespace {

class Factored : public Codec {
 public:
  Factored(absl::string_view name, int rank) : name_(name), rank_(rank) {}
  absl::string_view name() const override { return name_; }
  bool exact() const override { return false; }
  bool biased() const override { return true; }
  int factor_rank() const override { return rank_; }
  int64_t block() const override { return 1; }
  int64_t Bytes(int64_t /*size*/) const override { return 0; }
  Encoded Encode(const CodecInput& /*input*/, const CodecKey& /*key*/, uint8_t* /*code*/) const override { return {}; }
  void Decode(const uint8_t* /*code*/, int64_t /*size*/, Into /*into*/, float* /*out*/) const override {}

 private:
  std::string name_;
  int rank_;
};

}  // namespace

std::unique_ptr<Codec> MakeFactored(absl::string_view name, int rank) { return std::make_unique<Factored>(name, rank); }

}  // namespace shoal
