#include "tests/optim/textbook.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <memory>

namespace shoal {
namespace {

struct Adam {
  double b1 = 0.9, b2 = 0.95, eps = 1e-8, lambda = 0.1;
  bool independent = false;
};

void AdamWStep(const Adam& o, const TextbookStep& step, TextbookTensor& x) {
  const double c1 = 1 - std::pow(o.b1, step.t), c2 = 1 - std::pow(o.b2, step.t);
  const double lambda = x.vector() ? 0 : o.lambda;
  for (size_t i = 0; i < x.w.size(); ++i) {
    x.s0[i] = o.b1 * x.s0[i] + (1 - o.b1) * x.g[i];
    x.s1[i] = o.b2 * x.s1[i] + (1 - o.b2) * x.g[i] * x.g[i];
    x.w[i] *= 1 - (o.independent ? step.schedule : step.rate) * lambda;
    x.w[i] -= step.rate * (x.s0[i] / c1) / (std::sqrt(x.s1[i] / c2) + o.eps);
  }
}

struct LambOptions {
  double b1 = 0.9, b2 = 0.999, eps = 1e-6, lambda = 0.01;
  bool bias_correction = true, vectors_adapt = false, trust_clip = false;
  double max_norm = 0;
};

void LambStep(const LambOptions& o, const TextbookStep& step, std::vector<TextbookTensor>& tensors) {
  double all = 0;
  for (const TextbookTensor& x : tensors) all += NormOf(x.g) * NormOf(x.g);
  const double divisor = o.max_norm > 0 ? std::max(1.0, std::sqrt(all) / o.max_norm) : 1;
  const double c1 = o.bias_correction ? 1 - std::pow(o.b1, step.t) : 1;
  const double c2 = o.bias_correction ? 1 - std::pow(o.b2, step.t) : 1;
  for (TextbookTensor& x : tensors) {
    std::vector<double> u(x.w.size());
    for (size_t i = 0; i < u.size(); ++i) {
      const double g = x.g[i] / divisor;
      x.s0[i] = o.b1 * x.s0[i] + (1 - o.b1) * g;
      x.s1[i] = o.b2 * x.s1[i] + (1 - o.b2) * g * g;
      u[i] = (x.s0[i] / c1) / (std::sqrt(x.s1[i] / c2) + o.eps) + (x.vector() ? 0 : o.lambda) * x.w[i];
    }
    double ratio = 1;
    if ((!x.vector() || o.vectors_adapt) && NormOf(x.w) > 0 && NormOf(u) > 0) ratio = NormOf(x.w) / NormOf(u);
    if (o.trust_clip) ratio = std::min(ratio, 1.0);
    for (size_t i = 0; i < u.size(); ++i) x.w[i] -= step.rate * ratio * u[i];
  }
}

struct LarsOptions {
  bool original = true, nesterov = false;
  double trust = 0.02, momentum = 0.9, lambda = 0.01;
};

void LarsStep(const LarsOptions& o, const TextbookStep& step, TextbookTensor& x) {
  const double lambda = x.vector() ? 0 : o.lambda;
  std::vector<double> d(x.w.size());
  for (size_t i = 0; i < d.size(); ++i) d[i] = x.g[i] + lambda * x.w[i];
  double local = 1;
  const double w = NormOf(x.w), below = o.original ? NormOf(x.g) + lambda * w : NormOf(d);
  if (!x.vector() && w > 0 && below > 0) local = o.trust * w / below;
  for (size_t i = 0; i < d.size(); ++i) {
    const double update = step.rate * local * d[i];
    x.s0[i] = o.momentum * x.s0[i] + update;
    x.w[i] -= o.nesterov ? update + o.momentum * x.s0[i] : x.s0[i];
  }
}

void SgdStep(bool nesterov, const TextbookStep& step, TextbookTensor& x) {
  for (size_t i = 0; i < x.w.size(); ++i) {
    const double g = x.g[i] + (x.vector() ? 0 : 0.01) * x.w[i];
    x.s0[i] = 0.8 * x.s0[i] + g;
    x.w[i] -= step.rate * (nesterov ? g + 0.8 * x.s0[i] : x.s0[i]);
  }
}

void AdaGradStep(const TextbookStep& step, TextbookTensor& x) {
  for (size_t i = 0; i < x.w.size(); ++i) {
    const double g = x.g[i] + (x.vector() ? 0 : 0.01) * x.w[i];
    x.s0[i] += g * g;
    x.w[i] -= step.rate * g / (std::sqrt(0.1 + x.s0[i]) + 1e-10);
  }
}

struct MuonOptions {
  config::MuonConfig::Coefficients coefficients = config::MuonConfig::KELLER;
  config::MuonConfig::Scale scale = config::MuonConfig::KELLER_SCALE;
  bool nesterov = true;
  double momentum = 0.95, lambda = 0.1;
  enum class Noise { kNone, kNuclear, kFrobenius } noise = Noise::kNone;
  double noise_beta = 0.9, alpha = 3;
};

double Scale(config::MuonConfig::Scale scale, double out, double in) {
  if (scale == config::MuonConfig::KELLER_SCALE) return std::sqrt(std::max(1.0, out / in));
  if (scale == config::MuonConfig::MOONLIGHT) return 0.2 * std::sqrt(std::max(out, in));
  return std::sqrt(out / in);
}

// The nuclear norm as the program estimates it, <D, NS(D)>, or its Frobenius bound.
double NoiseNorm(const MuonOptions& o, int64_t rows, int64_t columns, const std::vector<double>& d) {
  if (o.noise == MuonOptions::Noise::kFrobenius)
    return std::sqrt(static_cast<double>(std::min(rows, columns))) * NormOf(d);
  std::vector<double> factor = d;
  TextbookNewtonSchulz(o.coefficients, rows, columns, factor);
  double dot = 0;
  for (size_t i = 0; i < d.size(); ++i) dot += d[i] * factor[i];
  return dot;
}

void MuonStep(const MuonOptions& o, const TextbookStep& step, std::vector<TextbookTensor>& tensors) {
  const bool noise = o.noise != MuonOptions::Noise::kNone;
  double least = 1e300;
  for (TextbookTensor& x : tensors) {
    if (!noise || x.param_class != ParamClass::kMatrix) continue;
    const int64_t rows = x.shape[0], columns = static_cast<int64_t>(x.w.size()) / rows;
    std::vector<double> difference(x.g.size());
    for (size_t i = 0; i < x.g.size(); ++i) difference[i] = x.g[i] - x.s1[i];
    if (step.t > 1) {
      const double norm = NoiseNorm(o, rows, columns, difference);
      x.scalar = o.noise_beta * x.scalar + (1 - o.noise_beta) * norm * norm;
    }
    x.s1 = x.g;
    least = std::min(least, x.scalar);
  }
  for (TextbookTensor& x : tensors) {
    if (x.param_class != ParamClass::kMatrix) {
      AdamWStep({}, step, x);
      continue;
    }
    const int64_t rows = x.shape[0], columns = static_cast<int64_t>(x.w.size()) / rows;
    std::vector<double> u(x.w.size());
    for (size_t i = 0; i < u.size(); ++i) {
      x.s0[i] = o.momentum * x.s0[i] + (1 - o.momentum) * x.g[i];
      u[i] = o.nesterov ? (1 - o.momentum) * x.g[i] + o.momentum * x.s0[i] : x.s0[i];
    }
    TextbookNewtonSchulz(o.coefficients, rows, columns, u);
    double rate = step.rate;
    if (noise) {
      const auto a = [&](double h) { return o.alpha / std::sqrt(o.alpha * o.alpha + h); };
      rate *= std::sqrt(a(x.scalar) / a(least));
    }
    const double scale = Scale(o.scale, static_cast<double>(rows), static_cast<double>(columns));
    for (size_t i = 0; i < u.size(); ++i) x.w[i] = (1 - step.rate * o.lambda) * x.w[i] - rate * scale * u[i];
  }
}

// A textbook whose step treats one tensor at a time.
template <class F>
Textbook PerTensor(F step) {
  return [step](const TextbookStep& s, std::vector<TextbookTensor>& tensors) {
    for (TextbookTensor& x : tensors) step(s, x);
  };
}

void AddLamb(std::vector<OptimizerRow>& rows) {
  using config::LambConfig;
  const auto add = [&](const char* name, LambConfig::Preset preset, const LambOptions& o) {
    config::OptimConfig config;
    config.mutable_lamb()->set_preset(preset);
    config.mutable_lamb()->set_weight_decay(o.lambda);
    config.mutable_lamb()->set_bias_correction(o.bias_correction);
    rows.push_back({name, config, [o](const TextbookStep& s, std::vector<TextbookTensor>& t) { LambStep(o, s, t); }});
  };
  add("lamb_tfa", LambConfig::TFA, {});
  add("lamb_optax", LambConfig::OPTAX, {.vectors_adapt = true});
  add("lamb_apex", LambConfig::APEX, {.max_norm = 1});
  add("lamb_nvlamb", LambConfig::NVLAMB, {.vectors_adapt = true, .max_norm = 1});
  add("lamb_lambc", LambConfig::LAMBC, {.trust_clip = true, .max_norm = 1});
  add("lamb_no_bias_correction", LambConfig::TFA, {.bias_correction = false});
  add("lamb_no_decay", LambConfig::TFA, {.lambda = 0});
}

void AddMuon(std::vector<OptimizerRow>& rows) {
  using config::MuonConfig;
  using Noise = MuonOptions::Noise;
  const auto add = [&](const char* name, const MuonOptions& o) {
    config::OptimConfig config;
    MuonConfig& muon = *config.mutable_muon();
    muon.set_coefficients(o.coefficients);
    muon.set_scale(o.scale);
    muon.set_nesterov(o.nesterov);
    if (o.noise != Noise::kNone) {
      muon.mutable_noise_adaptive()->set_beta2(o.noise_beta);
      muon.mutable_noise_adaptive()->set_alpha(o.alpha);
      muon.mutable_noise_adaptive()->set_norm(o.noise == Noise::kNuclear ? MuonConfig::NoiseAdaptive::NUCLEAR
                                                                         : MuonConfig::NoiseAdaptive::FROBENIUS);
    }
    // Five steps enlarge the rounding of small singular values up to a thousandfold.
    rows.push_back(
        {name, config, [o](const TextbookStep& s, std::vector<TextbookTensor>& t) { MuonStep(o, s, t); }, 2e-5});
  };
  add("muon", {});
  add("muon_plain", {.nesterov = false});
  add("muon_moonlight", {.scale = MuonConfig::MOONLIGHT});
  add("muon_polar_express", {.coefficients = MuonConfig::POLAR_EXPRESS, .scale = MuonConfig::SPECTRAL});
  add("muon_noise_nuclear", {.noise = Noise::kNuclear});
  add("muon_noise_frobenius", {.noise = Noise::kFrobenius});
}

void AddLars(std::vector<OptimizerRow>& rows) {
  const auto add = [&](const char* name, const LarsOptions& o) {
    config::OptimConfig config;
    config.mutable_lars()->set_form(o.original ? config::LarsConfig::ORIGINAL : config::LarsConfig::OPTAX);
    config.mutable_lars()->set_nesterov(o.nesterov);
    config.mutable_lars()->set_trust_coefficient(o.trust);
    config.mutable_lars()->set_weight_decay(o.lambda);
    rows.push_back({name, config, PerTensor([o](const TextbookStep& s, TextbookTensor& x) { LarsStep(o, s, x); })});
  };
  add("lars_original", {});
  add("lars_optax", {.original = false});
  add("lars_optax_nesterov", {.original = false, .nesterov = true});
}

}  // namespace

double NormOf(const std::vector<double>& x) {
  double sum = 0;
  for (double v : x) sum += v * v;
  return std::sqrt(sum);
}

void TextbookNewtonSchulz(config::MuonConfig::Coefficients coefficients, int64_t rows, int64_t columns,
                          std::vector<double>& x) {
  using Quintic = std::array<double, 3>;
  const bool polar = coefficients == config::MuonConfig::POLAR_EXPRESS;
  const Quintic keller = {3.4445, -4.7750, 2.0315};
  const std::array<Quintic, 5> steps =
      polar ? std::array<Quintic, 5>{{{8.156554524902461, -22.48329292557795, 15.878769915207462},
                                      {4.042929935166739, -2.808917465908714, 0.5000178451051316},
                                      {3.8916678022926607, -2.772484153217685, 0.5060648178503393},
                                      {3.285753657755655, -2.3681294933425376, 0.46449024233003106},
                                      {2.3465413258596377, -1.7097828382687081, 0.42323551169305323}}}
            : std::array<Quintic, 5>{keller, keller, keller, keller, keller};
  const double norm = NormOf(x) * (polar ? 1.01 : 1) + 1e-7;
  for (double& v : x) v /= norm;
  for (const Quintic& q : steps) {
    std::vector<double> gram(rows * rows), inner(rows * rows), next(x.size());
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = 0; j < rows; ++j) {
        for (int64_t k = 0; k < columns; ++k) gram[i * rows + j] += x[i * columns + k] * x[j * columns + k];
      }
    }
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = 0; j < rows; ++j) {
        double square = 0;
        for (int64_t k = 0; k < rows; ++k) square += gram[i * rows + k] * gram[k * rows + j];
        inner[i * rows + j] = q[1] * gram[i * rows + j] + q[2] * square;
      }
    }
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t k = 0; k < rows; ++k) {
        for (int64_t j = 0; j < columns; ++j) next[i * columns + j] += inner[i * rows + k] * x[k * columns + j];
      }
    }
    for (size_t i = 0; i < x.size(); ++i) x[i] = q[0] * x[i] + next[i];
  }
}

std::vector<OptimizerRow> OptimizerTable() {
  std::vector<OptimizerRow> rows;
  for (const bool independent : {false, true}) {
    config::OptimConfig config;
    config.mutable_adamw()->set_decay(independent ? config::INDEPENDENT : config::COUPLED_TO_RATE);
    rows.push_back({independent ? "adamw_independent" : "adamw", config,
                    PerTensor([independent](const TextbookStep& s, TextbookTensor& x) {
                      AdamWStep({.independent = independent}, s, x);
                    })});
  }
  for (const bool nesterov : {false, true}) {
    config::OptimConfig config;
    config.mutable_sgd()->set_momentum(0.8);
    config.mutable_sgd()->set_weight_decay(0.01);
    config.mutable_sgd()->set_nesterov(nesterov);
    rows.push_back({nesterov ? "sgd_nesterov" : "sgd", config,
                    PerTensor([nesterov](const TextbookStep& s, TextbookTensor& x) { SgdStep(nesterov, s, x); })});
  }
  AddLamb(rows);
  AddLars(rows);
  AddMuon(rows);
  config::OptimConfig adagrad;
  adagrad.mutable_adagrad()->set_weight_decay(0.01);
  adagrad.mutable_adagrad()->set_initial_accumulator(0.1);
  rows.push_back({"adagrad", adagrad, PerTensor(AdaGradStep)});
  config::OptimConfig adagrad_norm;
  adagrad_norm.mutable_adagrad_norm();
  rows.push_back({"adagrad_norm", adagrad_norm, [](const TextbookStep& s, std::vector<TextbookTensor>& tensors) {
                    double& sum = tensors[0].scalar;
                    for (const TextbookTensor& x : tensors) sum += NormOf(x.g) * NormOf(x.g);
                    for (TextbookTensor& x : tensors) {
                      for (size_t i = 0; i < x.w.size(); ++i) x.w[i] -= s.rate * x.g[i] / std::sqrt(0.01 + sum);
                    }
                  }});
  return rows;
}

}  // namespace shoal
