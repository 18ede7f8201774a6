// Python's side of codec.h: arrays in, bytes out, and back.
#include "codec_read.h"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "bindings.h"

namespace py = pybind11;

namespace {

namespace codec = splat2d::codec;
using Array = py::array_t<float, py::array::c_style | py::array::forcecast>;

std::string shape_of(const py::array& array) {
    std::string text = "[";
    for (py::ssize_t i = 0; i < array.ndim(); ++i) text += (i ? ", " : "") + std::to_string(array.shape(i));
    return text + "]";
}

void expect(const py::array& array, const char* name, std::optional<py::ssize_t> rows, py::ssize_t columns) {
    if (array.ndim() == 2 && array.shape(1) == columns && (!rows || array.shape(0) == *rows)) return;
    throw std::invalid_argument("gs2d: expected " + std::string(name) + " [" + (rows ? std::to_string(*rows) : "n") +
                                ", " + std::to_string(columns) + "], got " + shape_of(array));
}

py::tuple encode(const Array& means, const Array& cholesky, const Array& colors, std::int64_t width,
                 std::int64_t height) {
    expect(means, "means", std::nullopt, 2);
    const py::ssize_t n = means.shape(0);
    expect(cholesky, "cholesky", n, 3);
    expect(colors, "colors", n, 3);
    if (width < 0 || height < 0) throw std::invalid_argument("gs2d: width and height must be above 0");
    codec::check_size(static_cast<std::uint64_t>(width), static_cast<std::uint64_t>(height),
                      static_cast<std::uint64_t>(n));
    py::bytes out(nullptr, codec::encoded_size(static_cast<std::size_t>(n)));
    auto* to = reinterpret_cast<std::uint8_t*>(PyBytes_AS_STRING(out.ptr()));
    const codec::Header header{static_cast<std::uint32_t>(width), static_cast<std::uint32_t>(height),
                               static_cast<std::uint32_t>(n)};
    const std::size_t num_clamped = codec::encode({means.data(), cholesky.data(), colors.data()}, header, to);
    return py::make_tuple(std::move(out), num_clamped);
}

py::tuple decode(const py::buffer& data) {
    const py::buffer_info info = data.request();
    if (info.ndim != 1 || info.itemsize != 1 || (info.size > 1 && info.strides[0] != 1))
        throw std::invalid_argument("gs2d: expected a contiguous buffer of bytes");
    const codec::Reader& reader = codec::reader();
    const codec::File file{static_cast<const std::uint8_t*>(info.ptr), static_cast<std::size_t>(info.size)};
    const codec::Header header = reader.header(file);
    const auto n = static_cast<py::ssize_t>(header.count);
    Array means({n, py::ssize_t{2}}), cholesky({n, py::ssize_t{3}}), colors({n, py::ssize_t{3}});
    reader.values(file.data, header, {means.mutable_data(), cholesky.mutable_data(), colors.mutable_data()});
    return py::make_tuple(std::move(means), std::move(cholesky), std::move(colors), header.width, header.height);
}

// The bytes of Python objects, held while they are read.
class Buffers {
  public:
    explicit Buffers(const py::sequence& objects) {
        const std::size_t count = py::len(objects);
        held_.reserve(count);
        for (std::size_t i = 0; i < count; ++i) {
            // owned until its buffer is, which holds the object in its turn: a sequence may make items on access
            const auto object =
                py::reinterpret_steal<py::object>(PySequence_GetItem(objects.ptr(), static_cast<py::ssize_t>(i)));
            Py_buffer one;
            if (!object || PyObject_GetBuffer(object.ptr(), &one, PyBUF_SIMPLE) != 0) {
                py::error_already_set error;
                release();
                throw error;
            }
            held_.push_back(one);
        }
    }
    Buffers(const Buffers&) = delete;
    Buffers& operator=(const Buffers&) = delete;
    ~Buffers() { release(); }

    std::size_t size() const { return held_.size(); }
    codec::File operator[](std::size_t i) const {
        return {static_cast<const std::uint8_t*>(held_[i].buf), static_cast<std::size_t>(held_[i].len)};
    }

  private:
    void release() {
        for (Py_buffer& one : held_) PyBuffer_Release(&one);
    }
    std::vector<Py_buffer> held_;
};

py::tuple decode_batch(const py::sequence& files, py::ssize_t num_gaussians) {
    if (num_gaussians < 0 || num_gaussians > static_cast<py::ssize_t>(codec::kMaxCount))
        throw std::invalid_argument("gs2d: num_gaussians is " + std::to_string(num_gaussians) +
                                    "; it must be at least 0 and at most " + std::to_string(codec::kMaxCount));
    const Buffers buffers(files);
    const auto batch = static_cast<py::ssize_t>(buffers.size());
    constexpr auto kMostBytes = std::numeric_limits<py::ssize_t>::max();
    if (num_gaussians > 0 && batch > kMostBytes / (num_gaussians * 8 * static_cast<py::ssize_t>(sizeof(float))))
        throw std::invalid_argument("gs2d: " + std::to_string(batch) + " files of " + std::to_string(num_gaussians) +
                                    " Gaussians do not fit into memory");
    const auto rows = static_cast<std::size_t>(num_gaussians);
    // one block for all three: malloc keeps one of this size for the next batch, of three it gives pages back each time
    Array whole(batch * num_gaussians * 8);
    float* start = whole.mutable_data();
    const codec::MutableSplats all{start, start + 2 * batch * num_gaussians, start + 5 * batch * num_gaussians};
    const auto part = [&](float* from, py::ssize_t columns) { return Array({batch, num_gaussians, columns}, from, whole); };
    py::array_t<std::int32_t> counts(batch);
    py::array_t<std::int32_t> sizes({batch, py::ssize_t{2}});
    std::int32_t* count = counts.mutable_data();
    std::int32_t* size = sizes.mutable_data();
    {
        const py::gil_scoped_release released;
        for (std::size_t i = 0; i < buffers.size(); ++i) {
            const std::size_t at = i * rows;
            try {
                const codec::Header header = codec::decode_padded(
                    buffers[i], rows, {all.means + 2 * at, all.cholesky + 3 * at, all.colors + 3 * at});
                count[i] = static_cast<std::int32_t>(header.count);
                size[2 * i] = static_cast<std::int32_t>(header.width);
                size[2 * i + 1] = static_cast<std::int32_t>(header.height);
            } catch (const std::invalid_argument& error) {
                throw std::invalid_argument("file " + std::to_string(i) + ": " + error.what());
            }
        }
    }
    return py::make_tuple(part(all.means, 2), part(all.cholesky, 3), part(all.colors, 3), std::move(counts),
                          std::move(sizes));
}

}  // namespace

void splat2d::register_codec(py::module_& m) {
    const py::object decoded = py::module_::import("collections").attr("namedtuple")(
        "Decoded", py::make_tuple("means", "cholesky", "colors", "width", "height"), py::arg("module") = "splat2d");
    m.attr("Decoded") = decoded;
    m.def("encode", &encode, py::arg("means"), py::arg("cholesky"), py::arg("colors"), py::arg("width"),
          py::arg("height"),
          "Write .gs2d version 1: means [n, 2], cholesky [n, 3], colors [n, 3] of a width x height picture.\n\n"
          "Returns the bytes and how many values had to be stored clamped. ValueError on NaN, on l00 or l11 not above\n"
          "0, and on shapes or sizes out of range (docs/splat-format.md).");
    m.def(
        "decode", [decoded](const py::buffer& data) { return decoded(*decode(data)); }, py::arg("data"),
        "Read .gs2d version 1 from bytes, a memoryview or an mmap: Decoded(means, cholesky, colors, width, height).\n\n"
        "ValueError, saying what and where, on anything that is not exactly such a file (docs/splat-format.md).");
    const py::object batch = py::module_::import("collections").attr("namedtuple")(
        "DecodedBatch", py::make_tuple("means", "cholesky", "colors", "counts", "sizes"),
        py::arg("module") = "splat2d");
    m.attr("DecodedBatch") = batch;
    m.def(
        "decode_batch",
        [batch](const py::sequence& files, py::ssize_t num_gaussians) {
            return batch(*decode_batch(files, num_gaussians));
        },
        py::arg("files"), py::arg("num_gaussians"),
        "Read B .gs2d files into arrays of one size: DecodedBatch(means [B, num_gaussians, 2], cholesky [B, .., 3],\n"
        "colors [B, .., 3], counts [B] int32, sizes [B, 2] int32: width, height); rows from counts[b] on are zero. One\n"
        "call without the GIL, one thread.\n\n"
        "ValueError, naming the file by its place, on one that decode refuses or that has more Gaussians; on num_gaussians\n"
        "below 0 or above 2^24, the most that a file may have.");
}
