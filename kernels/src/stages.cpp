#include "stages.h"

#include <algorithm>

#include "warm_start.h"

namespace splat2d {
namespace {

// Colours are linear: conjugate gradients on the normal equations, each channel a system of its own, in units in
// which every Gaussian has unit L2 norm. Uses adam_m as memory.
void solve_colors(Canvas& canvas, int steps) {
  Workspace& w = canvas.w;
  const std::size_t n = static_cast<std::size_t>(w.padded);
  float* const norm = w.adam_m[6];
  for (std::size_t i = 0; i < n; ++i) {
    Factor f{w.param[2][i], w.param[3][i], w.param[4][i]};
    if (w.cholesky) f = factor_of({f.a, f.b, f.c});
    norm[i] = f.a * f.c / kPi;
  }
  canvas.run({From::target, true, true});
  double before[3] = {0.0, 0.0, 0.0};
  for (std::size_t k = 0; k < 3; ++k) {
    for (std::size_t i = 0; i < n; ++i) {
      const float r = -w.moments[i * 8 + k];
      w.adam_m[3 + k][i] = r;
      w.adam_m[k][i] = r * norm[i];
      before[k] += static_cast<double>(r) * static_cast<double>(r * norm[i]);
    }
    w.color_override[k] = w.adam_m[k];
  }
  for (int step = 0; step < steps; ++step) {
    canvas.engine.pack(w);
    canvas.engine.run(w, {From::zeros, true, true});
    for (std::size_t k = 0; k < 3; ++k) {
      float* d = w.adam_m[k];
      float* r = w.adam_m[3 + k];
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

void load_target(Canvas& canvas, const FitInput& input, int index) {
  const std::size_t size = static_cast<std::size_t>(input.shape.height) * input.shape.width * 3;
  canvas.load_target(input.images + static_cast<std::size_t>(index) * size);
}

void start_fit(Canvas& canvas, const FitInput& input, const FitOptions& options, int index, int number) {
  const std::size_t size = static_cast<std::size_t>(input.shape.height) * input.shape.width * 3;
  const std::uint8_t* image = input.images + static_cast<std::size_t>(index) * size;
  canvas.set_count(number);
  load_target(canvas, input, index);
  canvas.w.cholesky = options.optimizer == Optimizer::adam;
  if (input.start) {
    warm_start(canvas, *input.start, options, number, index);
  } else if (options.init == Init::grid) {
    init_grid(canvas, image);
  } else {
    init_adaptive(canvas, image, options.seed);
  }
  canvas.sort_rows();
  if (options.color_steps > 0) solve_colors(canvas, options.color_steps);
}

void finish_fit(Canvas& canvas, const FitOutput& out, int num_gaussians, int index, int iters) {
  Workspace& w = canvas.w;
  const std::size_t n = static_cast<std::size_t>(num_gaussians), at = static_cast<std::size_t>(index) * n;
  std::fill_n(out.means + at * 2, n * 2, 0.0f);
  std::fill_n(out.cholesky + at * 3, n * 3, 0.0f);
  std::fill_n(out.colors + at * 3, n * 3, 0.0f);
  canvas.store_splats(out.means + at * 2, out.cholesky + at * 3, out.colors + at * 3);
  out.counts[index] = w.count;
  if (out.iters) out.iters[index] = iters;
  canvas.load_splats(out.means + at * 2, out.cholesky + at * 3, out.colors + at * 3);
  double squared = 0.0;
  Pass pass{From::target, true, false};
  pass.squared = &squared;
  canvas.run(pass);
  out.psnr[index] = psnr_of(squared, 3.0 * w.height * w.width);
}

}  // namespace splat2d
