// .gs2d version 1: splats as bytes and back (docs/splat-format.md is the specification, reference_codec.py the oracle).
//
//   offset  bytes  field
//   0       4      magic "GS2D"
//   4       2      version, u16        = 1
//   6       2      encoding id, u16    = 1 (planes of u16 fixed point and fp16)
//   8       4      width, u32          1 .. 16384
//   12      4      height, u32         1 .. 16384
//   16      4      count n, u32        0 .. 2^24
//   20      4      CRC-32 (IEEE 802.3) of bytes 0..19 and 24..end
//   24      16 n   planes of n values of 2 bytes: x, y | l00, l10, l11 | r, g, b
//
// All little-endian. Conversions work on bit patterns where a subnormal is at stake: callers may run with denormals
// flushed. No Python, no torch.
#pragma once

#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <stdexcept>
#include <string>

#ifdef __FAST_MATH__
#error "codec.h promises exact bytes: compile it without -ffast-math"
#endif

namespace splat2d::codec {

constexpr std::size_t kHeaderBytes = 24;
constexpr std::size_t kBytesPerGaussian = 16;
constexpr std::uint16_t kVersion = 1;
constexpr std::uint16_t kEncodingPlanes = 1;
constexpr std::uint32_t kMaxSide = 16384;
constexpr std::uint32_t kMaxCount = 1u << 24;
constexpr std::uint16_t kHalfMinNormal = 0x0400;  // 2^-14, the least standard deviation a file can hold
constexpr std::uint16_t kHalfMax = 0x7BFF;        // 65504
constexpr const char* kPlaneNames[8] = {"x", "y", "l00", "l10", "l11", "r", "g", "b"};

struct Header {
    std::uint32_t width = 0, height = 0, count = 0;
};

// Structure of arrays is the file's; these are the callers': means [n, 2], cholesky [n, 3], colors [n, 3].
struct ConstSplats {
    const float *means, *cholesky, *colors;
};
struct MutableSplats {
    float *means, *cholesky, *colors;
};

inline std::size_t encoded_size(std::size_t count) { return kHeaderBytes + kBytesPerGaussian * count; }

namespace detail {

inline std::uint32_t bits_of(float value) {
    std::uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

inline float float_of(std::uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

inline void put16(std::uint8_t* at, std::uint16_t v) {
    at[0] = static_cast<std::uint8_t>(v);
    at[1] = static_cast<std::uint8_t>(v >> 8);
}

inline void put32(std::uint8_t* at, std::uint32_t v) {
    put16(at, static_cast<std::uint16_t>(v));
    put16(at + 2, static_cast<std::uint16_t>(v >> 16));
}

inline std::uint16_t get16(const std::uint8_t* at) { return static_cast<std::uint16_t>(at[0] | at[1] << 8); }

inline std::uint32_t get32(const std::uint8_t* at) {
    return static_cast<std::uint32_t>(get16(at)) | static_cast<std::uint32_t>(get16(at + 2)) << 16;
}

[[noreturn]] inline void refuse(const std::string& what) { throw std::invalid_argument("gs2d: " + what); }

// "slicing by 8": eight tables, eight bytes a step.
constexpr std::array<std::array<std::uint32_t, 256>, 8> make_crc_tables() {
    std::array<std::array<std::uint32_t, 256>, 8> t{};
    for (std::uint32_t i = 0; i < 256; ++i) {
        std::uint32_t crc = i;
        for (int bit = 0; bit < 8; ++bit) crc = crc & 1 ? crc >> 1 ^ 0xEDB88320u : crc >> 1;
        t[0][i] = crc;
    }
    for (std::uint32_t i = 0; i < 256; ++i)
        for (int k = 1; k < 8; ++k) t[k][i] = t[k - 1][i] >> 8 ^ t[0][t[k - 1][i] & 0xFF];
    return t;
}

inline constexpr auto kCrcTables = make_crc_tables();

}  // namespace detail

// CRC-32 as in zlib and PNG; `crc` is the value of what came before.
inline std::uint32_t crc32(const std::uint8_t* data, std::size_t size, std::uint32_t crc = 0) {
    const auto& t = detail::kCrcTables;
    crc = ~crc;
    for (; size >= 8; data += 8, size -= 8) {
        const std::uint32_t low = crc ^ detail::get32(data), high = detail::get32(data + 4);
        crc = t[7][low & 0xFF] ^ t[6][low >> 8 & 0xFF] ^ t[5][low >> 16 & 0xFF] ^ t[4][low >> 24] ^
              t[3][high & 0xFF] ^ t[2][high >> 8 & 0xFF] ^ t[1][high >> 16 & 0xFF] ^ t[0][high >> 24];
    }
    for (; size > 0; ++data, --size) crc = crc >> 8 ^ t[0][(crc ^ *data) & 0xFF];
    return ~crc;
}

// float -> IEEE half, round to nearest even; infinite where it overflows; NaN must not come here.
inline std::uint16_t half_from_float(float value) {
    const std::uint32_t bits = detail::bits_of(value);
    const std::uint32_t sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7FFFFFFFu;
    std::uint32_t half;
    if (magnitude >= 0x47800000u) {  // 65536 and above
        half = 0x7C00u;
    } else if (magnitude >= 0x38800000u) {  // normal in half: a carry out of the mantissa may reach infinity, rightly
        const std::uint32_t rebased = magnitude - 0x38000000u;
        half = (rebased + 0xFFFu + (rebased >> 13 & 1u)) >> 13;
    } else if (magnitude >= 0x33000000u) {  // subnormal in half: 2^-25 and above
        const std::uint32_t shift = 126u - (magnitude >> 23);  // 14 .. 24
        const std::uint32_t mantissa = (magnitude & 0x7FFFFFu) | 0x800000u;
        half = mantissa >> shift;
        const std::uint32_t rest = mantissa & ((1u << shift) - 1u), middle = 1u << (shift - 1u);
        half += rest > middle || (rest == middle && (half & 1u));
    } else {
        half = 0;
    }
    return static_cast<std::uint16_t>(sign | half);
}

// Finite IEEE half -> float, exact. A half subnormal is a normal float, reached by way of an integer.
inline float float_from_half(std::uint16_t half) {
    const std::uint32_t sign = (half & 0x8000u) << 16, magnitude = half & 0x7FFFu;
    const float tiny = static_cast<float>(static_cast<std::int32_t>(magnitude)) * 5.9604644775390625e-8f;  // 2^-24
    const std::uint32_t bits = magnitude < kHalfMinNormal ? detail::bits_of(tiny) : (magnitude << 13) + 0x38000000u;
    return detail::float_of(sign | bits);
}

// Position in pixels -> 0..65535 over [-side/2, 3 side/2]; out of range is clamped and counted.
inline std::uint16_t fixed_from_position(float position, double side, std::size_t& num_clamped) {
    const double low = -0.5 * side, high = 1.5 * side, p = position;
    if (p < low || p > high) {
        ++num_clamped;
        return p < low ? 0 : 65535;
    }
    return static_cast<std::uint16_t>(std::nearbyint((p - low) * 65535.0 / (2.0 * side)));
}

inline float position_from_fixed(std::uint16_t fixed, double side) {
    return static_cast<float>(fixed * (2.0 * side) / 65535.0 - 0.5 * side);
}

inline std::uint16_t half_clamped(float value, std::size_t& num_clamped) {
    const std::uint16_t half = half_from_float(value);
    if ((half & 0x7FFFu) <= kHalfMax) return half;
    ++num_clamped;
    return static_cast<std::uint16_t>((half & 0x8000u) | kHalfMax);
}

// For l00 and l11, which stay above 0.
inline std::uint16_t half_clamped_positive(float value, std::size_t& num_clamped) {
    const std::uint16_t half = half_clamped(value, num_clamped);
    if (half >= kHalfMinNormal) return half;
    ++num_clamped;
    return kHalfMinNormal;
}

inline void check_size(std::uint64_t width, std::uint64_t height, std::uint64_t count) {
    if (width < 1 || width > kMaxSide || height < 1 || height > kMaxSide)
        detail::refuse("width x height is " + std::to_string(width) + " x " + std::to_string(height) +
                       "; each must be 1 to " + std::to_string(kMaxSide));
    if (count > kMaxCount)
        detail::refuse("count is " + std::to_string(count) + "; it must be at most " + std::to_string(kMaxCount));
}

// Write encoded_size(count) bytes to `out`; returns how many values were stored clamped.
// Throws std::invalid_argument on NaN, on l00 or l11 not above 0, on sizes out of range.
inline std::size_t encode(const ConstSplats& splats, const Header& header, std::uint8_t* out) {
    check_size(header.width, header.height, header.count);
    const std::size_t n = header.count;
    const auto at = [&](std::size_t i, int plane) {
        return plane < 2 ? splats.means[2 * i + plane]
                         : plane < 5 ? splats.cholesky[3 * i + plane - 2] : splats.colors[3 * i + plane - 5];
    };
    std::size_t num_clamped = 0;
    std::uint8_t* to = out + kHeaderBytes;
    for (int plane = 0; plane < 8; ++plane) {
        const bool diagonal = plane == 2 || plane == 4;
        const double side = plane == 0 ? header.width : header.height;
        for (std::size_t i = 0; i < n; ++i, to += 2) {
            const float value = at(i, plane);
            const std::uint32_t bits = detail::bits_of(value);
            if ((bits & 0x7FFFFFFFu) > 0x7F800000u)
                detail::refuse(std::string(kPlaneNames[plane]) + " of Gaussian " + std::to_string(i) + " is NaN");
            if (diagonal && (bits == 0 || bits >> 31)) {
                char text[160];
                std::snprintf(text, sizeof text, "%s of Gaussian %zu is %g; it must be above 0", kPlaneNames[plane], i,
                              static_cast<double>(value));
                detail::refuse(text);
            }
            detail::put16(to, plane < 2 ? fixed_from_position(value, side, num_clamped)
                              : diagonal ? half_clamped_positive(value, num_clamped)
                                         : half_clamped(value, num_clamped));
        }
    }
    std::memcpy(out, "GS2D", 4);
    detail::put16(out + 4, kVersion);
    detail::put16(out + 6, kEncodingPlanes);
    detail::put32(out + 8, header.width);
    detail::put32(out + 12, header.height);
    detail::put32(out + 16, header.count);
    detail::put32(out + 20, crc32(out + kHeaderBytes, kBytesPerGaussian * n, crc32(out, 20)));
    return num_clamped;
}

using Crc32 = std::uint32_t (*)(const std::uint8_t* data, std::size_t size, std::uint32_t crc);

// Everything but the values: magic, version, encoding, sizes, length, CRC. Throws std::invalid_argument.
inline Header read_header(const std::uint8_t* data, std::size_t size, Crc32 crc = crc32) {
    using detail::refuse;
    if (size < kHeaderBytes)
        refuse("truncated: " + std::to_string(size) + " bytes, the header alone has " + std::to_string(kHeaderBytes));
    if (std::memcmp(data, "GS2D", 4) != 0) refuse("bytes 0-3 are not the magic 'GS2D': this is no .gs2d file");
    const unsigned version = detail::get16(data + 4), encoding = detail::get16(data + 6);
    if (version != kVersion)
        refuse("version " + std::to_string(version) + " at byte 4; this reader knows version 1: use a newer splat2d");
    if (encoding != kEncodingPlanes)
        refuse("encoding id " + std::to_string(encoding) + " at byte 6; this reader knows 1: use a newer splat2d");
    const Header header{detail::get32(data + 8), detail::get32(data + 12), detail::get32(data + 16)};
    check_size(header.width, header.height, header.count);
    const std::size_t expected = encoded_size(header.count);
    if (size != expected)
        refuse((size < expected ? "truncated: " : "too long: ") + std::to_string(size) + " bytes; " +
               std::to_string(header.count) + " Gaussians take " + std::to_string(expected));
    const std::uint32_t stored = detail::get32(data + 20);
    const std::uint32_t computed = crc(data + kHeaderBytes, size - kHeaderBytes, crc(data, 20, 0));
    if (stored != computed) {
        char text[160];
        std::snprintf(text, sizeof text, "CRC-32 at byte 20 is %08x, the content's is %08x: the file is damaged",
                      static_cast<unsigned>(stored), static_cast<unsigned>(computed));
        refuse(text);
    }
    return header;
}

// Read the values of a file that read_header has accepted. Throws std::invalid_argument on a value no writer writes:
// not finite, or l00 or l11 not a positive normal number. first: the Gaussian to begin with.
inline void decode_values(const std::uint8_t* data, const Header& header, const MutableSplats& splats,
                          std::size_t first = 0) {
    const std::size_t n = header.count;
    if (n == 0) return;  // an empty array may have no address, and none may be worked out from it
    const std::uint8_t* plane_at = data + kHeaderBytes;
    for (int plane = 0; plane < 2; ++plane, plane_at += 2 * n) {
        const double side = plane == 0 ? header.width : header.height;
        for (std::size_t i = first; i < n; ++i)
            splats.means[2 * i + plane] = position_from_fixed(detail::get16(plane_at + 2 * i), side);
    }
    for (int plane = 2; plane < 8; ++plane, plane_at += 2 * n) {
        float* to = plane < 5 ? splats.cholesky + plane - 2 : splats.colors + plane - 5;
        const unsigned least = plane == 2 || plane == 4 ? kHalfMinNormal : 0;
        const unsigned mask = least ? 0xFFFFu : 0x7FFFu;  // the sign counts on the diagonal only
        unsigned bad = 0;
        for (std::size_t i = first; i < n; ++i) {
            const std::uint16_t half = detail::get16(plane_at + 2 * i);
            const unsigned magnitude = half & mask;
            bad |= static_cast<unsigned>(magnitude < least) | static_cast<unsigned>(magnitude > kHalfMax);
            to[3 * i] = float_from_half(half);
        }
        for (std::size_t i = first; bad && i < n; ++i) {
            const unsigned half = detail::get16(plane_at + 2 * i), magnitude = half & mask;
            if (magnitude >= least && magnitude <= kHalfMax) continue;
            char text[160];
            std::snprintf(text, sizeof text, "%s of Gaussian %zu (byte %zu) is the half 0x%04x, which is not %s",
                          kPlaneNames[plane], i, static_cast<std::size_t>(plane_at - data) + 2 * i, half,
                          least ? "a positive normal number" : "finite");
            detail::refuse(text);
        }
    }
}

}  // namespace splat2d::codec
