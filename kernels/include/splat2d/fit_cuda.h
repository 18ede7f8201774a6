// The CUDA twin of fit.h, where the build has CUDA. Small, so that nvcc sees it too.
#pragma once

#include "splat2d/fit.h"

namespace splat2d {

// A device is present; every error of the CUDA runtime counts as none.
bool cuda_available();

// As `fit`; `threads` share out the host's part. Throws std::runtime_error with CUDA's message.
bool fit_cuda(const FitInput& input, const FitOptions& options, int threads, const FitOutput& out, const Poll& poll);

}  // namespace splat2d
