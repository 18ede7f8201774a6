#include "bind_arrays.h"
#include "bindings.h"

namespace splat2d {
namespace {

Splats splats_of(const Array<float>& means, const Array<float>& cholesky, const Array<float>& colors) {
  const py::ssize_t batch = means.ndim() > 0 ? means.shape(0) : -1, n = means.ndim() > 1 ? means.shape(1) : -1;
  expect(means, {batch, n, 2}, "means float32 [B, N, 2]");
  expect(cholesky, {batch, n, 3}, "cholesky float32 [B, N, 3]");
  expect(colors, {batch, n, 3}, "colors float32 [B, N, 3]");
  return {means.data(), cholesky.data(), colors.data(), nullptr, static_cast<int>(n)};
}

struct Gradients {
  Array<float> means, cholesky, colors;
  explicit Gradients(const Array<float>& like)
      : means({like.shape(0), like.shape(1), py::ssize_t{2}}),
        cholesky({like.shape(0), like.shape(1), py::ssize_t{3}}),
        colors({like.shape(0), like.shape(1), py::ssize_t{3}}) {}
};

Array<float> render_arrays(const Array<float>& means, const Array<float>& cholesky, const Array<float>& colors,
                           int height, int width, const Array<std::int32_t>& counts, int threads) {
  Splats splats = splats_of(means, cholesky, colors);
  expect(counts, {means.shape(0)}, "counts int32 [B]");
  splats.counts = counts.data();
  Array<float> pictures({means.shape(0), py::ssize_t{height}, py::ssize_t{width}, py::ssize_t{3}});
  float* out = pictures.mutable_data();
  const PictureShape shape = picture_shape(pictures);
  without_gil(py::none(), [&](const Poll& poll) { render(splats, shape, threads, out, poll); });
  return pictures;
}

py::tuple backward_arrays(const Array<float>& means, const Array<float>& cholesky, const Array<float>& colors,
                          const Array<float>& v_pictures, int threads) {
  const Splats splats = splats_of(means, cholesky, colors);
  expect(v_pictures, {means.shape(0), -1, -1, 3}, "v_pictures float32 [B, H, W, 3]");
  Gradients v(means);
  float *v_means = v.means.mutable_data(), *v_cholesky = v.cholesky.mutable_data();
  float* v_colors = v.colors.mutable_data();
  const PictureShape shape = picture_shape(v_pictures);
  without_gil(py::none(), [&](const Poll& poll) {
    render_backward(splats, shape, threads, v_pictures.data(), v_means, v_cholesky, v_colors, poll);
  });
  return py::make_tuple(v.means, v.cholesky, v.colors);
}

py::tuple loss_arrays(const Array<float>& means, const Array<float>& cholesky, const Array<float>& colors,
                      const Array<std::uint8_t>& images, float lambda_color, int threads) {
  const Splats splats = splats_of(means, cholesky, colors);
  expect(images, {means.shape(0), -1, -1, 3}, "images uint8 [B, H, W, 3]");
  Gradients v(means);
  Array<float> loss(means.shape(0));
  float *v_means = v.means.mutable_data(), *v_cholesky = v.cholesky.mutable_data();
  float *v_colors = v.colors.mutable_data(), *to = loss.mutable_data();
  const PictureShape shape = picture_shape(images);
  without_gil(py::none(), [&](const Poll& poll) {
    loss_and_grad(splats, images.data(), shape, lambda_color, threads, to, v_means, v_cholesky, v_colors,
                  poll);
  });
  return py::make_tuple(loss, v.means, v.cholesky, v.colors);
}

}  // namespace

void register_render(py::module_& module) {
  const py::arg means("means"), cholesky("cholesky"), colors("colors"), threads("threads");
  module.def("render", &render_arrays, means, cholesky, colors, py::arg("height"), py::arg("width"),
             py::arg("counts"), threads);
  module.def("render_backward", &backward_arrays, means, cholesky, colors, py::arg("v_pictures"), threads);
  module.def("loss_and_grad", &loss_arrays, means, cholesky, colors, py::arg("images"), py::arg("lambda_color"),
             threads);
}

}  // namespace splat2d
