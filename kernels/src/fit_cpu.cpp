// Fitting one picture in one thread, and batches over threads.
#include <memory>
#include <optional>
#include <vector>

#include "parallel.h"
#include "stages.h"

namespace splat2d {
namespace {

constexpr int kSortEvery = 16;  // iterations between sorts by row; the order only decides what shares a cache line

// False: stopped.
bool optimise(Canvas& canvas, const FitOptions& o, int num_iters, float rate, const Stopped& stopped) {
  Workspace& w = canvas.w;
  canvas.clear_state();
  for (int it = 0; it < num_iters; ++it) {
    if (stopped()) return false;
    if (it % kSortEvery == 0) canvas.sort_rows();
    canvas.run({w.base, nullptr, true, true});
    const StepSettings s = settings_at(o, w.height, w.width, it, num_iters, rate);
    const auto* arguments = reinterpret_cast<const StepArguments*>(&s);
    (o.optimizer == Optimizer::adam ? canvas.engine.adam : canvas.engine.natural)(w, arguments);
    canvas.pad_parameters();
  }
  return true;
}

}  // namespace

bool fit(const std::uint8_t* images, PictureShape shape, int num_gaussians, const FitOptions& options, int threads,
         const FitOutput& out, const Poll& poll) {
  const Engine& chosen = engine();
  std::optional<Curve> curve;
  if (options.init == Init::adaptive) curve.emplace(shape.height, shape.width);
  const int workers = thread_count(threads, shape.batch);
  std::vector<std::unique_ptr<Canvas>> canvases(static_cast<std::size_t>(workers));
  const std::size_t size = static_cast<std::size_t>(shape.height) * shape.width * 3;
  const auto body = [&](int worker, int index, const Stopped& stopped) {
    auto& canvas = canvases[static_cast<std::size_t>(worker)];
    if (!canvas) canvas = std::make_unique<Canvas>(chosen, shape.height, shape.width, num_gaussians);
    start_fit(*canvas, images + static_cast<std::size_t>(index) * size, options, curve ? &*curve : nullptr,
              num_gaussians);
    if (!optimise(*canvas, options, options.num_iters, 1.0f, stopped)) return;
    if (prune(*canvas, options) && !optimise(*canvas, options, options.refit_iters, kRefitRate, stopped)) return;
    finish_fit(*canvas, out, num_gaussians, index);
  };
  return parallel(shape.batch, workers, body, poll);
}

}  // namespace splat2d
