// Products of many vectors with one matrix: what a metric on patches costs.
#pragma once

#include <cstddef>

#include "engine.h"
#include "simd.h"

namespace splat2d {
inline namespace SPLAT2D_TARGET {
namespace {

// Sums stay in registers: kVectorBlock times two vectors of a machine that has 32 or 16 of them.
constexpr int kVectorBlock = kLanes == 16 ? 8 : 4;
static_assert(kMetricVectors % kVectorBlock == 0 && kMetricColumns % (2 * kLanes) == 0);

void multiply(const float* vectors, int count, const float* matrix, int rows, int columns, float* out) {
  for (int v = 0; v < count; v += kVectorBlock) {
    const float* const from = vectors + static_cast<std::size_t>(v) * rows;
    float* const to = out + static_cast<std::size_t>(v) * columns;
    for (int c = 0; c < columns; c += 2 * kLanes) {
      VF sums[kVectorBlock][2] = {};
      const float* at = matrix + c;
      for (int r = 0; r < rows; ++r, at += columns) {
        const VF left = load(at), right = load(at + kLanes);
#pragma GCC unroll 8
        for (int k = 0; k < kVectorBlock; ++k) {
          const VF value = all(from[static_cast<std::size_t>(k) * rows + r]);
          sums[k][0] += value * left;
          sums[k][1] += value * right;
        }
      }
      for (int k = 0; k < kVectorBlock; ++k) {
        store(to + static_cast<std::size_t>(k) * columns + c, sums[k][0]);
        store(to + static_cast<std::size_t>(k) * columns + c + kLanes, sums[k][1]);
      }
    }
  }
}

}  // namespace
}  // namespace SPLAT2D_TARGET
}  // namespace splat2d
