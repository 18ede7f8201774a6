#include "prune.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "splat2d/score.h"

namespace splat2d {

Vector<float> prune_scores(Canvas& canvas, PruneScore kind) {
  Workspace& w = canvas.w;
  Vector<float> scores(static_cast<std::size_t>(w.count));
  if (kind == PruneScore::loss) canvas.run({From::target, true, true});
  const double pixels = static_cast<double>(w.height) * w.width;
  for (std::size_t i = 0; i < scores.size(); ++i) {
    const float red = w.param[5][i], green = w.param[6][i], blue = w.param[7][i];
    if (kind == PruneScore::luminance) {
      scores[i] = luminance_score(red, green, blue);
      continue;
    }
    Factor f{w.param[2][i], w.param[3][i], w.param[4][i]};
    if (w.cholesky) f = factor_of({f.a, f.b, f.c});
    const double norm = squared_norm(w.param[0][i], w.param[1][i], f, w.height, w.width);
    scores[i] = loss_score(red, green, blue, w.moments + i * 8, norm, pixels);
  }
  return scores;
}

bool prune(Canvas& canvas, const FitOptions& options, int most) {
  Workspace& w = canvas.w;
  Vector<float> scores = prune_scores(canvas, options.prune_score);
  for (float& score : scores) score = std::isnan(score) ? 0.0f : score;  // NaN has no place in an order
  Vector<int> kept(scores.size());
  std::iota(kept.begin(), kept.end(), 0);
  const auto score = [&](int i) { return scores[static_cast<std::size_t>(i)]; };
  if (options.prune_threshold > 0.0f) {
    std::erase_if(kept, [&](int i) { return score(i) < options.prune_threshold; });
  }
  if (kept.size() > static_cast<std::size_t>(most)) {
    std::stable_sort(kept.begin(), kept.end(), [&](int i, int j) { return score(i) > score(j); });
    kept.resize(static_cast<std::size_t>(most));
    std::sort(kept.begin(), kept.end());
  }
  const bool fewer = kept.size() < scores.size();
  for (std::size_t to = 0; to < kept.size(); ++to) {
    for (float* values : w.param) values[to] = values[kept[to]];
  }
  canvas.set_count(static_cast<int>(kept.size()));
  return fewer;
}

}  // namespace splat2d
