// Growing: a fit begins with a share of its Gaussians and adds the others where the residual is largest; later it moves
// the weakest there too.
//
// Before iteration `it`, Schedule::gaussians says how many Gaussians a picture has. Where that is more than it holds, K
// new ones are added:
//  1. R = render - target. The picture is cut into square cells of growth_cell(pixels, K) pixels, from the top left
//     corner; cells at the right and bottom ends may be smaller.
//  2. A cell's error is the sum over its pixels of R_r^2 + R_g^2 + R_b^2. The K cells with the largest errors are
//     taken, of equal ones those that come first row by row.
//  3. Each receives one Gaussian: centre = the error's centre of mass, round, small (seed_of), colour 0, so that the
//     picture does not change; Adam's running means 0. They are appended in the order of the cells.
// Structure tensors put Gaussians where the picture changes; this puts them where the others do not manage, and the
// iterations before cost less.
//
// Moving K = int(move_share count) Gaussians, where Schedule::moves says so: those with the least energy, summed over an
// endless plane, |colour|^2 pi / (a c) (of equal ones those with the lower index), turn black; then steps 1 to 3, with
// the new Gaussians written over them in order of their index instead of appended.
//
// Error-driven growth is GaussianImage++'s idea (arXiv 2512.19108), without its quantisation; the form and the constants
// are from our own measurements.
#pragma once

#include "workspace.h"

namespace splat2d {

// When part 0 .. grow_steps - 1 is added, as a share of the iterations: from grow_first to grow_last.
float growth_time(const FitOptions& options, int part);

// How many parts have been added before iteration `it` of `num_iters`.
int growth_parts(const FitOptions& options, int num_iters, int it);

// Gaussians after that many parts for a picture that ends with num_gaussians: start_share of them, the others in
// grow_steps equal parts.
int growth_count(const FitOptions& options, int num_gaussians, int parts);

// When the Gaussians move for the (1 + part)-th time, as a share of the iterations: evenly after grow_last, up to
// move_last.
float move_time(const FitOptions& options, int part);

// Adds `number` Gaussians; the target must be loaded.
void grow(Canvas& canvas, const FitOptions& options, int number);

// Moves the weakest move_share of the Gaussians; the target must be loaded.
void move_weakest(Canvas& canvas, const FitOptions& options);

}  // namespace splat2d
