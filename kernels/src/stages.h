// Where a fit of one picture begins and ends, on every device: the start and what is handed out. schedule.h says how
// the iterations between run, prune.h what is dropped.
#pragma once

#include <algorithm>

#include "init.h"
#include "workspace.h"

namespace splat2d {

// Sizes the canvas for picture `index`, loads the target, places `number` Gaussians and solves for their first colours.
void start_fit(Canvas& canvas, const FitInput& input, const FitOptions& options, int index, int number);

// Gaussians that a canvas must hold.
inline int canvas_capacity(const FitInput& input) {
  return input.start ? std::max(input.num_gaussians, input.start->num_gaussians) : input.num_gaussians;
}

// Loads the target of picture `index`.
void load_target(Canvas& canvas, const FitInput& input, int index);

// Writes picture `index` of the output and measures it by the code that `render` runs; the target must be loaded.
// iters: optimiser steps done.
void finish_fit(Canvas& canvas, const FitOutput& out, int num_gaussians, int index, int iters);

}  // namespace splat2d
