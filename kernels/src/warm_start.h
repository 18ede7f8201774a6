// Starting from given Gaussians: those of the frame before, of another number, of another fit.
#pragma once

#include "workspace.h"

namespace splat2d {

// Takes over picture `index` of `start` and brings it to `count` Gaussians: those whose loss says that they matter
// least are dropped, missing ones are added where the residual is large (grow.h). Needs the target loaded.
void warm_start(Canvas& canvas, const Splats& start, const FitOptions& options, int count, int index);

}  // namespace splat2d
