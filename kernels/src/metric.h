// The gradient of a fit whose loss weighs the residual patch by patch (FitInput::metric).
#pragma once

#include "memory.h"
#include "splat2d/fit.h"
#include "workspace.h"

namespace splat2d {

// The metric's matrix F and its transpose, padded as Engine::multiply wants them. Shared by all threads.
class PatchMetric {
 public:
  explicit PatchMetric(const Metric& metric);

  const int patch, size;    // pixels a side; values of a patch, 3 patch^2
  const int padded, rows;   // size and the number of F's rows, rounded up to kMetricColumns
  Aligned<float> forward;   // F^T: [padded][rows]
  Aligned<float> backward;  // F: [rows][padded]
};

// One thread's memory for it.
class MetricPass {
 public:
  MetricPass(const PatchMetric& metric, int height, int width);

  // The moments of R + F^T F R instead of those of the residual R. The sum of R's squares is added to *squared if that
  // is not null.
  void run(Canvas& canvas, double* squared);

 private:
  const PatchMetric& metric_;
  Aligned<float> picture_, patches_, seen_, weighed_;  // [H][W][3]; patches, F times them, F^T times that
};

}  // namespace splat2d
