// Fitting on the CPU: each picture wholly in one thread, in the steps start, iterate, prune, iterate again, finish.
#include <memory>
#include <vector>

#include "grow.h"
#include "metric.h"
#include "parallel.h"
#include "prune.h"
#include "schedule.h"
#include "stages.h"

namespace splat2d {
namespace {

constexpr int kSortEvery = 16;  // iterations between sorts by row; the order only decides what shares a cache line

// Iterations done; -1: stopped. The picture ends with `number` Gaussians.
int iterate(Canvas& canvas, MetricPass* metric, const FitOptions& o, Schedule schedule, int number,
            const Stopped& stopped) {
  Workspace& w = canvas.w;
  const auto take_step = o.optimizer == Optimizer::adam ? canvas.engine.adam : canvas.engine.natural;
  canvas.clear_state();
  int it = 0;
  for (; it < schedule.end(); ++it) {
    if (stopped()) return -1;
    if (it % kSortEvery == 0) canvas.sort_rows();
    const int wanted = schedule.gaussians(number, it);
    if (wanted > w.count) grow(canvas, o, wanted - w.count);
    if (schedule.moves(it)) move_weakest(canvas, o);
    const bool measured = schedule.measures(it);
    double squared = 0.0;
    if (metric) {
      metric->run(canvas, measured ? &squared : nullptr);
    } else {
      Pass pass{From::target, true, true};
      if (measured) pass.squared = &squared;
      canvas.run(pass);
    }
    if (measured && schedule.done(it, squared)) break;
    const StepSettings settings = schedule.settings(it);
    take_step(w, reinterpret_cast<const StepArguments*>(&settings));
    canvas.pad_parameters();
  }
  return it;
}

// False: stopped.
bool fit_picture(Canvas& canvas, MetricPass* metric, const FitInput& input, const FitOptions& o, int index,
                 const FitOutput& out, const Stopped& stopped) {
  const auto [batch, height, width] = input.shape;
  const int number = input.counts ? input.counts[index] : input.num_gaussians;
  const Schedule schedule(o, height, width, o.num_iters, input.start ? kWarmRate : 1.0f);
  start_fit(canvas, input, o, index, input.start ? number : schedule.gaussians(number, 0));
  int iters = iterate(canvas, metric, o, schedule, number, stopped);
  if (iters < 0) return false;
  if (prunes(o) && prune(canvas, o, o.prune_to > 0 ? o.prune_to : canvas.w.count) && canvas.w.count > 0 &&
      o.refit_iters > 0) {
    const Schedule refit(o, height, width, o.refit_iters, kRefitRate);
    const int again = iterate(canvas, metric, o, refit, canvas.w.count, stopped);
    if (again < 0) return false;
    iters += again;
  }
  finish_fit(canvas, out, input.num_gaussians, index, iters);
  return true;
}

}  // namespace

bool fit(const FitInput& input, const FitOptions& options, int threads, const FitOutput& out, const Poll& poll) {
  const Engine& chosen = engine();
  const PictureShape shape = input.shape;
  const int workers = thread_count(threads, shape.batch);
  const int capacity = canvas_capacity(input);
  std::vector<std::unique_ptr<Canvas>> canvases(static_cast<std::size_t>(workers));
  std::unique_ptr<PatchMetric> metric;
  if (input.metric) metric = std::make_unique<PatchMetric>(*input.metric);
  std::vector<std::unique_ptr<MetricPass>> passes(canvases.size());
  const auto body = [&](int worker, int index, const Stopped& stopped) {
    auto& canvas = canvases[static_cast<std::size_t>(worker)];
    if (!canvas) canvas = std::make_unique<Canvas>(chosen, shape.height, shape.width, capacity);
    auto& pass = passes[static_cast<std::size_t>(worker)];
    if (metric && !pass) pass = std::make_unique<MetricPass>(*metric, shape.height, shape.width);
    fit_picture(*canvas, pass.get(), input, options, index, out, stopped);
  };
  return parallel(shape.batch, workers, body, poll);
}

}  // namespace splat2d
