// A C function over fit_cuda, for ctypes.
#include "splat2d/fit_cuda.h"

extern "C" int emulated_fit(const std::uint8_t* images, int batch, int height, int width, int num_gaussians,
                            int natural, int num_iters, float prune_threshold, int refit_iters, float* means,
                            float* cholesky, float* colors, std::int32_t* counts, float* psnr) {
  splat2d::FitOptions o;
  o.init = natural ? splat2d::Init::adaptive : splat2d::Init::grid;
  o.optimizer = natural ? splat2d::Optimizer::natural : splat2d::Optimizer::adam;
  o.num_iters = num_iters;
  if (!natural) o.lr_position = 0.3f, o.lr_shape = 0.1f, o.lr_color = 0.01f;
  o.prune_threshold = prune_threshold;
  o.refit_iters = refit_iters;
  return splat2d::fit_cuda({images, {batch, height, width}, num_gaussians}, o, 1,
                           {means, cholesky, colors, counts, psnr}, {});
}
