#include "warm_start.h"

#include <algorithm>
#include <cmath>

#include "grow.h"
#include "prune.h"

namespace splat2d {
namespace {

constexpr float kThinnest = 0.05f;  // pixels; keeps the factor finite

// (l00, l10, l11) to the factor that the optimiser steps on, kept apart from degenerate shapes.
void take_factors(Canvas& canvas) {
  Workspace& w = canvas.w;
  for (int i = 0; i < w.count; ++i) {
    const float l00 = std::max(std::abs(w.param[2][i]), kThinnest);
    const float l11 = std::max(std::abs(w.param[4][i]), kThinnest);
    const Factor f = factor_of({l00, w.param[3][i], l11});
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
