// What a Gaussian is worth when some are to be dropped, larger is better (host and device). prune.h has the use.
#pragma once

#include "splat2d/gaussian.h"

namespace splat2d {
inline namespace SPLAT2D_TARGET {

// .2126 |R| + .7152 |G| + .0722 |B| (GaussianVision, arXiv 2509.22615).
SPLAT2D_HD float luminance_score(float red, float green, float blue) {
  return 0.2126f * absolute(red) + 0.7152f * absolute(green) + 0.0722f * absolute(blue);
}

// Where the cut-off ellipse crosses a line: the first and last whole number within centre +- half, inside [0, last].
struct WholeRange {
  int first, last;
};

SPLAT2D_HD WholeRange whole_range(float centre, float half, int last) {
  const float low = ceilf(centre - half), high = floorf(centre + half), end = static_cast<float>(last);
  if (!(low <= high && low <= end && high >= 0.0f)) return {1, 0};
  return {static_cast<int>(low > 0.0f ? low : 0.0f), static_cast<int>(high < end ? high : end)};
}

// Sum of E^2 over the pixels of a height x width picture within the cut-off.
SPLAT2D_HD double squared_norm(float x, float y, Factor f, int height, int width) {
  double sum = 0.0;
  const WholeRange rows = whole_range(y, kCutoff / f.c, height - 1);
  const float decay = expf(-2.0f * f.a * f.a);
  for (int row = rows.first; row <= rows.last; ++row) {
    const float dy = static_cast<float>(row) - y, v = f.c * dy, left = kCutoffSquared - v * v;
    const float half = sqrtf(left > 0.0f ? left : 0.0f) / f.a, middle = -f.b * dy / f.a;
    const WholeRange columns = whole_range(x + middle, half, width - 1);
    if (columns.first > columns.last) continue;
    // exp(-(u^2 + v^2)) along the row by a recurrence: u grows by a.
    const float u = f.a * (static_cast<float>(columns.first) - x - middle);
    float value = expf(-(u * u + v * v)), ratio = expf(-f.a * (2.0f * u + f.a)), line = 0.0f;
    for (int column = columns.first; column <= columns.last; ++column) {
      line += value;
      value *= ratio;
      ratio *= decay;
    }
    sum += static_cast<double>(line);
  }
  return sum;
}

// By how much the loss grows if this Gaussian alone is dropped, from its colour (red, green, blue), the colour moments
// of a pass and its squared norm.
SPLAT2D_HD float loss_score(float red, float green, float blue, const float* moments, double norm, double pixels) {
  const double along = static_cast<double>(red * moments[0]) + static_cast<double>(green * moments[1]) +
                       static_cast<double>(blue * moments[2]);
  const double power = static_cast<double>(red * red + green * green + blue * blue);
  return static_cast<float>((power * norm - 2.0 * along) / pixels);
}

}  // namespace SPLAT2D_TARGET
}  // namespace splat2d
