// The CUDA kernels: plain, without atomics, so that results do not depend on scheduling. The maths is that of the
// shared headers; only sums over pixels are written here.
//
// Grids: x runs over tiles or Gaussians, y over the pictures of a chunk. No warp intrinsics: the same source runs on
// the CPU in tests, one thread a CUDA thread.
#pragma once

#include <cstdint>

#include "splat2d/gaussian.h"
#include "splat2d/update.h"

namespace splat2d {

constexpr int kTile = 16;
constexpr int kTileThreads = kTile * kTile;
constexpr int kGaussianThreads = 32;

// What the kernels read of one Gaussian; x0 > x1 where it is not in the picture.
struct DeviceGaussian {
  float x, y, a, b, c, red, green, blue;
  int x0, x1, y0, y1;
};

// One chunk of pictures in device memory. Parameters and Adam's state are [picture][parameter][Gaussian].
struct DeviceChunk {
  const std::uint8_t* images;  // [B, H, W, 3]
  float* residual;             // [B, H, W, 3], render - image
  float* param;
  float* adam_m;
  float* adam_v;
  DeviceGaussian* packed;  // [B, N]
  const int* counts;       // [B]
  int num_gaussians, height, width;
  bool cholesky;  // parameters 2..4 are (l00, l10, l11); otherwise (a, b, c)
};

__device__ inline float* row_of(float* values, const DeviceChunk& d, int picture, int parameter) {
  return values + (static_cast<std::size_t>(picture) * kParameters + parameter) * d.num_gaussians;
}

__global__ void prepare(DeviceChunk d) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x), picture = static_cast<int>(blockIdx.y);
  if (i >= d.counts[picture]) return;
  float p[kParameters];
  for (int k = 0; k < kParameters; ++k) p[k] = row_of(d.param, d, picture, k)[i];
  Factor f{p[2], p[3], p[4]};
  if (d.cholesky) f = factor_of({p[2], p[3], p[4]});
  const float wide = half_width(f), high = kCutoff / f.c;
  DeviceGaussian g{p[0], p[1], f.a, f.b, f.c, p[5], p[6], p[7], 1, 0, 1, 0};
  const float last_x = static_cast<float>(d.width - 1), last_y = static_cast<float>(d.height - 1);
  // A degenerate Gaussian compares false and stays out of the picture.
  if (p[0] + wide >= 0.0f && p[0] - wide <= last_x && p[1] + high >= 0.0f && p[1] - high <= last_y) {
    g.x0 = static_cast<int>(ceilf(clamp(p[0] - wide, 0.0f, last_x)));
    g.x1 = static_cast<int>(clamp(p[0] + wide, 0.0f, last_x));
    g.y0 = static_cast<int>(ceilf(clamp(p[1] - high, 0.0f, last_y)));
    g.y1 = static_cast<int>(clamp(p[1] + high, 0.0f, last_y));
  }
  d.packed[static_cast<std::size_t>(picture) * d.num_gaussians + i] = g;
}

__device__ inline float value_at(const DeviceGaussian& g, float dx, float dy) {
  const float u = g.a * dx + g.b * dy, v = g.c * dy, distance = u * u + v * v;
  return distance <= kCutoffSquared ? expf(-0.5f * distance) : 0.0f;
}

// One block a tile of 16 x 16 pixels: Gaussians are tested kTileThreads at a time, those that touch the tile are kept
// in order, and every pixel adds them up.
__global__ void draw(DeviceChunk d) {
  __shared__ DeviceGaussian kept[kTileThreads];
  __shared__ int hit[kTileThreads];
  __shared__ int before[kTileThreads / 32 + 1];
  const int picture = static_cast<int>(blockIdx.y), thread = static_cast<int>(threadIdx.x);
  const int tiles = (d.width + kTile - 1) / kTile;
  const int left = static_cast<int>(blockIdx.x) % tiles * kTile, top = static_cast<int>(blockIdx.x) / tiles * kTile;
  const int x = left + thread % kTile, y = top + thread / kTile, count = d.counts[picture];
  const DeviceGaussian* all = d.packed + static_cast<std::size_t>(picture) * d.num_gaussians;
  float red = 0.0f, green = 0.0f, blue = 0.0f;
  for (int start = 0; start < count; start += kTileThreads) {
    DeviceGaussian g{};
    int touches = 0;
    if (start + thread < count) {
      g = all[start + thread];
      touches = g.x0 <= g.x1 && g.y0 <= g.y1 && g.x0 < left + kTile && g.x1 >= left && g.y0 < top + kTile && g.y1 >= top;
    }
    hit[thread] = touches;
    __syncthreads();
    if (thread < kTileThreads / 32) {
      int sum = 0;
      for (int k = 0; k < 32; ++k) sum += hit[thread * 32 + k];
      before[thread + 1] = sum;
    }
    __syncthreads();
    if (thread == 0) {
      before[0] = 0;
      for (int k = 0; k < kTileThreads / 32; ++k) before[k + 1] += before[k];
    }
    __syncthreads();
    if (touches) {
      int rank = before[thread / 32];
      for (int k = thread / 32 * 32; k < thread; ++k) rank += hit[k];
      kept[rank] = g;
    }
    __syncthreads();
    const int number = before[kTileThreads / 32];
    for (int k = 0; k < number; ++k) {
      const DeviceGaussian& one = kept[k];
      const float value = value_at(one, static_cast<float>(x) - one.x, static_cast<float>(y) - one.y);
      red += value * one.red;
      green += value * one.green;
      blue += value * one.blue;
    }
    __syncthreads();
  }
  if (x < d.width && y < d.height) {
    const std::size_t at = ((static_cast<std::size_t>(picture) * d.height + y) * d.width + x) * 3;
    d.residual[at] = red - static_cast<float>(d.images[at]) / 255.0f;
    d.residual[at + 1] = green - static_cast<float>(d.images[at + 1]) / 255.0f;
    d.residual[at + 2] = blue - static_cast<float>(d.images[at + 2]) / 255.0f;
  }
}

// One block a Gaussian: moments over its box, summed in a fixed tree, then its optimiser step.
__global__ void update(DeviceChunk d, StepSettings settings, bool natural) {
  __shared__ float sums[8][kGaussianThreads];
  const int i = static_cast<int>(blockIdx.x), picture = static_cast<int>(blockIdx.y);
  const int thread = static_cast<int>(threadIdx.x);
  if (i >= d.counts[picture]) return;
  const DeviceGaussian g = d.packed[static_cast<std::size_t>(picture) * d.num_gaussians + i];
  float m[8] = {};
  const int wide = g.x1 - g.x0 + 1, pixels = wide * (g.y1 - g.y0 + 1);
  for (int k = thread; k < pixels; k += kGaussianThreads) {
    const int x = g.x0 + k % wide, y = g.y0 + k / wide;
    const float dx = static_cast<float>(x) - g.x, dy = static_cast<float>(y) - g.y, value = value_at(g, dx, dy);
    const float* r = d.residual + ((static_cast<std::size_t>(picture) * d.height + y) * d.width + x) * 3;
    const float q = value * (r[0] * g.red + r[1] * g.green + r[2] * g.blue);
    const float terms[8] = {value * r[0], value * r[1], value * r[2], q * dx, q * dy, q * dx * dx, q * dx * dy, q * dy * dy};
    for (int j = 0; j < 8; ++j) m[j] += terms[j];
  }
  for (int j = 0; j < 8; ++j) sums[j][thread] = m[j];
  for (int half = kGaussianThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (thread < half) {
      for (int j = 0; j < 8; ++j) sums[j][thread] += sums[j][thread + half];
    }
  }
  __syncthreads();
  if (thread != 0) return;
  float* p[kParameters];
  AdamState state;
  for (int k = 0; k < kParameters; ++k) {
    p[k] = row_of(d.param, d, picture, k) + i;
    state.m[k] = row_of(d.adam_m, d, picture, k)[i];
    state.v[k] = row_of(d.adam_v, d, picture, k)[i];
  }
  Parameters q{*p[0], *p[1], *p[2], *p[3], *p[4], *p[5], *p[6], *p[7]};
  const Moments moments{sums[0][0], sums[1][0], sums[2][0], sums[3][0], sums[4][0], sums[5][0], sums[6][0], sums[7][0]};
  if (natural) {
    natural_step(q, moments, state, settings);
  } else {
    adam_step(q, moments, state, settings);
  }
  *p[0] = q.x, *p[1] = q.y, *p[2] = q.s0, *p[3] = q.s1, *p[4] = q.s2, *p[5] = q.r, *p[6] = q.g, *p[7] = q.b;
  for (int k = 0; k < kParameters; ++k) {
    row_of(d.adam_m, d, picture, k)[i] = state.m[k];
    row_of(d.adam_v, d, picture, k)[i] = state.v[k];
  }
}

}  // namespace splat2d
