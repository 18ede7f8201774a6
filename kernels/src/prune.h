// Dropping Gaussians that matter least.
#pragma once

#include "workspace.h"

namespace splat2d {

// Drops Gaussians whose luminance score .2126 |R| + .7152 |G| + .0722 |B| is under the threshold (GaussianVision,
// arXiv 2509.22615); the others keep their order. True where the rest is to be fitted again.
bool prune(Canvas& canvas, const FitOptions& options);

}  // namespace splat2d
