// Choosing the largest of many values with one block, without a sort: a search for the last one's bits, then ranks.
#pragma once

#include "cuda_chunk.cuh"

namespace splat2d {

// Orders as the float does.
__device__ inline unsigned order_of(float value) {
  const unsigned bits = __float_as_uint(value);
  return (bits >> 31) != 0 ? ~bits : bits | 0x80000000u;
}

struct Rank {
  int before, total;  // threads of the block with a flag: those before this one, all
};

// `totals` is shared memory for kWarps numbers. Every thread of the block must come here.
__device__ inline Rank rank_of(bool flag, int* totals) {
  const int thread = static_cast<int>(threadIdx.x), lane = thread % kWarp, warp = thread / kWarp;
  const unsigned flags = __ballot_sync(kAllLanes, flag);
  if (lane == 0) totals[warp] = __popc(flags);
  __syncthreads();
  Rank rank{__popc(flags & ((1u << lane) - 1u)), 0};
  for (int w = 0; w < kWarps; ++w) {
    if (w < warp) rank.before += totals[w];
    rank.total += totals[w];
  }
  __syncthreads();
  return rank;
}

// What the `wanted` largest of values[0 .. count - 1] have in common: they lie above `least`, and the first `equal` of
// those that equal it.
struct Choice {
  unsigned least;
  int equal;
};

__device__ inline int count_from(const float* values, int count, unsigned least, int* totals) {
  const int thread = static_cast<int>(threadIdx.x);
  int own = 0;
  for (int i = thread; i < count; i += kBlock) own += order_of(values[i]) >= least;
  for (int step = kWarp / 2; step > 0; step /= 2) own += __shfl_xor_sync(kAllLanes, own, step);
  if (thread % kWarp == 0) totals[thread / kWarp] = own;
  __syncthreads();
  int all = 0;
  for (int w = 0; w < kWarps; ++w) all += totals[w];
  __syncthreads();
  return all;
}

// 1 <= wanted <= count.
__device__ inline Choice largest(const float* values, int count, int wanted, int* totals) {
  unsigned least = 0;
  for (unsigned bit = 0x80000000u; bit != 0; bit >>= 1) {
    if (count_from(values, count, least | bit, totals) >= wanted) least |= bit;
  }
  const int above = least == 0xffffffffu ? 0 : count_from(values, count, least + 1, totals);
  return {least, wanted - above};
}

}  // namespace splat2d
