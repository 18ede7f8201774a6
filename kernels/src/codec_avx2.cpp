// .gs2d's CRC and values in vectors. Only functions marked SPLAT2D_AVX2 use these instructions: no inline function that other
// files share is compiled with them.
#if defined(SPLAT2D_X86)
#include <cpuid.h>
#include <immintrin.h>

#include "codec_read.h"

#define SPLAT2D_AVX2 __attribute__((target("avx2,f16c,pclmul")))

namespace splat2d::codec {
namespace {

// x^power modulo the CRC's polynomial, bits reflected (bit 31 is x^0), one place up: reflected products come out one
// place too low.
constexpr long long folding(int power) {
    std::uint32_t r = 0x80000000u;
    for (int i = 0; i < power; ++i) r = r & 1 ? r >> 1 ^ 0xEDB88320u : r >> 1;
    return static_cast<long long>(r) << 1;
}

SPLAT2D_AVX2 inline __m128i load(const std::uint8_t* from) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
}

// Moves 128 bits ahead over the distance that `by` holds the two powers of, and adds what lies there.
SPLAT2D_AVX2 inline __m128i fold(__m128i value, __m128i by, __m128i there) {
    const __m128i low = _mm_clmulepi64_si128(value, by, 0x00), high = _mm_clmulepi64_si128(value, by, 0x11);
    return _mm_xor_si128(_mm_xor_si128(low, high), there);
}

// Polynomial folding: a block of 128 bits is congruent to its product with x^D, D bits later in the message. What is
// left in the end, 16 bytes and a tail, goes through the tables.
SPLAT2D_AVX2 std::uint32_t folded_crc32(const std::uint8_t* data, std::size_t size, std::uint32_t crc) {
    if (size < 64) return crc32(data, size, crc);
    const __m128i far = _mm_set_epi64x(folding(512 - 32), folding(512 + 32));
    const __m128i near = _mm_set_epi64x(folding(128 - 32), folding(128 + 32));
    __m128i a = _mm_xor_si128(load(data), _mm_cvtsi32_si128(static_cast<int>(~crc)));
    __m128i b = load(data + 16), c = load(data + 32), d = load(data + 48);
    for (data += 64, size -= 64; size >= 64; data += 64, size -= 64) {
        a = fold(a, far, load(data));
        b = fold(b, far, load(data + 16));
        c = fold(c, far, load(data + 32));
        d = fold(d, far, load(data + 48));
    }
    a = fold(fold(fold(a, near, b), near, c), near, d);
    for (; size >= 16; data += 16, size -= 16) a = fold(a, near, load(data));
    std::uint8_t rest[16];
    _mm_storeu_si128(reinterpret_cast<__m128i*>(rest), a);
    return crc32(data, size, crc32(rest, sizeof rest, 0xFFFFFFFFu));
}

// Four positions as position_from_fixed gives them, in double precision.
SPLAT2D_AVX2 inline __m128 positions(__m128i fixed, double side) {
    const __m256d scaled = _mm256_mul_pd(_mm256_cvtepi32_pd(fixed), _mm256_set1_pd(2.0 * side));
    return _mm256_cvtpd_ps(
        _mm256_sub_pd(_mm256_div_pd(scaled, _mm256_set1_pd(65535.0)), _mm256_set1_pd(0.5 * side)));
}

SPLAT2D_AVX2 inline __m256 eight_positions(const std::uint8_t* from, double side) {
    const __m256i fixed = _mm256_cvtepu16_epi32(load(from));
    return _mm256_set_m128(positions(_mm256_extracti128_si256(fixed, 1), side),
                           positions(_mm256_castsi256_si128(fixed), side));
}

// Eight values of `a`, `b` and `c` taken by `lane`; from b and c where the bits of their masks say so.
template <int kFromB, int kFromC>
SPLAT2D_AVX2 inline __m256 woven(__m256 a, __m256 b, __m256 c, __m256i lane) {
    const __m256 two = _mm256_blend_ps(_mm256_permutevar8x32_ps(a, lane), _mm256_permutevar8x32_ps(b, lane), kFromB);
    return _mm256_blend_ps(two, _mm256_permutevar8x32_ps(c, lane), kFromC);
}

// Eight rows of three: a0 b0 c0 a1 b1 c1 ... c7.
SPLAT2D_AVX2 inline void store_rows(float* to, __m256 a, __m256 b, __m256 c) {
    _mm256_storeu_ps(to, woven<0x92, 0x24>(a, b, c, _mm256_setr_epi32(0, 0, 0, 1, 1, 1, 2, 2)));
    _mm256_storeu_ps(to + 8, woven<0x24, 0x49>(a, b, c, _mm256_setr_epi32(2, 3, 3, 3, 4, 4, 4, 5)));
    _mm256_storeu_ps(to + 16, woven<0x49, 0x92>(a, b, c, _mm256_setr_epi32(5, 5, 6, 6, 6, 7, 7, 7)));
}

// Lanes that are not 0 where a half is infinite or NaN ...
SPLAT2D_AVX2 inline __m128i not_finite(__m128i half) {
    return _mm_cmpgt_epi16(_mm_and_si128(half, _mm_set1_epi16(0x7FFF)), _mm_set1_epi16(kHalfMax));
}

// ... or no positive normal number. As signed words negative halves are below kHalfMinNormal.
SPLAT2D_AVX2 inline __m128i not_positive(__m128i half) {
    return _mm_or_si128(_mm_cmpgt_epi16(_mm_set1_epi16(kHalfMinNormal), half),
                        _mm_cmpgt_epi16(half, _mm_set1_epi16(kHalfMax)));
}

SPLAT2D_AVX2 void values(const std::uint8_t* data, const Header& header, const MutableSplats& splats) {
    const std::size_t n = header.count, eights = n - n % 8, plane = 2 * n;
    const std::uint8_t* from = data + kHeaderBytes;
    __m128i bad = _mm_setzero_si128();
    for (std::size_t i = 0; i < eights; i += 8) {
        const std::uint8_t* at = from + 2 * i;
        const __m256 x = eight_positions(at, header.width), y = eight_positions(at + plane, header.height);
        const __m256 low = _mm256_unpacklo_ps(x, y), high = _mm256_unpackhi_ps(x, y);
        _mm256_storeu_ps(splats.means + 2 * i, _mm256_permute2f128_ps(low, high, 0x20));
        _mm256_storeu_ps(splats.means + 2 * i + 8, _mm256_permute2f128_ps(low, high, 0x31));

        const __m128i l00 = load(at + 2 * plane), l10 = load(at + 3 * plane), l11 = load(at + 4 * plane);
        bad = _mm_or_si128(bad, _mm_or_si128(not_positive(l00), not_positive(l11)));
        store_rows(splats.cholesky + 3 * i, _mm256_cvtph_ps(l00), _mm256_cvtph_ps(l10), _mm256_cvtph_ps(l11));

        const __m128i r = load(at + 5 * plane), g = load(at + 6 * plane), b = load(at + 7 * plane);
        bad = _mm_or_si128(bad, _mm_or_si128(_mm_or_si128(not_finite(l10), not_finite(r)),
                                             _mm_or_si128(not_finite(g), not_finite(b))));
        store_rows(splats.colors + 3 * i, _mm256_cvtph_ps(r), _mm256_cvtph_ps(g), _mm256_cvtph_ps(b));
    }
    // the portable loop does what is left; where a value is wrong it starts over, and names it
    decode_values(data, header, splats, _mm_testz_si128(bad, bad) ? eights : 0);
}

constexpr Reader kReader{folded_crc32, values};

}  // namespace

const Reader* reader_avx2() {
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2")) return nullptr;  // asks whether the system keeps the registers, too
    // compilers before GCC 11 do not know the names f16c and pclmul there
    unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
    const bool told = __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0;
    return told && (ecx & bit_F16C) && (ecx & bit_PCLMUL) ? &kReader : nullptr;
}

}  // namespace splat2d::codec
#endif
