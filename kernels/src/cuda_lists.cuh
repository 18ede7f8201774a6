// Kernels that tie Gaussians to tiles. They do nothing for pictures whose lists are still good: `update` marks a
// picture when one of its Gaussians leaves the tiles it is listed in.
#pragma once

#include "cuda_chunk.cuh"

namespace splat2d {

// One block a picture: the tiles of each Gaussian, and its slots by a running sum over the Gaussians.
__global__ void __launch_bounds__(kBlock) place(DeviceChunk d) {
  __shared__ int totals[kWarps];
  const int picture = static_cast<int>(blockIdx.x), thread = static_cast<int>(threadIdx.x);
  if (!d.dirty[picture] || !d.active[picture]) return;
  const int lane = thread % kWarp, warp = thread / kWarp, count = d.counts[picture];
  const std::size_t row = static_cast<std::size_t>(picture) * d.num_gaussians;
  long long carry = 0;
  for (int first = 0; first < count; first += kBlock) {
    const int i = first + thread;
    Box tiles = no_box();
    if (i < count) tiles = tiles_of(bounds(d.gaussians[row + i], d, kSlack + kMargin));
    const int own = (tiles.x1 - tiles.x0 + 1) * (tiles.y1 - tiles.y0 + 1);
    int sum = own;
    for (int step = 1; step < kWarp; step *= 2) {
      const int lower = __shfl_up_sync(kAllLanes, sum, step);
      if (lane >= step) sum += lower;
    }
    if (lane == kWarp - 1) totals[warp] = sum;
    __syncthreads();
    long long start = carry + sum - own;
    for (int w = 0; w < kWarps; ++w) {
      if (w < warp) start += totals[w];
      carry += totals[w];
    }
    if (i < count) {
      d.listed[row + i] = {static_cast<short>(tiles.x0), static_cast<short>(tiles.x1), static_cast<short>(tiles.y0),
                           static_cast<short>(tiles.y1), static_cast<int>(start)};
    }
    __syncthreads();
  }
  if (thread == 0 && carry > d.slot_capacity) {
    atomicMax(&d.control->slots_needed, static_cast<unsigned long long>(carry));
  }
}

// One warp a tile: it looks through the picture's Gaussians, 32 at a time, and keeps those that touch the tile.
__global__ void __launch_bounds__(kBlock) list(DeviceChunk d) {
  const int picture = static_cast<int>(blockIdx.y), thread = static_cast<int>(threadIdx.x);
  const int lane = thread % kWarp, tile = static_cast<int>(blockIdx.x) * kWarps + thread / kWarp;
  if (tile >= d.tiles || !d.dirty[picture] || !d.active[picture]) return;
  const int x = tile % d.tiles_x, y = tile / d.tiles_x, count = d.counts[picture];
  const Listed* all = d.listed + static_cast<std::size_t>(picture) * d.num_gaussians;
  const std::size_t row = tile_row(d, picture, tile);
  TileEntry* to = d.entries + row * d.list_capacity;
  int number = 0;
  for (int first = 0; first < count; first += kWarp) {
    const int i = first + lane;
    Listed l{1, 0, 1, 0, 0};
    if (i < count) l = all[i];
    const bool hit = l.x0 <= x && x <= l.x1 && l.y0 <= y && y <= l.y1;
    const unsigned hits = __ballot_sync(kAllLanes, hit);
    const int at = number + __popc(hits & ((1u << lane) - 1u));
    if (hit && at < d.list_capacity) to[at] = {i, l.start + (y - l.y0) * (l.x1 - l.x0 + 1) + x - l.x0};
    number += __popc(hits);
  }
  if (lane == 0) {
    d.tile_counts[row] = number;
    if (number > d.list_capacity) atomicMax(&d.control->list_needed, number);
  }
}

}  // namespace splat2d
