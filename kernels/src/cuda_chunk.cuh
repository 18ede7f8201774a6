// What the kernels share: the layout of a chunk of pictures in device memory, and where a Gaussian lies.
//
// A chunk is B pictures of one size, N Gaussians each at most, in tiles of 32 x 16 pixels. Two lists tie Gaussians to
// tiles, both without a sort: a tile's list holds the Gaussians whose box meets it, by rising index; and each pair
// (Gaussian, tile) has a slot for the sums of its backward pass, a Gaussian's slots being neighbours. Boxes are listed
// with a margin. Every kernel tests pixels exactly, so that the lists decide the work and never the result.
#pragma once

#include <cstddef>
#include <cstdint>

#include "splat2d/gaussian.h"
#include "splat2d/update.h"

namespace splat2d {

constexpr int kWarp = 32;
constexpr int kBlock = 256, kWarps = kBlock / kWarp;
constexpr int kTileWidth = 32, kTileHeight = 16;
constexpr int kUpdateBlock = 128;           // Gaussians a block in `update`
constexpr unsigned kAllLanes = 0xffffffffu;
constexpr float kSlack = 0.01f;             // pixels; keeps rounding from cutting pixels off a box
constexpr float kMargin = 1.0f;             // pixels that a Gaussian may grow or move before its lists are built again

// What the tile kernels read of one Gaussian.
struct alignas(16) DeviceGaussian {
  float x, y, a, b, c, red, green, blue;
};

// Inclusive; x0 > x1: empty.
struct Box {
  int x0, x1, y0, y1;
};

// The tiles a Gaussian is listed in, and the first of its slots.
struct Listed {
  short x0, x1, y0, y1;
  int start;
};

struct TileEntry {
  int index, slot;
};

// The device's side of the conversation with the host. Lists that do not fit halt the chunk: from then on every kernel
// that would change a parameter returns at once, until the host has grown the lists and goes on from `iteration`.
struct Control {
  unsigned long long slots_needed;  // the most slots any picture asked for
  int list_needed;                  // the longest list any tile asked for
  int iteration;                    // iterations begun
  int moved;                        // 1 + the iteration before which Gaussians were moved last
  int pruned;                       // whether pruning is done
  int stop;                         // set by the host to end early
};

struct DeviceChunk {
  const std::uint8_t* images;     // [B, H, W, 3]
  float* param;                   // [B, 8, N], the parameters of update.h
  float* adam_m;                  // [B, 8, N]
  float* adam_v;                  // [B, 8, N]
  DeviceGaussian* gaussians;      // [B, N]
  Listed* listed;                 // [B, N]
  int* dirty;                     // [B] lists are to be built
  int* active;                    // [B] 0: the picture is left alone
  int* placing;                   // [B] Gaussians to be placed
  int* counts;                    // [B] Gaussians in use
  TileEntry* entries;             // [B, tiles, list_capacity]
  int* tile_counts;               // [B, tiles]
  float* partial;                 // [B, slot_capacity, 8], moments of one Gaussian in one tile
  float* tile_errors;             // [B, tiles], squared error
  double* errors;                 // [B]
  float* pixel_errors;            // [B, H, W] while Gaussians are added
  float* cells;                   // [B, 3, cell_capacity], squared error of a cell and its first moments
  float* out;                     // [B, 8, N]: means [N, 2], cholesky [N, 3], colors [N, 3]
  Control* control;
  const StepSettings* settings;   // one an iteration
  long long slot_capacity;
  int list_capacity, cell_capacity;
  int num_gaussians, height, width, tiles_x, tiles;
  bool adam;  // parameters 2..4 are (l00, l10, l11); otherwise (a, b, c)
};

__device__ inline bool halted(const DeviceChunk& d) {
  const Control& control = *d.control;
  return control.stop != 0 || control.list_needed > d.list_capacity ||
         control.slots_needed > static_cast<unsigned long long>(d.slot_capacity);
}

// The same for all threads of a block, whatever the host writes meanwhile: some of them may not leave the others waiting.
// Every thread of the block must come here.
__device__ inline bool block_halted(const DeviceChunk& d) { return __syncthreads_or(halted(d)) != 0; }

__device__ inline std::size_t parameter_row(const DeviceChunk& d, int picture, int parameter) {
  return (static_cast<std::size_t>(picture) * kParameters + parameter) * d.num_gaussians;
}

__device__ inline std::size_t tile_row(const DeviceChunk& d, int picture, int tile) {
  return static_cast<std::size_t>(picture) * d.tiles + tile;
}

__device__ inline Box no_box() { return {1, 0, 1, 0}; }

// The pixels of the picture within `margin` of the Gaussian's bounding box. What is degenerate, not a number or far
// away compares false and has none.
__device__ inline Box bounds(const DeviceGaussian& g, const DeviceChunk& d, float margin) {
  const float h = g.b * g.b + g.c * g.c;
  if (!(g.a > 0.0f && g.a < 1e18f && g.c > 0.0f && h < 1e18f)) return no_box();
  const float wide = kCutoff * sqrtf(h) / (g.a * g.c) + margin, high = kCutoff / g.c + margin;
  const float last_x = static_cast<float>(d.width - 1), last_y = static_cast<float>(d.height - 1);
  if (!(g.x + wide >= 0.0f && g.x - wide <= last_x && g.y + high >= 0.0f && g.y - high <= last_y)) return no_box();
  return {static_cast<int>(ceilf(clamp(g.x - wide, 0.0f, last_x))), static_cast<int>(clamp(g.x + wide, 0.0f, last_x)),
          static_cast<int>(ceilf(clamp(g.y - high, 0.0f, last_y))), static_cast<int>(clamp(g.y + high, 0.0f, last_y))};
}

// The same in tiles; no pixels are no tiles.
__device__ inline Box tiles_of(const Box& pixels) {
  if (pixels.x0 > pixels.x1 || pixels.y0 > pixels.y1) return no_box();
  return {pixels.x0 / kTileWidth, pixels.x1 / kTileWidth, pixels.y0 / kTileHeight, pixels.y1 / kTileHeight};
}

__device__ inline int slots_of(const Listed& l) { return (l.x1 - l.x0 + 1) * (l.y1 - l.y0 + 1); }

// Factors of a Gaussian from its parameters: (l00, l10, l11) or (a, b, c).
__device__ inline DeviceGaussian gaussian_of(const Parameters& p, bool cholesky) {
  Factor f{p.s0, p.s1, p.s2};
  if (cholesky) f = factor_of({p.s0, p.s1, p.s2});
  return {p.x, p.y, f.a, f.b, f.c, p.r, p.g, p.b};
}

__device__ inline Parameters load_parameters(const DeviceChunk& d, int picture, int i) {
  const float* p = d.param + parameter_row(d, picture, 0) + i;
  const std::size_t n = static_cast<std::size_t>(d.num_gaussians);
  return {p[0], p[n], p[2 * n], p[3 * n], p[4 * n], p[5 * n], p[6 * n], p[7 * n]};
}

}  // namespace splat2d
