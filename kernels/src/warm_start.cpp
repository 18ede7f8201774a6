#include "warm_start.h"

#include <algorithm>
#include <cmath>

#include "grow.h"
#include "prune.h"
#include "schedule.h"

namespace splat2d {
namespace {

constexpr float kThinnest = 0.05f;  // pixels; keeps the factor finite

// Brings what was given to where optimisers keep it: means near the picture, diagonals above zero, shapes neither
// degenerate nor huge. The sign of a column of L means nothing.
void bring_in(Canvas& canvas) {
  Workspace& w = canvas.w;
  const float widest = scale_max_of(w.height, w.width);
  for (int i = 0; i < w.count; ++i) {
    w.param[0][i] = keep_near(w.param[0][i], static_cast<float>(w.width));
    w.param[1][i] = keep_near(w.param[1][i], static_cast<float>(w.height));
    const float l10 = w.param[2][i] < 0.0f ? -w.param[3][i] : w.param[3][i];
    w.param[2][i] = std::clamp(std::abs(w.param[2][i]), kThinnest, widest);
    w.param[3][i] = std::clamp(l10, -widest, widest);
    w.param[4][i] = std::clamp(std::abs(w.param[4][i]), kThinnest, widest);
  }
}

// (l00, l10, l11) to the factor that the optimiser steps on.
void take_factors(Canvas& canvas) {
  Workspace& w = canvas.w;
  for (int i = 0; i < w.count; ++i) {
    const Factor f = factor_of({w.param[2][i], w.param[3][i], w.param[4][i]});
    w.param[2][i] = f.a, w.param[3][i] = f.b, w.param[4][i] = f.c;
  }
  w.cholesky = false;
}

}  // namespace

void warm_start(Canvas& canvas, const Splats& start, const FitOptions& options, int count, int index) {
  const std::size_t at = static_cast<std::size_t>(index) * static_cast<std::size_t>(start.num_gaussians);
  const bool factors = !canvas.w.cholesky;
  canvas.set_count(start.counts ? start.counts[index] : start.num_gaussians);
  canvas.load_splats(start.means + at * 2, start.cholesky + at * 3, start.colors + at * 3);
  bring_in(canvas);
  if (factors) take_factors(canvas);
  canvas.pad_parameters();
  canvas.sort_rows();
  if (canvas.w.count > count) {
    FitOptions dropping;
    dropping.prune_score = PruneScore::loss;
    prune(canvas, dropping, count);
  } else if (canvas.w.count < count) {
    grow(canvas, options, count - canvas.w.count);
  }
}

}  // namespace splat2d
