// Where a fit starts: the Gaussians of one picture before the first step.
#pragma once

#include <cstdint>

#include "workspace.h"

namespace splat2d {

// Uniform grid, isotropic, the standard deviation the radius of the largest circle in a cell, colour = mean of the
// cell (GaussianVision, arXiv 2509.22615).
void init_grid(Canvas& canvas, const std::uint8_t* image);

// What density-adaptive initialisation needs to know of a picture size; made once for a batch.
struct Curve {
  Curve(int height, int width);
  Vector<std::int32_t> pixels;  // all pixels along a Hilbert curve
};

// Density-adaptive: more and smaller Gaussians where the picture changes, stretched along edges.
void init_adaptive(Canvas& canvas, const std::uint8_t* image, const Curve& curve, std::uint64_t seed);

// Sets Gaussian i from its covariance, in whichever factor the canvas holds.
void set_shape(Canvas& canvas, int i, double sxx, double sxy, double syy);

}  // namespace splat2d
