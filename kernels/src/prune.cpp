#include "prune.h"

namespace splat2d {

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

}  // namespace splat2d
