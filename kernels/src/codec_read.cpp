// Choice of the reader, and files into rows of padded arrays.
#include "codec_read.h"

#include <algorithm>

#include "splat2d/fit.h"

namespace splat2d::codec {
namespace {

void portable_values(const std::uint8_t* data, const Header& header, const MutableSplats& splats) {
    decode_values(data, header, splats);
}

constexpr Reader kPortable{crc32, portable_values};

}  // namespace

const Reader& reader() {
#if defined(SPLAT2D_X86)
    if (backend() != "portable")
        if (const Reader* found = reader_avx2()) return *found;
#endif
    return kPortable;
}

Header decode_padded(const File& file, std::size_t rows, const MutableSplats& to) {
    const Reader& with = reader();
    const Header header = with.header(file);
    const std::size_t n = header.count;
    if (n > rows) detail::refuse(std::to_string(n) + " Gaussians; room is for " + std::to_string(rows));
    with.values(file.data, header, to);
    std::fill(to.means + 2 * n, to.means + 2 * rows, 0.0f);
    std::fill(to.cholesky + 3 * n, to.cholesky + 3 * rows, 0.0f);
    std::fill(to.colors + 3 * n, to.colors + 3 * rows, 0.0f);
    return header;
}

}  // namespace splat2d::codec
