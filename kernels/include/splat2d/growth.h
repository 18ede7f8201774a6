// Growing: where Gaussians are added during a fit, and what they begin as (host and device). grow.h has the algorithm.
#pragma once

#include "splat2d/gaussian.h"

namespace splat2d {
inline namespace SPLAT2D_TARGET {

// Side of the square cells, in units of the distance that the added Gaussians would have on a regular grid.
constexpr float kCellShare = 0.4f;
// A new Gaussian's standard deviation, as a share of the cell's side.
constexpr float kSeedShare = 0.2f;

// Pixels a side of the cells that `number` new Gaussians are chosen from; there are never fewer cells than that while
// number <= pixels.
SPLAT2D_HD int growth_cell(float pixels, float number) {
  const int side = static_cast<int>(kCellShare * sqrtf(pixels / number) + 0.5f);
  return side > 1 ? side : 1;
}

// Squared residual of one cell, and its first moments about the cell's first pixel.
struct CellError {
  float sum, x, y;
};

struct Seed {
  float x, y, sigma;  // centre and standard deviation, round, black
};

// left, top: the cell's first pixel; right, bottom: its last one inside the picture.
SPLAT2D_HD Seed seed_of(const CellError& error, int cell, float left, float top, float right, float bottom,
                        float scale_min) {
  const float inverse = error.sum > 0.0f ? 1.0f / error.sum : 0.0f, sigma = kSeedShare * static_cast<float>(cell);
  Seed seed;
  seed.x = error.sum > 0.0f ? clamp(left + error.x * inverse, left, right) : 0.5f * (left + right);
  seed.y = error.sum > 0.0f ? clamp(top + error.y * inverse, top, bottom) : 0.5f * (top + bottom);
  seed.sigma = sigma > scale_min ? sigma : scale_min;
  return seed;
}

}  // namespace SPLAT2D_TARGET
}  // namespace splat2d
