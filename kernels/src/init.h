// Where a fit starts: the Gaussians of one picture before the first step.
#pragma once

#include <cstdint>

#include "workspace.h"

namespace splat2d {

// Uniform grid, isotropic, the standard deviation the radius of the largest circle in a cell, colour = mean of the
// cell (GaussianVision, arXiv 2509.22615).
void init_grid(Canvas& canvas, const std::uint8_t* image);

// Density-adaptive: more and smaller Gaussians where the picture changes, stretched along edges.
void init_adaptive(Canvas& canvas, const std::uint8_t* image, std::uint64_t seed);

// Sets Gaussian i from its covariance, in whichever factor the canvas holds.
void set_shape(Canvas& canvas, int i, double sxx, double sxy, double syy);

}  // namespace splat2d
