// The host interface: fit, render, render's backward pass, PSNR. No Python here.
//
// Letters: B pictures, N Gaussians a picture, H rows, W columns. Arrays are dense and row-major.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

namespace splat2d {

enum class Init { grid, adaptive };
enum class Optimizer { adam, natural };
enum class PruneScore { luminance, loss };

// Settings of one fit; splat2d.Recipe in Python documents each.
struct FitOptions {
  Init init = Init::adaptive;
  Optimizer optimizer = Optimizer::natural;
  int num_iters = 200;
  float lr_position = 0.2f, lr_shape = 0.1f, lr_color = 0.2f;
  float lr_final = 0.01f;
  float beta1 = 0.8f, beta2 = 0.95f, epsilon = 1e-8f;
  float lambda_color = 0.0f;
  PruneScore prune_score = PruneScore::luminance;
  float prune_threshold = 0.0f;  // 0: none
  int prune_to = 0;              // Gaussians that are left; 0: all
  int refit_iters = 0;
  int color_steps = 3;
  float start_share = 1.0f;  // Gaussians at the start; grow.h
  float grow_first = 0.0f, grow_last = 0.0f;
  int grow_steps = 0;
  float move_share = 0.0f, move_last = 0.0f;
  int move_steps = 0;
  float scale_min = 0.5f;
  std::uint64_t seed = 0;
  float target_psnr = 0.0f;  // dB at which a picture is done; 0: none
  float plateau = 0.0f;      // dB; a picture that gains less over kPlateauIters iterations is brought to an end; 0: none
};

struct PictureShape {
  int batch, height, width;
};

struct Splats {
  const float* means;          // [B, N, 2]
  const float* cholesky;       // [B, N, 3]
  const float* colors;         // [B, N, 3]
  const std::int32_t* counts;  // [B], or null: all N
  int num_gaussians;
};

// Beside the squared error, the loss sums |F r|^2 over the patches of a picture, r [3 P^2] being a patch's residual in
// rows of pixels, (red, green, blue) each. Height and width are multiples of P.
struct Metric {
  const float* rows;  // F [num_rows, 3 P^2]
  int num_rows, patch;
};

struct FitInput {
  const std::uint8_t* images;  // [B, H, W, 3]
  PictureShape shape;
  int num_gaussians;           // N: rows of the output, and Gaussians a picture where counts is null
  const std::int32_t* counts = nullptr;  // [B] Gaussians of each picture, at most N
  const Splats* start = nullptr;         // what to start from instead of options.init
  const Metric* metric = nullptr;        // of `fit` alone, not of `fit_cuda`
};

struct FitOutput {
  float* means;          // [B, N, 2]
  float* cholesky;       // [B, N, 3]
  float* colors;         // [B, N, 3]
  std::int32_t* counts;  // [B]
  float* psnr;           // [B]
  std::int32_t* iters = nullptr;  // [B] optimiser steps done, or null
};

// Called now and then on the calling thread with the number of pictures done; false stops the work.
using Poll = std::function<bool(int)>;

// False: stopped by `poll`, the outputs are incomplete.
bool fit(const FitInput& input, const FitOptions& options, int threads, const FitOutput& out, const Poll& poll);

bool render(const Splats& splats, PictureShape shape, int threads, float* pictures, const Poll& poll);

// Gradients of a scalar with respect to the splats from its gradient v_pictures [B, H, W, 3].
bool render_backward(const Splats& splats, PictureShape shape, int threads, const float* v_pictures, float* v_means,
                     float* v_cholesky, float* v_colors, const Poll& poll);

// The fit's loss [B] = ||render - image||^2 / (H W) + lambda |colors|_1, and its gradients.
bool loss_and_grad(const Splats& splats, const std::uint8_t* images, PictureShape shape, float lambda, int threads,
                   float* loss, float* v_means, float* v_cholesky, float* v_colors, const Poll& poll);

std::string backend();

}  // namespace splat2d
