// The parts of a fit that every device shares: the start, the schedule, pruning, what is handed out.
#pragma once

#include "init.h"
#include "splat2d/update.h"
#include "workspace.h"

namespace splat2d {

// Sizes the canvas, loads the target, places the Gaussians and solves for their first colours.
void start_fit(Canvas& canvas, const std::uint8_t* image, const FitOptions& options, const Curve* curve,
               int num_gaussians);

// What iteration `it` of `num_iters` steps with. `rate` scales the learning rates.
StepSettings settings_at(const FitOptions& options, int height, int width, int it, int num_iters, float rate);

// Learning rates of a refit after pruning, as a share of the first ones.
constexpr float kRefitRate = 0.3f;

// Drops Gaussians whose luminance score .2126 |R| + .7152 |G| + .0722 |B| is under the threshold (GaussianVision,
// arXiv 2509.22615); the others keep their order. True where the rest is to be fitted again.
bool prune(Canvas& canvas, const FitOptions& options);

// Writes picture `index` of the output and measures it by the code that `render` runs.
void finish_fit(Canvas& canvas, const FitOutput& out, int num_gaussians, int index);

}  // namespace splat2d
