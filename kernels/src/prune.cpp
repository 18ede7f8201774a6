#include "prune.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace splat2d {
namespace {

// Where the cut-off ellipse crosses a line: the first and last whole number within centre +- half, inside [0, last].
struct Range {
  int first, last;
};

Range inside(float centre, float half, int last) {
  const float low = std::max(std::ceil(centre - half), 0.0f);
  const float high = std::min(std::floor(centre + half), static_cast<float>(last));
  return low <= high ? Range{static_cast<int>(low), static_cast<int>(high)} : Range{1, 0};
}

}  // namespace

double squared_norm(float x, float y, Factor f, int height, int width) {
  double sum = 0.0;
  const Range rows = inside(y, kCutoff / f.c, height - 1);
  const float decay = std::exp(-2.0f * f.a * f.a);
  for (int row = rows.first; row <= rows.last; ++row) {
    const float dy = static_cast<float>(row) - y, v = f.c * dy;
    const float half = std::sqrt(std::max(0.0f, kCutoffSquared - v * v)) / f.a, middle = -f.b * dy / f.a;
    const Range columns = inside(x + middle, half, width - 1);
    if (columns.first > columns.last) continue;
    // exp(-(u^2 + v^2)) along the row by a recurrence: u grows by a.
    const float u = f.a * (static_cast<float>(columns.first) - x - middle);
    float value = std::exp(-(u * u + v * v)), ratio = std::exp(-f.a * (2.0f * u + f.a)), line = 0.0f;
    for (int column = columns.first; column <= columns.last; ++column) {
      line += value;
      value *= ratio;
      ratio *= decay;
    }
    sum += static_cast<double>(line);
  }
  return sum;
}

Vector<float> prune_scores(Canvas& canvas, PruneScore kind) {
  Workspace& w = canvas.w;
  Vector<float> scores(static_cast<std::size_t>(w.count));
  if (kind == PruneScore::loss) canvas.run({w.base, nullptr, true, true});
  const double pixels = static_cast<double>(w.height) * w.width;
  for (std::size_t i = 0; i < scores.size(); ++i) {
    const float red = w.param[5][i], green = w.param[6][i], blue = w.param[7][i];
    if (kind == PruneScore::luminance) {
      scores[i] = 0.2126f * absolute(red) + 0.7152f * absolute(green) + 0.0722f * absolute(blue);
      continue;
    }
    Factor f{w.param[2][i], w.param[3][i], w.param[4][i]};
    if (w.cholesky) f = factor_of({f.a, f.b, f.c});
    const float* m = w.moments + i * 8;
    const double along = static_cast<double>(red * m[0]) + static_cast<double>(green * m[1]) +
                         static_cast<double>(blue * m[2]);
    const double power = static_cast<double>(red * red + green * green + blue * blue);
    const double norm = squared_norm(w.param[0][i], w.param[1][i], f, w.height, w.width);
    scores[i] = static_cast<float>((power * norm - 2.0 * along) / pixels);
  }
  return scores;
}

bool prune(Canvas& canvas, const FitOptions& options, int most) {
  Workspace& w = canvas.w;
  const Vector<float> scores = prune_scores(canvas, options.prune_score);
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
