// Rendering, its backward pass and the loss, over threads.
#include <algorithm>
#include <memory>
#include <vector>

#include "parallel.h"
#include "workspace.h"

namespace splat2d {
namespace {

// One canvas a worker, made on first use; it holds the splats of one picture at a time.
class Canvases {
 public:
  Canvases(const Splats& splats, PictureShape shape, int threads)
      : splats_(splats), shape_(shape), workers(thread_count(threads, shape.batch)),
        pool_(static_cast<std::size_t>(workers)) {}

  Canvas& load(int worker, int index) {
    auto& canvas = pool_[static_cast<std::size_t>(worker)];
    if (!canvas) {
      canvas = std::make_unique<Canvas>(engine_, shape_.height, shape_.width, splats_.num_gaussians);
    }
    const std::size_t at = static_cast<std::size_t>(index) * static_cast<std::size_t>(splats_.num_gaussians);
    canvas->set_count(splats_.counts ? splats_.counts[index] : splats_.num_gaussians);
    canvas->load_splats(splats_.means + at * 2, splats_.cholesky + at * 3, splats_.colors + at * 3);
    return *canvas;
  }

 private:
  const Splats& splats_;
  PictureShape shape_;
  const Engine& engine_ = engine();

 public:
  const int workers;

 private:
  std::vector<std::unique_ptr<Canvas>> pool_;
};

std::size_t picture_size(PictureShape shape) { return static_cast<std::size_t>(shape.height) * shape.width * 3; }

// The moments that `run` left behind, times `scale`, as gradients.
void store_gradients(const Canvas& canvas, float scale, float lambda, float* v_means, float* v_cholesky,
                     float* v_colors) {
  const Workspace& w = canvas.w;
  for (int i = 0; i < w.count; ++i) {
    const float* q = w.moments + static_cast<std::size_t>(i) * 8;
    const Moments m{q[0] * scale, q[1] * scale, q[2] * scale, q[3] * scale,
                    q[4] * scale, q[5] * scale, q[6] * scale, q[7] * scale};
    for (int k = 0; k < 3; ++k) v_colors[i * 3 + k] = q[k] * scale + lambda * sign(w.param[5 + k][i]);
    const Bounds& g = w.bounds[i];
    const bool visible = g.first_strip <= g.last_strip;  // a degenerate shape has no gradient
    ShapeGradient v{0.0f, 0.0f, 0.0f, 0.0f, 0.0f};
    if (visible) v = shape_gradient({w.param[2][i], w.param[3][i], w.param[4][i]}, m);
    v_means[i * 2] = v.x;
    v_means[i * 2 + 1] = v.y;
    v_cholesky[i * 3] = v.l00;
    v_cholesky[i * 3 + 1] = v.l10;
    v_cholesky[i * 3 + 2] = v.l11;
  }
}

}  // namespace

bool render(const Splats& splats, PictureShape shape, int threads, float* pictures, const Poll& poll) {
  Canvases canvases(splats, shape, threads);
  const auto body = [&](int worker, int index, const Stopped&) {
    Canvas& canvas = canvases.load(worker, index);
    canvas.run({From::zeros, true, false, canvas.plane()});
    canvas.unpack(canvas.plane(), pictures + static_cast<std::size_t>(index) * picture_size(shape));
  };
  return parallel(shape.batch, canvases.workers, body, poll);
}

bool render_backward(const Splats& splats, PictureShape shape, int threads, const float* v_pictures, float* v_means,
                     float* v_cholesky, float* v_colors, const Poll& poll) {
  Canvases canvases(splats, shape, threads);
  const std::size_t n = static_cast<std::size_t>(splats.num_gaussians);
  const auto body = [&](int worker, int index, const Stopped&) {
    Canvas& canvas = canvases.load(worker, index);
    const std::size_t at = static_cast<std::size_t>(index);
    canvas.load_gradient(v_pictures + at * picture_size(shape));
    canvas.run({From::gradient, false, true});
    store_gradients(canvas, 1.0f, 0.0f, v_means + at * n * 2, v_cholesky + at * n * 3, v_colors + at * n * 3);
  };
  return parallel(shape.batch, canvases.workers, body, poll);
}

bool loss_and_grad(const Splats& splats, const std::uint8_t* images, PictureShape shape, float lambda, int threads,
                   float* loss, float* v_means, float* v_cholesky, float* v_colors, const Poll& poll) {
  Canvases canvases(splats, shape, threads);
  const std::size_t n = static_cast<std::size_t>(splats.num_gaussians);
  const double pixels = static_cast<double>(shape.height) * shape.width;
  const auto body = [&](int worker, int index, const Stopped&) {
    Canvas& canvas = canvases.load(worker, index);
    const std::size_t at = static_cast<std::size_t>(index);
    canvas.load_target(images + at * picture_size(shape));
    double squared = 0.0;
    Pass pass{From::target, true, true};
    pass.squared = &squared;
    canvas.run(pass);
    double absolute_sum = 0.0;
    for (int i = 0; i < canvas.w.count; ++i) {
      for (int k = 5; k < 8; ++k) absolute_sum += static_cast<double>(absolute(canvas.w.param[k][i]));
    }
    loss[index] = static_cast<float>(squared / pixels + static_cast<double>(lambda) * absolute_sum);
    store_gradients(canvas, static_cast<float>(2.0 / pixels), lambda, v_means + at * n * 2, v_cholesky + at * n * 3,
                    v_colors + at * n * 3);
  };
  return parallel(shape.batch, canvases.workers, body, poll);
}

}  // namespace splat2d
