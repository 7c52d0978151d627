// The codecs behind MakeCodec, for the registry.
#pragma once

#include <memory>

#include "comm/codec/codec.h"
#include "comm/codec/quantiser_grid.h"

namespace shoal {

std::unique_ptr<Codec> MakeFp32Codec();
std::unique_ptr<Codec> MakeBf16Codec();
// Max-min quantisation of blocks (CGX, arXiv 2111.08617 §4) on grids that hold zero; bits 2..8.
std::unique_ptr<Codec> MakeQuantiser(int bits, Rounding rounding, int64_t block);
// The ceil(density * size) largest by magnitude, ties by lowest index; at least one. `name` is as the user wrote it.
std::unique_ptr<Codec> MakeTopK(absl::string_view name, double density);
// Entropy-coded scalar quantisation of `bits` per element, 144 bytes for every 32 Ki elements and 16.
std::unique_ptr<Codec> MakeEcsq(absl::string_view name, double bits);
std::unique_ptr<Codec> MakeFactored(absl::string_view name, int rank);

// CodecFamily::errors of each.
double Bf16Errors(const CodecInput& input, int64_t block, absl::Span<double> errors);
double NearestErrors(const CodecInput& input, int64_t block, absl::Span<double> errors);
double StochasticErrors(const CodecInput& input, int64_t block, absl::Span<double> errors);
double TopKErrors(const CodecInput& input, int64_t block, absl::Span<double> errors);
double EcsqErrors(const CodecInput& input, int64_t block, absl::Span<double> errors);
inline constexpr int kLeastBits = 2, kMostBits = 8;
inline constexpr double kEcsqBits[] = {1, 1.5, 2, 2.5, 3, 3.5, 4, 5, 6};
inline constexpr double kTopKDensities[] = {0.001, 0.003, 0.01, 0.03, 0.1};

}  // namespace shoal
