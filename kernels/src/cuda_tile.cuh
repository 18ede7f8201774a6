// Kernels over (tile, picture): draw the tile's Gaussians, take the residual, gather each Gaussian's moments.
//
// A tile's Gaussians pass through shared memory, kBlock at a time. Forward, a warp owns 16 x 4 pixels, two a lane: one
// ballot finds the Gaussians that meet them. The residual then stays in shared memory. Backward, kSpan lanes take one
// Gaussian and run over its box within the tile, eight sums in registers; a butterfly that halves the number of sums
// at each step leaves sum j in lane j, so that one coalesced write of eight floats ends the pair. Nothing is added in
// device memory, and every sum has one order.
#pragma once

#include "cuda_chunk.cuh"

namespace splat2d {

constexpr int kSpan = 16;                 // lanes that share one Gaussian in the backward pass: 8, 16 or 32
constexpr int kPitch = kTileWidth + 8;    // floats between rows of the residual: a warp's 8 x 4 pixels hit 32 banks
constexpr int kPlane = kPitch * kTileHeight;
constexpr int kPatchWidth = 16, kPatchHeight = 4;  // pixels of one warp in the forward pass

// Blocks of fit_tile that a multiprocessor is to hold: the compiler keeps to as many registers as that leaves.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
constexpr int kFitBlocks = 3;  // of 64 KB of shared memory
#else
constexpr int kFitBlocks = 5;
#endif

static_assert(kTileWidth / kPatchWidth * (kTileHeight / kPatchHeight) == kWarps, "the warps cover the tile");
static_assert(kSpan >= 8 && kWarp % kSpan == 0, "eight sums are spread over the lanes of a span");

// One tile in the hands of one block; pixels are relative to (left, top).
struct Tile {
  int picture, index, left, top, count;
  const TileEntry* entries;
};

// Gaussians of the tile in shared memory: what they are, their boxes in the tile (x0, x1, y0, y1, a byte each) and
// the slots of their sums.
struct Shelf {
  DeviceGaussian* gaussians;
  unsigned* boxes;
  int* slots;
};

__device__ inline float value_at(const DeviceGaussian& g, float dx, float dy) {
  const float u = g.a * dx + g.b * dy, v = g.c * dy, distance = u * u + v * v;
  return distance <= kCutoffSquared ? __expf(-0.5f * distance) : 0.0f;
}

__device__ inline Tile tile_here(const DeviceChunk& d) {
  Tile t;
  t.picture = static_cast<int>(blockIdx.y);
  t.index = static_cast<int>(blockIdx.x);
  t.left = t.index % d.tiles_x * kTileWidth;
  t.top = t.index / d.tiles_x * kTileHeight;
  const std::size_t row = tile_row(d, t.picture, t.index);
  t.count = d.tile_counts[row];
  t.entries = d.entries + row * d.list_capacity;
  return t;
}

__device__ inline int whole_between(float value, int low, int high) {
  return static_cast<int>(clamp(value, static_cast<float>(low), static_cast<float>(high)));
}

// The tight box of a Gaussian within a tile: the bounding box, then the rows that the ellipse has within these
// columns, then the columns it has within these rows.
__device__ inline unsigned box_in_tile(const DeviceGaussian& g, const DeviceChunk& d, const Tile& t) {
  constexpr unsigned kNone = 1u;  // x0 = 1 > x1 = 0
  Box box = bounds(g, d, kSlack);
  box.x0 = max(box.x0, t.left);
  box.x1 = min(box.x1, t.left + kTileWidth - 1);
  box.y0 = max(box.y0, t.top);
  box.y1 = min(box.y1, t.top + kTileHeight - 1);
  if (box.x0 > box.x1 || box.y0 > box.y1) return kNone;
  const Factor f{g.a, g.b, g.c};
  const Span rows = rows_between(f, static_cast<float>(box.x0) - g.x, static_cast<float>(box.x1) - g.x);
  box.y0 = whole_between(ceilf(g.y + rows.low - kSlack), box.y0, box.y1 + 1);
  box.y1 = whole_between(floorf(g.y + rows.high + kSlack), box.y0 - 1, box.y1);
  if (box.y0 > box.y1) return kNone;
  const Span columns = columns_between(f, static_cast<float>(box.y0) - g.y, static_cast<float>(box.y1) - g.y);
  box.x0 = whole_between(ceilf(g.x + columns.low - kSlack), box.x0, box.x1 + 1);
  box.x1 = whole_between(floorf(g.x + columns.high + kSlack), box.x0 - 1, box.x1);
  if (box.x0 > box.x1) return kNone;
  return static_cast<unsigned>(box.x0 - t.left) | static_cast<unsigned>(box.x1 - t.left) << 8 |
         static_cast<unsigned>(box.y0 - t.top) << 16 | static_cast<unsigned>(box.y1 - t.top) << 24;
}

__device__ inline Box unpacked(unsigned box) {
  return {static_cast<int>(box & 255u), static_cast<int>(box >> 8 & 255u), static_cast<int>(box >> 16 & 255u),
          static_cast<int>(box >> 24)};
}

// Thread k puts entry first + k of the tile's list on the shelf.
__device__ inline void load_shelf(const DeviceChunk& d, const Tile& t, int first, const Shelf& shelf) {
  const int thread = static_cast<int>(threadIdx.x), k = first + thread;
  if (k >= t.count) return;
  const TileEntry entry = t.entries[k];
  const DeviceGaussian g = d.gaussians[static_cast<std::size_t>(t.picture) * d.num_gaussians + entry.index];
  shelf.gaussians[thread] = g;
  shelf.boxes[thread] = box_in_tile(g, d, t);
  shelf.slots[thread] = entry.slot;
}

// The pixels of one lane: (x, y) and (x + 8, y), relative to the tile.
struct Patch {
  int x, y;
};

__device__ inline Patch patch_here() {
  const int thread = static_cast<int>(threadIdx.x), lane = thread % kWarp, warp = thread / kWarp;
  return {warp % 2 * kPatchWidth + lane % 8, warp / 2 * kPatchHeight + lane / 8};
}

struct Sums {
  float red, green, blue;
};

// Adds up the tile's Gaussians in the order of its list; the last of them stay on the shelf.
__device__ inline void forward(const DeviceChunk& d, const Tile& t, const Shelf& shelf, Sums (&sums)[2]) {
  const int thread = static_cast<int>(threadIdx.x), lane = thread % kWarp, warp = thread / kWarp;
  const int left = warp % 2 * kPatchWidth, top = warp / 2 * kPatchHeight;
  const Patch patch = patch_here();
  const float x = static_cast<float>(t.left + patch.x), y = static_cast<float>(t.top + patch.y);
  sums[0] = sums[1] = {0.0f, 0.0f, 0.0f};
  for (int first = 0; first < t.count; first += kBlock) {
    if (first > 0) __syncthreads();  // every warp is through with what lies on the shelf
    load_shelf(d, t, first, shelf);
    __syncthreads();
    const int number = min(kBlock, t.count - first);
    for (int group = 0; group < number; group += kWarp) {
      bool meets = false;
      if (group + lane < number) {
        const Box box = unpacked(shelf.boxes[group + lane]);
        meets = box.x0 <= box.x1 && box.x0 < left + kPatchWidth && box.x1 >= left && box.y0 < top + kPatchHeight &&
                box.y1 >= top;
      }
      for (unsigned left_over = __ballot_sync(kAllLanes, meets); left_over != 0; left_over &= left_over - 1) {
        const DeviceGaussian g = shelf.gaussians[group + __ffs(static_cast<int>(left_over)) - 1];
        const float dy = y - g.y, dx = x - g.x;
        const float values[2] = {value_at(g, dx, dy), value_at(g, dx + 8.0f, dy)};
        for (int p = 0; p < 2; ++p) {
          sums[p].red += values[p] * g.red;
          sums[p].green += values[p] * g.green;
          sums[p].blue += values[p] * g.blue;
        }
      }
    }
  }
}

// What is drawn minus the target, zero right of and below the picture.
__device__ inline Sums residual_at(const DeviceChunk& d, const Tile& t, int x, int y, const Sums& drawn) {
  if (t.left + x >= d.width || t.top + y >= d.height) return {0.0f, 0.0f, 0.0f};
  const std::size_t pixel = (static_cast<std::size_t>(t.picture) * d.height + t.top + y) * d.width + t.left + x;
  const std::uint8_t* target = d.images + pixel * 3;
  constexpr float kScale = 1.0f / 255.0f;
  return {drawn.red - static_cast<float>(target[0]) * kScale, drawn.green - static_cast<float>(target[1]) * kScale,
          drawn.blue - static_cast<float>(target[2]) * kScale};
}

__device__ inline float squared(const Sums& s) { return s.red * s.red + s.green * s.green + s.blue * s.blue; }

// The block's sum of squares to tile_errors. `warps` holds kWarps floats.
__device__ inline void store_error(const DeviceChunk& d, const Tile& t, float own, float* warps) {
  const int thread = static_cast<int>(threadIdx.x);
  for (int step = kWarp / 2; step > 0; step /= 2) own += __shfl_xor_sync(kAllLanes, own, step);
  if (thread % kWarp == 0) warps[thread / kWarp] = own;
  __syncthreads();
  if (thread != 0) return;
  float sum = 0.0f;
  for (int w = 0; w < kWarps; ++w) sum += warps[w];
  d.tile_errors[tile_row(d, t.picture, t.index)] = sum;
}

// In lane l of each span the span's sum of v[l % 8].
__device__ inline float span_sum(float (&v)[8], int lane) {
  for (int half = 4; half > 0; half /= 2) {
    const bool upper = (lane & half) != 0;
    for (int j = 0; j < half; ++j) {
      const float kept = upper ? v[j + half] : v[j], sent = upper ? v[j] : v[j + half];
      v[j] = kept + __shfl_xor_sync(kAllLanes, sent, half);
    }
  }
  float sum = v[0];
  for (int step = 8; step < kSpan; step *= 2) sum += __shfl_xor_sync(kAllLanes, sum, step);
  return sum;
}

// Moments of the Gaussians on the shelf, of which there are `number`.
__device__ inline void backward(const DeviceChunk& d, const Tile& t, const Shelf& shelf, const float* residual,
                                int number) {
  const int thread = static_cast<int>(threadIdx.x), lane = thread % kSpan;
  float* partial = d.partial + static_cast<std::size_t>(t.picture) * static_cast<std::size_t>(d.slot_capacity) * 8;
  for (int first = 0; first < number; first += kBlock / kSpan) {
    const int k = first + thread / kSpan;  // every lane of the warp goes on to the sums, with or without a Gaussian
    float m[8] = {0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f};
    if (k < number) {
      const DeviceGaussian g = shelf.gaussians[k];
      const Box box = unpacked(shelf.boxes[k]);
      const int wide = box.x1 - box.x0 + 1, pixels = wide * (box.y1 - box.y0 + 1);
      if (wide > 0) {
        // Lane l starts at pixel l of the box and moves on by kSpan pixels.
        const int step_y = kSpan / wide, step_x = kSpan % wide;
        int x = box.x0 + lane % wide, y = box.y0 + lane / wide;
        for (int pixel = lane; pixel < pixels; pixel += kSpan) {
          const float dx = static_cast<float>(t.left + x) - g.x, dy = static_cast<float>(t.top + y) - g.y;
          const float value = value_at(g, dx, dy);
          const float* r = residual + y * kPitch + x;
          const float red = value * r[0], green = value * r[kPlane], blue = value * r[2 * kPlane];
          const float q = red * g.red + green * g.green + blue * g.blue, qx = q * dx, qy = q * dy;
          m[0] += red;
          m[1] += green;
          m[2] += blue;
          m[3] += qx;
          m[4] += qy;
          m[5] += qx * dx;
          m[6] += qx * dy;
          m[7] += qy * dy;
          x += step_x;
          y += step_y;
          if (x > box.x1) x -= wide, ++y;
        }
      }
    }
    const float sum = span_sum(m, lane);
    if (k < number && lane < 8) partial[static_cast<std::size_t>(shelf.slots[k]) * 8 + lane] = sum;
  }
}

// One iteration's render and gradient: moments to `partial`, the squared error before the step to `tile_errors`.
// counts: an iteration begins with it.
__global__ void __launch_bounds__(kBlock, kFitBlocks) fit_tile(DeviceChunk d, bool counts) {
  __shared__ DeviceGaussian gaussians[kBlock];
  __shared__ unsigned boxes[kBlock];
  __shared__ int slots[kBlock];
  __shared__ float residual[3 * kPlane];
  __shared__ float warps[kWarps];
  if (block_halted(d)) return;
  const int thread = static_cast<int>(threadIdx.x);
  if (counts && blockIdx.x == 0 && blockIdx.y == 0 && thread == 0) ++d.control->iteration;
  if (!d.active[blockIdx.y]) return;
  if (blockIdx.x == 0 && thread == 0) d.dirty[blockIdx.y] = 0;  // `update` sets it again where it must
  const Tile t = tile_here(d);
  const Shelf shelf{gaussians, boxes, slots};
  Sums sums[2];
  forward(d, t, shelf, sums);
  const Patch patch = patch_here();
  float error = 0.0f;
  for (int p = 0; p < 2; ++p) {
    const int x = patch.x + 8 * p;
    const Sums r = residual_at(d, t, x, patch.y, sums[p]);
    float* to = residual + patch.y * kPitch + x;
    to[0] = r.red;
    to[kPlane] = r.green;
    to[2 * kPlane] = r.blue;
    error += squared(r);
  }
  store_error(d, t, error, warps);  // its barrier also completes the residual
  if (t.count == 0) return;
  int first = (t.count - 1) / kBlock * kBlock;  // the Gaussians that `forward` left on the shelf
  backward(d, t, shelf, residual, t.count - first);
  while (first > 0) {
    first -= kBlock;
    __syncthreads();
    load_shelf(d, t, first, shelf);
    __syncthreads();
    backward(d, t, shelf, residual, kBlock);
  }
}

// The squared error alone.
__global__ void __launch_bounds__(kBlock) measure_tile(DeviceChunk d) {
  __shared__ DeviceGaussian gaussians[kBlock];
  __shared__ unsigned boxes[kBlock];
  __shared__ int slots[kBlock];
  __shared__ float warps[kWarps];
  if (block_halted(d)) return;
  const Tile t = tile_here(d);
  Sums sums[2];
  forward(d, t, {gaussians, boxes, slots}, sums);
  const Patch patch = patch_here();
  float error = 0.0f;
  for (int p = 0; p < 2; ++p) error += squared(residual_at(d, t, patch.x + 8 * p, patch.y, sums[p]));
  store_error(d, t, error, warps);
}

}  // namespace splat2d
