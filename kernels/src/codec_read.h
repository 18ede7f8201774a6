// Reading .gs2d files with what the processor has: the same values and errors as codec.h, sooner.
#pragma once

#include <cstddef>
#include <cstdint>

#include "splat2d/codec.h"

namespace splat2d::codec {

struct File {
    const std::uint8_t* data;
    std::size_t size;
};

// How this process reads: as SPLAT2D_BACKEND says, or the best that the processor has.
struct Reader {
    Crc32 crc;
    void (*values)(const std::uint8_t* data, const Header& header, const MutableSplats& splats);

    // Header and CRC checked; throws as codec::read_header does.
    Header header(const File& file) const { return read_header(file.data, file.size, crc); }
};
const Reader& reader();

#if defined(SPLAT2D_X86)
// nullptr where the processor lacks AVX2, F16C or PCLMULQDQ.
const Reader* reader_avx2();
#endif

// Reads a file into `rows` rows of each array and fills the rest with zeros; returns its header.
// Throws std::invalid_argument as read_header and decode_values do, and where the file has more than `rows` Gaussians.
Header decode_padded(const File& file, std::size_t rows, const MutableSplats& to);

}  // namespace splat2d::codec
