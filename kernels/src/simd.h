// Vectors of kLanes floats in GCC's vector extension, their exp and a transposing sum.
#pragma once

#include <cstdint>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "splat2d/config.h"

namespace splat2d {
inline namespace SPLAT2D_TARGET {

#define SPLAT2D_INLINE inline __attribute__((always_inline))

constexpr int kLanes = SPLAT2D_LANES;
typedef float VF __attribute__((vector_size(4 * SPLAT2D_LANES)));
typedef std::int32_t VI __attribute__((vector_size(4 * SPLAT2D_LANES)));
typedef std::uint32_t VU __attribute__((vector_size(4 * SPLAT2D_LANES)));

SPLAT2D_INLINE VF all(float value) { return VF{} + value; }

SPLAT2D_INLINE VF lane_numbers() {
  VF out;
  for (int i = 0; i < kLanes; ++i) out[i] = static_cast<float>(i);
  return out;
}

SPLAT2D_INLINE VF load(const float* from) { return *reinterpret_cast<const VF*>(from); }
// Whole numbers 0 to 255.
SPLAT2D_INLINE VF load_bytes(const std::uint8_t* from) {
#if SPLAT2D_LANES == 16
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  return (VF)_mm512_maskz_cvtepi32_ps(0xffff, _mm512_maskz_cvtepu8_epi32(0xffff, bytes));
#elif defined(__AVX2__)
  return (VF)_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from))));
#else
  VF out;
  for (int i = 0; i < kLanes; ++i) out[i] = static_cast<float>(from[i]);
  return out;
#endif
}

SPLAT2D_INLINE void store(float* to, VF value) { *reinterpret_cast<VF*>(to) = value; }

// max(a, b) gives b, min(a, b) gives b where a is no number.
#if SPLAT2D_LANES == 16
constexpr __mmask16 kAll = 0xffff;  // GCC 12 warns of its own headers where the forms without a mask are used
SPLAT2D_INLINE VF max(VF a, VF b) { return (VF)_mm512_maskz_max_ps(kAll, (__m512)a, (__m512)b); }
SPLAT2D_INLINE VF min(VF a, VF b) { return (VF)_mm512_maskz_min_ps(kAll, (__m512)a, (__m512)b); }
SPLAT2D_INLINE VF square_root(VF a) { return (VF)_mm512_maskz_sqrt_ps(kAll, (__m512)a); }
#elif defined(__AVX2__)
SPLAT2D_INLINE VF max(VF a, VF b) { return (VF)_mm256_max_ps((__m256)a, (__m256)b); }
SPLAT2D_INLINE VF min(VF a, VF b) { return (VF)_mm256_min_ps((__m256)a, (__m256)b); }
SPLAT2D_INLINE VF square_root(VF a) { return (VF)_mm256_sqrt_ps((__m256)a); }
#else
SPLAT2D_INLINE VF max(VF a, VF b) { return a > b ? a : b; }
SPLAT2D_INLINE VF min(VF a, VF b) { return a < b ? a : b; }
SPLAT2D_INLINE VF square_root(VF a) {
  for (int i = 0; i < kLanes; ++i) a[i] = __builtin_sqrtf(a[i]);
  return a;
}
#endif

// Truncated; lanes outside the range of int are anything.
SPLAT2D_INLINE VI truncated(VF a) { return __builtin_convertvector(a, VI); }
SPLAT2D_INLINE VF as_floats(VI a) { return __builtin_convertvector(a, VF); }

// Lanes that are all ones where a comparison holds.
typedef decltype(VF{} < VF{}) Mask;

// value >= limit where both are positive or zero.
#if SPLAT2D_LANES == 16 || defined(__AVX2__)
SPLAT2D_INLINE Mask at_least(VF value, float limit) { return value >= limit; }
#else
// Such floats are ordered as their bits are. GCC takes comparisons of vectors wider than the machine's to pieces.
SPLAT2D_INLINE Mask at_least(VF value, float limit) { return ~(((VI)value - (VI)all(limit)) >> 31); }
#endif

// sum + a * b in the lanes of `where`, sum elsewhere; sum and b are finite.
#if SPLAT2D_LANES == 16
SPLAT2D_INLINE VF add_where(Mask where, VF a, VF b, VF sum) { return where ? sum + a * b : sum; }  // one masked FMA
#else
SPLAT2D_INLINE VF add_where(Mask where, VF a, VF b, VF sum) { return sum + (VF)((VI)a & where) * b; }
#endif

// exp(x) 2^bits with relative error under 3e-7 where the result is a normal number; anything elsewhere.
SPLAT2D_INLINE VF exp_scaled(VF x, int bits) {
  const VF shifted = x * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: the sum's low bits are the nearest integer
  const VF whole = shifted - 12582912.0f;
  const VF f = (x - whole * 0.693359375f) + whole * 2.12194440e-4f;
  VF p = f * 1.9875691e-4f + 1.3981999e-3f;
  p = p * f + 8.3334519e-3f;
  p = p * f + 4.1665796e-2f;
  p = p * f + 1.6666665e-1f;
  p = p * f + 0.5f;
  p = p * f * f + f + 1.0f;
  const VU exponent = ((VU)shifted + static_cast<std::uint32_t>(bits)) << 23;  // unsigned: it wraps
  return (VF)((VU)p + exponent);
}

// exp with relative error under 3e-7 for -87 <= x <= 87; arguments outside are moved to those ends.
SPLAT2D_INLINE VF exp(VF x) {
  return exp_scaled(min(max(x, all(-87.0f)), all(87.0f)), 0);
}

// out[j] = sum of the lanes of v[j], for 8 vectors at once.
#if SPLAT2D_LANES == 16
typedef float V8 __attribute__((vector_size(32), aligned(4)));

SPLAT2D_INLINE VF halves(VF p, VF q) {
  return __builtin_shufflevector(p, q, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
         __builtin_shufflevector(p, q, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
}
SPLAT2D_INLINE VF quarters(VF p, VF q) {
  return __builtin_shufflevector(p, q, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27) +
         __builtin_shufflevector(p, q, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
}
SPLAT2D_INLINE VF eighths(VF p, VF q) {
  return __builtin_shufflevector(p, q, 0, 1, 4, 5, 8, 9, 12, 13, 16, 17, 20, 21, 24, 25, 28, 29) +
         __builtin_shufflevector(p, q, 2, 3, 6, 7, 10, 11, 14, 15, 18, 19, 22, 23, 26, 27, 30, 31);
}
SPLAT2D_INLINE V8 lane_sums(const VF (&v)[8]) {
  const VF low = quarters(halves(v[0], v[1]), halves(v[2], v[3]));
  const VF high = quarters(halves(v[4], v[5]), halves(v[6], v[7]));
  const VF pairs = eighths(low, high);
  return __builtin_shufflevector(pairs, pairs, 0, 2, 4, 6, 8, 10, 12, 14) +
         __builtin_shufflevector(pairs, pairs, 1, 3, 5, 7, 9, 11, 13, 15);
}
#else
typedef float V8 __attribute__((vector_size(32), aligned(4)));

SPLAT2D_INLINE VF halves(VF p, VF q) {
  return __builtin_shufflevector(p, q, 0, 1, 2, 3, 8, 9, 10, 11) +
         __builtin_shufflevector(p, q, 4, 5, 6, 7, 12, 13, 14, 15);
}
SPLAT2D_INLINE VF quarters(VF p, VF q) {
  return __builtin_shufflevector(p, q, 0, 1, 4, 5, 8, 9, 12, 13) +
         __builtin_shufflevector(p, q, 2, 3, 6, 7, 10, 11, 14, 15);
}
SPLAT2D_INLINE V8 lane_sums(const VF (&v)[8]) {
  const VF low = quarters(halves(v[0], v[1]), halves(v[2], v[3]));
  const VF high = quarters(halves(v[4], v[5]), halves(v[6], v[7]));
  return __builtin_shufflevector(low, high, 0, 2, 4, 6, 8, 10, 12, 14) +
         __builtin_shufflevector(low, high, 1, 3, 5, 7, 9, 11, 13, 15);
}
#endif

// to[i * stride + j] = fields[j][i]: kLanes records of 8 floats.
#if SPLAT2D_LANES == 16
SPLAT2D_INLINE void store_records(const VF (&fields)[8], float* to, int stride) {
  VF pairs[8], fours[8];
  for (int j = 0; j < 8; j += 2) {  // inside each quarter of the lanes
    pairs[j] = __builtin_shufflevector(fields[j], fields[j + 1], 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13,
                                       29);
    pairs[j + 1] = __builtin_shufflevector(fields[j], fields[j + 1], 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30,
                                           15, 31);
  }
  for (int j = 0; j < 8; j += 4) {
    for (int k = 0; k < 2; ++k) {
      fours[j + 2 * k] = __builtin_shufflevector(pairs[j + k], pairs[j + k + 2], 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24,
                                                 25, 12, 13, 28, 29);
      fours[j + 2 * k + 1] = __builtin_shufflevector(pairs[j + k], pairs[j + k + 2], 2, 3, 18, 19, 6, 7, 22, 23, 10, 11,
                                                     26, 27, 14, 15, 30, 31);
    }
  }
  for (int j = 0; j < 4; ++j) {  // record j of every quarter: its first half in fours[j], its second in fours[j + 4]
    const VF low = __builtin_shufflevector(fours[j], fours[j + 4], 0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22,
                                           23);
    const VF high = __builtin_shufflevector(fours[j], fours[j + 4], 8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28,
                                            29, 30, 31);
    *reinterpret_cast<V8*>(to + j * stride) = __builtin_shufflevector(low, low, 0, 1, 2, 3, 4, 5, 6, 7);
    *reinterpret_cast<V8*>(to + (j + 4) * stride) = __builtin_shufflevector(low, low, 8, 9, 10, 11, 12, 13, 14, 15);
    *reinterpret_cast<V8*>(to + (j + 8) * stride) = __builtin_shufflevector(high, high, 0, 1, 2, 3, 4, 5, 6, 7);
    *reinterpret_cast<V8*>(to + (j + 12) * stride) = __builtin_shufflevector(high, high, 8, 9, 10, 11, 12, 13, 14, 15);
  }
}
#else
SPLAT2D_INLINE void store_records(const VF (&fields)[8], float* to, int stride) {
  for (int i = 0; i < kLanes; ++i) {
    for (int j = 0; j < 8; ++j) to[i * stride + j] = fields[j][i];
  }
}
#endif

}  // namespace SPLAT2D_TARGET
}  // namespace splat2d
