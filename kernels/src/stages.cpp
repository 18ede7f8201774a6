#include "stages.h"

#include <algorithm>
#include <cmath>
#include <vector>

namespace splat2d {
namespace {

// Colours are linear: conjugate gradients on the normal equations, each channel a system of its own, in units in
// which every Gaussian has unit L2 norm. Uses adam_m as memory.
void solve_colors(Canvas& canvas, int steps) {
  Workspace& w = canvas.w;
  const std::size_t n = static_cast<std::size_t>(w.padded);
  std::vector<float> norm(n), direction(3 * n), residual(3 * n);
  for (std::size_t i = 0; i < n; ++i) {
    Factor f{w.param[2][i], w.param[3][i], w.param[4][i]};
    if (w.cholesky) f = factor_of({f.a, f.b, f.c});
    norm[i] = f.a * f.c / kPi;
  }
  canvas.run({w.base, nullptr, true, true});
  double before[3] = {0.0, 0.0, 0.0};
  for (std::size_t k = 0; k < 3; ++k) {
    for (std::size_t i = 0; i < n; ++i) {
      const float r = -w.moments[i * 8 + k];
      residual[k * n + i] = r;
      direction[k * n + i] = r * norm[i];
      before[k] += static_cast<double>(r) * static_cast<double>(r * norm[i]);
    }
    w.color_override[k] = direction.data() + k * n;
  }
  for (int step = 0; step < steps; ++step) {
    canvas.engine.pack(w);
    canvas.engine.run(w, {nullptr, nullptr, true, true});
    for (std::size_t k = 0; k < 3; ++k) {
      float* d = direction.data() + k * n;
      float* r = residual.data() + k * n;
      double curvature = 0.0, after = 0.0;
      for (std::size_t i = 0; i < n; ++i) curvature += static_cast<double>(d[i]) * w.moments[i * 8 + k];
      if (!(curvature > 1e-20) || !(before[k] > 0.0)) continue;
      const float alpha = static_cast<float>(before[k] / curvature);
      for (std::size_t i = 0; i < n; ++i) {
        w.param[5 + k][i] += alpha * d[i];
        r[i] -= alpha * w.moments[i * 8 + k];
        after += static_cast<double>(r[i]) * static_cast<double>(r[i] * norm[i]);
      }
      const float beta = static_cast<float>(after / before[k]);
      for (std::size_t i = 0; i < n; ++i) d[i] = r[i] * norm[i] + beta * d[i];
      before[k] = after;
    }
  }
  for (float*& override : w.color_override) override = nullptr;
}

}  // namespace

void start_fit(Canvas& canvas, const std::uint8_t* image, const FitOptions& options, const Curve* curve,
               int num_gaussians) {
  canvas.set_count(num_gaussians);
  canvas.load_target(image);
  canvas.w.cholesky = options.optimizer == Optimizer::adam;
  if (options.init == Init::grid) {
    init_grid(canvas, image);
  } else {
    init_adaptive(canvas, image, *curve, options.seed);
  }
  canvas.sort_rows();
  if (options.color_steps > 0) solve_colors(canvas, options.color_steps);
}

StepSettings settings_at(const FitOptions& o, int height, int width, int it, int num_iters, float rate) {
  const double phase = num_iters > 1 ? static_cast<double>(it) / (num_iters - 1) : 0.0;
  const double cosine = 0.5 * (1.0 + std::cos(3.14159265358979 * phase));
  const float scale = rate * static_cast<float>(o.lr_final + (1.0 - o.lr_final) * cosine);
  StepSettings s{};
  s.lr_position = o.lr_position * scale;
  s.lr_shape = o.lr_shape * scale;
  s.lr_color = o.lr_color * scale;
  s.beta1 = o.beta1;
  s.beta2 = o.beta2;
  s.correction1 = static_cast<float>(1.0 / (1.0 - std::pow(static_cast<double>(o.beta1), it + 1)));
  s.correction2 = static_cast<float>(1.0 / (1.0 - std::pow(static_cast<double>(o.beta2), it + 1)));
  s.epsilon = o.epsilon;
  s.lambda = static_cast<float>(o.lambda_color * 0.5 * height * width);
  s.width = static_cast<float>(width);
  s.height = static_cast<float>(height);
  s.scale_min = o.scale_min;
  // 100 px at 224 px; small pictures keep room for one Gaussian that covers them.
  s.scale_max = 0.45f * static_cast<float>(std::max(width, height)) + 2.0f;
  return s;
}

bool prune(Canvas& canvas, const FitOptions& options) {
  if (!(options.prune_threshold > 0.0f)) return false;
  Workspace& w = canvas.w;
  const int before = w.count;
  int kept = 0;
  for (int i = 0; i < before; ++i) {
    const float score = 0.2126f * absolute(w.param[5][i]) + 0.7152f * absolute(w.param[6][i]) +
                        0.0722f * absolute(w.param[7][i]);
    if (score < options.prune_threshold) continue;
    for (float* values : w.param) values[kept] = values[i];
    ++kept;
  }
  canvas.set_count(kept);
  return options.refit_iters > 0 && kept > 0 && kept < before;
}

void finish_fit(Canvas& canvas, const FitOutput& out, int num_gaussians, int index) {
  Workspace& w = canvas.w;
  const std::size_t n = static_cast<std::size_t>(num_gaussians), at = static_cast<std::size_t>(index) * n;
  std::fill_n(out.means + at * 2, n * 2, 0.0f);
  std::fill_n(out.cholesky + at * 3, n * 3, 0.0f);
  std::fill_n(out.colors + at * 3, n * 3, 0.0f);
  canvas.store_splats(out.means + at * 2, out.cholesky + at * 3, out.colors + at * 3);
  out.counts[index] = w.count;
  canvas.load_splats(out.means + at * 2, out.cholesky + at * 3, out.colors + at * 3);
  canvas.run({w.base, canvas.plane(1), true, false});
  out.psnr[index] = psnr_of(canvas.squared_sum(canvas.plane(1)), 3.0 * w.height * w.width);
}

}  // namespace splat2d
