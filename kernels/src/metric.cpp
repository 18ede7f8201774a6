#include "metric.h"

#include <algorithm>
#include <cstddef>

namespace splat2d {
namespace {

constexpr int kPatchBlock = 64;  // patches at a time
static_assert(kPatchBlock % kMetricVectors == 0);

int rounded_up(int value, int step) { return (value + step - 1) / step * step; }

}  // namespace

PatchMetric::PatchMetric(const Metric& metric)
    : patch(metric.patch),
      size(3 * metric.patch * metric.patch),
      padded(rounded_up(size, kMetricColumns)),
      rows(rounded_up(metric.num_rows, kMetricColumns)) {
  const std::size_t width = static_cast<std::size_t>(padded), height = static_cast<std::size_t>(rows);
  forward.resize(width * height);
  backward.resize(width * height);
  for (std::size_t r = 0; r < static_cast<std::size_t>(metric.num_rows); ++r) {
    for (std::size_t i = 0; i < static_cast<std::size_t>(size); ++i) {
      const float value = metric.rows[r * static_cast<std::size_t>(size) + i];
      forward.data()[i * height + r] = value;
      backward.data()[r * width + i] = value;
    }
  }
}

MetricPass::MetricPass(const PatchMetric& metric, int height, int width) : metric_(metric) {
  picture_.resize(static_cast<std::size_t>(height) * static_cast<std::size_t>(width) * 3);
  patches_.resize(static_cast<std::size_t>(kPatchBlock) * static_cast<std::size_t>(metric.padded));
  seen_.resize(static_cast<std::size_t>(kPatchBlock) * static_cast<std::size_t>(metric.rows));
  weighed_.resize(patches_.size());
}

void MetricPass::run(Canvas& canvas, double* squared) {
  const Workspace& w = canvas.w;
  Pass pass{From::target, true, false, canvas.plane()};
  pass.squared = squared;
  canvas.run(pass);
  canvas.unpack(canvas.plane(), picture_.data());
  const std::size_t side = static_cast<std::size_t>(metric_.patch), padded = static_cast<std::size_t>(metric_.padded);
  const std::size_t run = side * 3;  // values of a patch in one row of the picture
  const std::size_t line = static_cast<std::size_t>(w.width) * 3;
  const int across = w.width / metric_.patch, number = across * (w.height / metric_.patch);
  const auto corner = [&](int patch) {
    return picture_.data() + static_cast<std::size_t>(patch / across) * side * line +
           static_cast<std::size_t>(patch % across) * run;
  };
  for (int first = 0; first < number; first += kPatchBlock) {
    const int count = std::min(kPatchBlock, number - first), vectors = rounded_up(count, kMetricVectors);
    for (int p = 0; p < count; ++p) {
      const float* const from = corner(first + p);
      float* const to = patches_.data() + static_cast<std::size_t>(p) * padded;
      for (std::size_t y = 0; y < side; ++y) std::copy_n(from + y * line, run, to + y * run);
    }
    canvas.engine.multiply(patches_.data(), vectors, metric_.forward.data(), metric_.padded, metric_.rows, seen_.data());
    canvas.engine.multiply(seen_.data(), vectors, metric_.backward.data(), metric_.rows, metric_.padded,
                           weighed_.data());
    for (int p = 0; p < count; ++p) {
      const float* from = weighed_.data() + static_cast<std::size_t>(p) * padded;
      float* const to = corner(first + p);
      for (std::size_t y = 0; y < side; ++y) {
        for (std::size_t i = 0; i < run; ++i) to[y * line + i] += *from++;
      }
    }
  }
  canvas.load_gradient(picture_.data());
  canvas.engine.run(canvas.w, {From::gradient, false, true});
}

}  // namespace splat2d
