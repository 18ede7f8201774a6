// The native reader and writer of .gs2d under sanitizers: any bytes, in both readers, then what was read back to bytes.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "codec_read.h"

namespace codec = splat2d::codec;

namespace {

constexpr std::size_t kMostBytes = codec::kHeaderBytes + 64 * codec::kBytesPerGaussian;

[[noreturn]] void broken(const char* what) {
    std::fprintf(stderr, "a promise is broken: %s\n", what);
    std::abort();
}

struct Read {
    codec::Header header;
    std::vector<float> means, cholesky, colors;
};

std::optional<Read> read(const codec::Reader& with, const std::uint8_t* data, std::size_t size) {
    try {
        Read r;
        r.header = with.header({data, size});
        r.means.resize(2 * r.header.count), r.cholesky.resize(3 * r.header.count), r.colors.resize(3 * r.header.count);
        with.values(data, r.header, {r.means.data(), r.cholesky.data(), r.colors.data()});
        return r;
    } catch (const std::invalid_argument& error) {
        if (std::strncmp(error.what(), "gs2d: ", 6) != 0) broken("an error that does not say what it is of");
        return std::nullopt;
    }
}

void portable_values(const std::uint8_t* data, const codec::Header& header, const codec::MutableSplats& splats) {
    codec::decode_values(data, header, splats);
}

bool same(const std::vector<float>& a, const std::vector<float>& b) {
    return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0);
}

void as_file(const std::uint8_t* given, std::size_t size) {
    const std::unique_ptr<std::uint8_t[]> data(new std::uint8_t[size]);  // exactly as long: one byte more is seen
    std::copy_n(given, size, data.get());
    const codec::Reader portable{codec::crc32, portable_values};
    const auto plain = read(portable, data.get(), size);
#if defined(SPLAT2D_X86)
    if (const codec::Reader* fast = codec::reader_avx2()) {
        const auto other = read(*fast, data.get(), size);
        if (plain.has_value() != other.has_value()) broken("one reader takes what the other refuses");
        if (plain && !(same(plain->means, other->means) && same(plain->cholesky, other->cholesky) &&
                       same(plain->colors, other->colors)))
            broken("the readers' values differ");
        if (fast->crc(data.get(), size, 0) != codec::crc32(data.get(), size)) broken("the sums differ");
    }
#endif
    if (!plain) return;
    std::vector<std::uint8_t> again(codec::encoded_size(plain->header.count));
    const codec::ConstSplats splats{plain->means.data(), plain->cholesky.data(), plain->colors.data()};
    if (codec::encode(splats, plain->header, again.data()) != 0) broken("what was read is clamped when written");
    if (!std::equal(again.begin(), again.end(), data.get(), data.get() + size)) broken("written again other bytes");
}

// The same bytes as a file of right length, version and sum: what lies behind the header is reached.
void as_values(const std::uint8_t* given, std::size_t size) {
    const std::size_t count = (size - codec::kHeaderBytes) / codec::kBytesPerGaussian;
    std::vector<std::uint8_t> data(given, given + codec::encoded_size(count));
    std::memcpy(data.data(), "GS2D\1\0\1\0", 8);
    codec::detail::put32(&data[16], static_cast<std::uint32_t>(count));
    codec::detail::put32(&data[20], codec::crc32(&data[24], data.size() - 24, codec::crc32(data.data(), 20)));
    as_file(data.data(), data.size());
}

// The same bytes as the numbers to be written: any float, NaN and infinity too.
void as_numbers(const std::uint8_t* given, std::size_t size) {
    if (size < 8) return;
    const codec::Header header{codec::detail::get32(given), codec::detail::get32(given + 4),
                               static_cast<std::uint32_t>((size - 8) / 32)};
    std::vector<float> values(8 * header.count);
    if (header.count) std::memcpy(values.data(), given + 8, values.size() * sizeof(float));
    const float* at = values.data();
    std::vector<std::uint8_t> out(codec::encoded_size(header.count));
    try {
        codec::encode({at, at + 2 * header.count, at + 5 * header.count}, header, out.data());
    } catch (const std::invalid_argument&) {
        return;
    }
    if (!read({codec::crc32, portable_values}, out.data(), out.size())) broken("what was written cannot be read");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    if (size > kMostBytes) return 0;
    as_file(data, size);
    if (size >= codec::kHeaderBytes) as_values(data, size);
    as_numbers(data, size);
    return 0;
}

#if defined(REPLAY)
int main(int argc, char** argv) {
    for (int i = 1; i < argc; ++i) {
        std::FILE* file = std::fopen(argv[i], "rb");
        if (file == nullptr) return 2;
        std::vector<std::uint8_t> data(kMostBytes + 1);
        data.resize(std::fread(data.data(), 1, data.size(), file));
        std::fclose(file);
        LLVMFuzzerTestOneInput(data.data(), data.size());
        std::printf("%s: holds\n", argv[i]);
    }
    return argc > 1 ? 0 : 2;
}
#endif
