// Kernels over (Gaussian, picture): the optimiser's step, and the way from parameters to what is handed out.
#pragma once

#include "cuda_chunk.cuh"

namespace splat2d {

// Parameters to what the tile kernels read.
__global__ void __launch_bounds__(kUpdateBlock) pack(DeviceChunk d) {
  const int picture = static_cast<int>(blockIdx.y), i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i >= d.counts[picture]) return;
  d.gaussians[static_cast<std::size_t>(picture) * d.num_gaussians + i] =
      gaussian_of(load_parameters(d, picture, i), d.adam);
}

// Sums each Gaussian's moments over its tiles, takes the step, prepares the next iteration. First eight lanes share a
// Gaussian, one for each moment, so that a slot is read as one piece; then each thread has a Gaussian of its own.
__global__ void __launch_bounds__(kUpdateBlock) update(DeviceChunk d) {
  constexpr int kRow = kParameters + 1;  // no two threads of a warp share a bank
  __shared__ float sums[kUpdateBlock * kRow];
  const int picture = static_cast<int>(blockIdx.y), thread = static_cast<int>(threadIdx.x);
  const int first = static_cast<int>(blockIdx.x) * kUpdateBlock, count = d.counts[picture];
  if (block_halted(d) || !d.active[picture] || first >= count) return;
  const std::size_t row = static_cast<std::size_t>(picture) * d.num_gaussians;
  const float* partial = d.partial + static_cast<std::size_t>(picture) * static_cast<std::size_t>(d.slot_capacity) * 8;
  for (int k = thread / 8; k < kUpdateBlock && first + k < count; k += kUpdateBlock / 8) {
    const Listed l = d.listed[row + first + k];
    const float* from = partial + static_cast<std::size_t>(l.start) * 8 + thread % 8;
    const int slots = slots_of(l);
    float sum = 0.0f;
    for (int s = 0; s < slots; ++s) sum += from[static_cast<std::size_t>(s) * 8];
    sums[k * kRow + thread % 8] = sum;
  }
  __syncthreads();
  const int i = first + thread;
  if (i >= count) return;
  const float* s = sums + thread * kRow;
  const Moments moments{s[0], s[1], s[2], s[3], s[4], s[5], s[6], s[7]};
  const std::size_t n = static_cast<std::size_t>(d.num_gaussians), at = parameter_row(d, picture, 0) + i;
  AdamState state;
  for (int k = 0; k < kParameters; ++k) {
    state.m[k] = d.adam_m[at + k * n];
    state.v[k] = d.adam_v[at + k * n];
  }
  Parameters p = load_parameters(d, picture, i);
  const StepSettings& settings = d.settings[d.control->iteration - 1];
  if (d.adam) {
    adam_step(p, moments, state, settings);
  } else {
    natural_step(p, moments, state, settings);
  }
  const float values[kParameters] = {p.x, p.y, p.s0, p.s1, p.s2, p.r, p.g, p.b};
  for (int k = 0; k < kParameters; ++k) {
    d.param[at + k * n] = values[k];
    d.adam_m[at + k * n] = state.m[k];
    d.adam_v[at + k * n] = state.v[k];
  }
  const DeviceGaussian g = gaussian_of(p, d.adam);
  d.gaussians[row + i] = g;
  const Box now = tiles_of(bounds(g, d, kSlack));
  const Listed l = d.listed[row + i];
  const bool listed = now.x0 > now.x1 || (l.x0 <= now.x0 && now.x1 <= l.x1 && l.y0 <= now.y0 && now.y1 <= l.y1);
  if (!listed) atomicExch(&d.dirty[picture], 1);
}

// Parameters to the splats that the caller gets, zero past the picture's count. What is measured afterwards is drawn
// from these very numbers. May run twice.
__global__ void __launch_bounds__(kUpdateBlock) hand_out(DeviceChunk d) {
  const int picture = static_cast<int>(blockIdx.y), i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (halted(d)) return;
  if (i == 0) d.active[picture] = d.dirty[picture] = 1;
  if (i >= d.num_gaussians) return;
  Parameters p{0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f};
  if (i < d.counts[picture]) {
    p = load_parameters(d, picture, i);
    if (!d.adam) {
      const Cholesky l = cholesky_of({p.s0, p.s1, p.s2});
      p.s0 = l.l00, p.s1 = l.l10, p.s2 = l.l11;
    }
    d.gaussians[static_cast<std::size_t>(picture) * d.num_gaussians + i] = gaussian_of(p, true);
  }
  const std::size_t n = static_cast<std::size_t>(d.num_gaussians);
  float* means = d.out + parameter_row(d, picture, 0);
  float *cholesky = means + 2 * n, *colors = means + 5 * n;
  means[2 * i] = p.x, means[2 * i + 1] = p.y;
  cholesky[3 * i] = p.s0, cholesky[3 * i + 1] = p.s1, cholesky[3 * i + 2] = p.s2;
  colors[3 * i] = p.r, colors[3 * i + 1] = p.g, colors[3 * i + 2] = p.b;
}

// One thread a picture: the squared error of its tiles, in their order.
__global__ void sum_errors(DeviceChunk d, int batch) {
  const int picture = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (picture >= batch || halted(d)) return;
  double sum = 0.0;
  for (int tile = 0; tile < d.tiles; ++tile) sum += static_cast<double>(d.tile_errors[tile_row(d, picture, tile)]);
  d.errors[picture] = sum;
}

}  // namespace splat2d
