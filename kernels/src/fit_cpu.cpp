// Fitting one picture in one thread, and batches over threads.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <optional>
#include <vector>

#include "init.h"
#include "parallel.h"
#include "workspace.h"

namespace splat2d {
namespace {

constexpr int kSortEvery = 16;  // iterations between sorts by row; the order only decides what shares a cache line

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

// Iterations with a cosine schedule from the full learning rates down to lr_final of them. False: stopped.
bool optimise(Canvas& canvas, const FitOptions& o, int num_iters, float rate, const Stopped& stopped) {
  Workspace& w = canvas.w;
  canvas.clear_state();
  const double pixels = static_cast<double>(w.height) * w.width;
  StepSettings s{};
  s.beta1 = o.beta1;
  s.beta2 = o.beta2;
  s.epsilon = o.epsilon;
  s.lambda = static_cast<float>(o.lambda_color * pixels / 2.0);
  s.width = static_cast<float>(w.width);
  s.height = static_cast<float>(w.height);
  s.scale_min = o.scale_min;
  // 100 px at 224 px; small pictures keep room for one Gaussian that covers them.
  s.scale_max = 0.45f * static_cast<float>(std::max(w.width, w.height)) + 2.0f;
  double power1 = 1.0, power2 = 1.0;
  for (int it = 0; it < num_iters; ++it) {
    if (stopped()) return false;
    if (it % kSortEvery == 0) canvas.sort_rows();
    canvas.run({w.base, nullptr, true, true});
    power1 *= static_cast<double>(o.beta1);
    power2 *= static_cast<double>(o.beta2);
    const double phase = num_iters > 1 ? static_cast<double>(it) / (num_iters - 1) : 0.0;
    const double cosine = 0.5 * (1.0 + std::cos(3.14159265358979 * phase));
    const float scale = rate * static_cast<float>(o.lr_final + (1.0 - o.lr_final) * cosine);
    s.lr_position = o.lr_position * scale;
    s.lr_shape = o.lr_shape * scale;
    s.lr_color = o.lr_color * scale;
    s.correction1 = static_cast<float>(1.0 / (1.0 - power1));
    s.correction2 = static_cast<float>(1.0 / (1.0 - power2));
    const auto* arguments = reinterpret_cast<const StepArguments*>(&s);
    (o.optimizer == Optimizer::adam ? canvas.engine.adam : canvas.engine.natural)(w, arguments);
    canvas.pad_parameters();
  }
  return true;
}

// Drops Gaussians whose luminance score is under the threshold; keeps the order of the others.
int prune(Canvas& canvas, float threshold) {
  Workspace& w = canvas.w;
  int kept = 0;
  for (int i = 0; i < w.count; ++i) {
    const float score = 0.2126f * absolute(w.param[5][i]) + 0.7152f * absolute(w.param[6][i]) +
                        0.0722f * absolute(w.param[7][i]);
    if (score < threshold) continue;
    for (float* values : w.param) values[kept] = values[i];
    ++kept;
  }
  canvas.set_count(kept);
  return kept;
}

void fit_one(Canvas& canvas, const std::uint8_t* image, const FitOptions& o, const Curve* curve, int num_gaussians,
             const FitOutput& out, int index, const Stopped& stopped) {
  Workspace& w = canvas.w;
  canvas.set_count(num_gaussians);
  canvas.load_target(image);
  w.cholesky = o.optimizer == Optimizer::adam;
  if (o.init == Init::grid) {
    init_grid(canvas, image);
  } else {
    init_adaptive(canvas, image, *curve, o.seed);
  }
  canvas.sort_rows();
  if (o.color_steps > 0) solve_colors(canvas, o.color_steps);
  if (!optimise(canvas, o, o.num_iters, 1.0f, stopped)) return;
  if (o.prune_threshold > 0.0f) {
    const int kept = prune(canvas, o.prune_threshold);
    if (kept > 0 && o.refit_iters > 0 && kept < num_gaussians &&
        !optimise(canvas, o, o.refit_iters, 0.3f, stopped))
      return;
  }
  const std::size_t n = static_cast<std::size_t>(num_gaussians), at = static_cast<std::size_t>(index) * n;
  std::fill_n(out.means + at * 2, n * 2, 0.0f);
  std::fill_n(out.cholesky + at * 3, n * 3, 0.0f);
  std::fill_n(out.colors + at * 3, n * 3, 0.0f);
  canvas.store_splats(out.means + at * 2, out.cholesky + at * 3, out.colors + at * 3);
  out.counts[index] = w.count;
  // Measured on what is handed out, by the code that `render` runs.
  canvas.load_splats(out.means + at * 2, out.cholesky + at * 3, out.colors + at * 3);
  canvas.run({w.base, canvas.plane(1), true, false});
  out.psnr[index] = psnr_of(canvas.squared_sum(canvas.plane(1)), 3.0 * w.height * w.width);
}

}  // namespace

bool fit(const std::uint8_t* images, PictureShape shape, int num_gaussians, const FitOptions& options, int threads,
         const FitOutput& out, const Poll& poll) {
  const Engine& chosen = engine();
  std::optional<Curve> curve;
  if (options.init == Init::adaptive) curve.emplace(shape.height, shape.width);
  const int workers = thread_count(threads, shape.batch);
  std::vector<std::unique_ptr<Canvas>> canvases(static_cast<std::size_t>(workers));
  const std::size_t size = static_cast<std::size_t>(shape.height) * shape.width * 3;
  const auto body = [&](int worker, int index, const Stopped& stopped) {
    auto& canvas = canvases[static_cast<std::size_t>(worker)];
    if (!canvas) canvas = std::make_unique<Canvas>(chosen, shape.height, shape.width, num_gaussians);
    fit_one(*canvas, images + static_cast<std::size_t>(index) * size, options, curve ? &*curve : nullptr,
            num_gaussians, out, index, stopped);
  };
  return parallel(shape.batch, workers, body, poll);
}

}  // namespace splat2d
