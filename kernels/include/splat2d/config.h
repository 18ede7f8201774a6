// Macros and constants shared by every layer of splat2d, host and device.
#pragma once

// One source of maths for g++ and nvcc. The inline namespace keeps the copies that are built with different
// instruction sets apart: without it the linker may hand AVX-512 code to a portable caller.
#ifndef SPLAT2D_TARGET
#define SPLAT2D_TARGET common
#endif
#if defined(__CUDACC__)
#define SPLAT2D_HD __host__ __device__ inline
#else
#define SPLAT2D_HD inline __attribute__((always_inline))
#endif

namespace splat2d {
inline namespace SPLAT2D_TARGET {

// A Gaussian ends where its Mahalanobis distance exceeds this: beyond it the contribution is exactly zero.
constexpr float kCutoff = 3.0f;
constexpr float kCutoffSquared = kCutoff * kCutoff;
constexpr float kCutoffValue = 0.011108996538242306f;  // exp(-kCutoff^2 / 2)
constexpr float kPi = 3.14159265358979f;

// Numbers of one Gaussian: x, y, three of shape, three of colour.
constexpr int kParameters = 8;

}  // namespace SPLAT2D_TARGET
}  // namespace splat2d
