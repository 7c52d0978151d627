// Spectra of a model's hidden matrices: while it trains, and of checkpoints. The diagnostic itself is optim/spectral.h.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "comm/communicator.h"
#include "parallel/data_parallel.h"
#include "runtime/base/thread_pool.h"
#include "runtime/obs/step_record.h"

namespace shoal {

// Of every hidden matrix among `params` with the weights of `dp`, the same on every rank; each rank measures its share.
// Collective over `ranks`; its only errors are that communication's.
absl::StatusOr<std::vector<StepRecord::Spectrum>> MeasureSpectra(absl::Span<const Param* const> params,
                                                                 DataParallel& dp, Communicator& ranks,
                                                                 ThreadPool& pool);

// `inspect --spectral`: a table of the hidden matrices of every run (its checkpoint as FindCheckpoint's), with rate and
// decay of each. Of several, for each kind of matrix the exponent of its growth with the width and the exponent of
// decay that would stop it (FitWidthExponent), or why they cannot be had.
absl::StatusOr<std::string> InspectSpectra(absl::Span<const std::string> runs);

}  // namespace shoal
