// Dropping Gaussians that matter least.
#pragma once

#include "workspace.h"

namespace splat2d {

// What each Gaussian is worth, larger is better.
//
// luminance: .2126 |R| + .7152 |G| + .0722 |B| (GaussianVision, arXiv 2509.22615).
// loss: by how much ||render - image||^2 / (H W) grows if this Gaussian alone is dropped. With R the residual, E the
// Gaussian's values and c its colour, |R - c E|^2 - |R|^2 = |c|^2 sum E^2 - 2 sum_k c_k m_k, where m_k = sum E R_k are
// the colour moments of a pass. All sums run over the picture's pixels within the cut-off, so the score is exact.
// Needs the target loaded.
Vector<float> prune_scores(Canvas& canvas, PruneScore kind);

// Drops Gaussians that score under options.prune_threshold, then the worst until `most` are left (ties: the later
// ones go first); the others keep their order. True where some were dropped.
bool prune(Canvas& canvas, const FitOptions& options, int most);

// Whether the options ask for pruning.
inline bool prunes(const FitOptions& options) { return options.prune_threshold > 0.0f || options.prune_to > 0; }

}  // namespace splat2d
