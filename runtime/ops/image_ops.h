// Ops of image models. The rules of ops.h hold: outputs are overwritten unless stated, dtypes f32, bf16 (fp32 inside)
// and f64, one dtype per call except where stated, contiguous tensors, results that do not depend on the number of
// threads, kMeta only adds to ctx.cost (and takes the same workspace from the arena).
//
// Images are NHWC ("channels-last"): a pixel's channels lie side by side. Legend of shape suffixes: N images, H and W
// rows and columns in, P and Q rows and columns out, C channels (in), O channels out, K the side of a square kernel.
#pragma once

#include <cstdint>

#include "runtime/base/rng.h"
#include "runtime/ops/op_context.h"
#include "runtime/ops/ops.h"
#include "runtime/tensor/arena.h"
#include "runtime/tensor/tensor.h"

namespace shoal::ops {

// How a convolution is computed. kAuto picks by shape; the others force one way, for tests and `shoal bench conv`:
//   kIm2col    GEMMs over unfolded pixels
//   kMatmul    one product of matrices: 1x1 kernels with stride 1, one group and no padding
//   kTaps      multiply-adds over the taps that meet the image, f32 and bf16
//   kWinograd  F(2x2, 3x3): 3x3 kernels with stride 1, one group, at least 16 channels in and out, padding of at most
//              2; f32 and bf16
// A way that does not serve a shape is a CHECK.
enum class ConvPath : uint8_t { kAuto, kIm2col, kMatmul, kTaps, kWinograd };

// Kernel height and width come from the weight; `padding` zeros surround the image on all four sides; group g of
// O/groups outputs reads group g of C/groups inputs.
struct Conv2dOptions {
  int64_t stride = 1, padding = 0, groups = 1;
  ConvPath path = ConvPath::kAuto;
};
// Rows (or columns) out for `in` rows in: floor((in + 2 padding - kernel) / stride) + 1, at least 0.
int64_t ConvExtent(int64_t in, int64_t kernel, int64_t stride, int64_t padding);

// Whether options.path serves a convolution of x with this weight in `dtype`.
bool ConvServes(const Shape& x, const Shape& weight, DType dtype, const Conv2dOptions& options);

// y_NPQO = x_NHWC convolved with weight [O, K, K, C/groups] (cross-correlation, as everywhere in the field).
void Conv2dFwd(OpContext& ctx, Arena& workspace, const Tensor& x, const Tensor& weight, const Tensor& y,
               const Conv2dOptions& options);
// dx_NHWC = gradient of x from dy_NPQO.
void Conv2dBwdInput(OpContext& ctx, Arena& workspace, const Tensor& dy, const Tensor& weight, const Tensor& dx,
                    const Conv2dOptions& options);
// dweight (=|+=) gradient of the weight; dweight is f32 (f64 for f64).
void Conv2dBwdWeight(OpContext& ctx, Arena& workspace, const Tensor& dy, const Tensor& x, const Tensor& dweight,
                     Accumulate accumulate, const Conv2dOptions& options);

// Batch norm in parts, so that the caller can sum the statistics over ranks in between. x is [..., C] of any rank.
// mean_C, rstd_C are f32 (f64 for f64); weight_C and bias_C are f32 or of x's dtype; sums are f64.
//   forward:  BatchNormSums -> (all-reduce) -> mean = sum / count, rstd = 1/sqrt(squares / count - mean^2 + epsilon)
//             -> BatchNormFwd
//   backward: BatchNormBwdSums -> (all-reduce) -> BatchNormBwdInput; the rank's own sums are dbias and dweight.

// sums_2C (f64) = sum over pixels of x, sum over pixels of x^2.
void BatchNormSums(OpContext& ctx, const Tensor& x, const Tensor& sums);
enum class Relu : uint8_t { kNo, kYes };
// What forward and backward of a normalisation share. The backward recomputes the ReLU's mask from x (and residual), so
// the output need not be kept.
struct BatchNormInputs {
  Tensor x = {}, residual = {};  // residual: undefined = none
  Tensor mean = {}, rstd = {}, weight = {}, bias = {};
  Relu relu = Relu::kNo;
};
// y = relu((x - mean) * rstd * weight + bias + residual) in one pass; y may alias x or residual.
void BatchNormFwd(OpContext& ctx, const BatchNormInputs& in, const Tensor& y);
// With g = dy where the ReLU let pass, 0 elsewhere, and xhat = (x - mean) * rstd: sums_2C (f64) = sum of g, sum of
// g * xhat.
void BatchNormBwdSums(OpContext& ctx, const Tensor& dy, const BatchNormInputs& in, const Tensor& sums);
// dx = weight * rstd * (g - sums[0] / count - xhat * sums[1] / count); dresidual = g (undefined: not wanted). `count`
// pixels went into the sums, over all ranks. dx may alias dy or x, dresidual may alias dy or residual; dx and dresidual
// differ.
void BatchNormBwdInput(OpContext& ctx, const Tensor& dy, const BatchNormInputs& in, const Tensor& sums, double count,
                       const Tensor& dx, const Tensor& dresidual);

// Max-pooling with windows of size x size, at most 15 x 15. argmax_NPQC (u8): which pixel of the window, row by row;
// of equal ones the first; NaN wins.
struct PoolOptions {
  int64_t size = 3, stride = 2, padding = 1;  // padding is never the maximum; less than size
};
void MaxPoolFwd(OpContext& ctx, const Tensor& x, const Tensor& y, const Tensor& argmax, const PoolOptions& options);
void MaxPoolBwd(OpContext& ctx, const Tensor& dy, const Tensor& argmax, const Tensor& dx, const PoolOptions& options);
// Mean of 2x2 pixels at stride 2; of an odd extent the last window averages the pixels that exist, so P = ceil(H / 2).
void AvgPoolFwd(OpContext& ctx, const Tensor& x, const Tensor& y);
void AvgPoolBwd(OpContext& ctx, const Tensor& dy, const Tensor& dx);
// [N, H, W, C] -> [N, C] and back.
void GlobalAvgPoolFwd(OpContext& ctx, const Tensor& x, const Tensor& y);
void GlobalAvgPoolBwd(OpContext& ctx, const Tensor& dy, const Tensor& dx);

// Elementwise on tensors of any shape. In the backward, `y` is the forward's output. Outputs may alias any input.
void ReluFwd(OpContext& ctx, const Tensor& x, const Tensor& y);
void ReluBwd(OpContext& ctx, const Tensor& dy, const Tensor& y, const Tensor& dx);
void SigmoidFwd(OpContext& ctx, const Tensor& x, const Tensor& y);
void SigmoidBwd(OpContext& ctx, const Tensor& dy, const Tensor& y, const Tensor& dx);

// Squeeze-and-excitation's product: y_NHWC = x_NHWC * s_NC (y may alias x); dx = dy * s (may alias dy), ds_NC = sum
// over pixels of dy * x.
void ChannelScaleFwd(OpContext& ctx, const Tensor& x, const Tensor& s, const Tensor& y);
void ChannelScaleBwd(OpContext& ctx, const Tensor& dy, const Tensor& x, const Tensor& s, const Tensor& dx,
                     const Tensor& ds);

// Stochastic depth (arXiv 1603.09382): y_n = x_n / (1 - rate), or 0 for samples that are dropped: those with
// Rng(key).Uniform(counter_n, 0) < rate. sample_counters_N: i64. The same call on dy is the backward. y may alias x.
void DropPath(OpContext& ctx, const Tensor& x, float rate, const RngKey& key, const Tensor& sample_counters,
              const Tensor& y);

}  // namespace shoal::ops
