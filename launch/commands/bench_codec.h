// Measurements of codecs, a line of JSON.
#pragma once

#include "absl/status/status.h"
#include "launch/commands.h"

namespace shoal {

// Of args.codec, or of every codec in the registry: bits per element, relative error, contraction with error feedback,
// and seconds of args.steps encodings, decodings and error passes of args.parameters elements on one core, in turn with
// as many copies of them. Of PowerSGD: of the factors of one matrix that they fill, which are not added to what is
// there. InvalidArgument where they make no matrix of its rank.
absl::Status BenchCodec(const BenchArgs& args);

}  // namespace shoal
