#include "grow.h"

#include <algorithm>
#include <cstdint>
#include <functional>

#include "splat2d/growth.h"

namespace splat2d {
namespace {

struct Cells {
  int side, columns, rows;
  Vector<CellError> errors;
};

Cells cell_errors(const Workspace& w, const float* residual, int number) {
  Cells cells{};
  cells.side = growth_cell(static_cast<float>(w.height) * static_cast<float>(w.width), static_cast<float>(number));
  cells.columns = (w.width + cells.side - 1) / cells.side;
  cells.rows = (w.height + cells.side - 1) / cells.side;
  cells.errors.resize(static_cast<std::size_t>(cells.columns) * static_cast<std::size_t>(cells.rows));
  for (int s = 0; s < w.strips; ++s) {
    const int left = s * w.lanes, used = std::min(w.lanes, w.width - left);
    const float* at = residual + static_cast<std::size_t>(s) * w.height * 3 * w.lanes;
    for (int y = 0; y < w.height; ++y, at += 3 * w.lanes) {
      CellError* row = cells.errors.data() + static_cast<std::size_t>(y / cells.side) * cells.columns;
      const float dy = static_cast<float>(y % cells.side);
      for (int lane = 0; lane < used; ++lane) {
        const float r = at[lane], g = at[w.lanes + lane], b = at[2 * w.lanes + lane], e = r * r + g * g + b * b;
        const int x = left + lane;
        CellError& cell = row[x / cells.side];
        cell.sum += e;
        cell.x += e * static_cast<float>(x % cells.side);
        cell.y += e * dy;
      }
    }
  }
  return cells;
}

}  // namespace

float growth_time(const FitOptions& o, int part) {
  const float along = o.grow_steps > 1 ? static_cast<float>(part) / static_cast<float>(o.grow_steps - 1) : 0.0f;
  return o.grow_first + (o.grow_last - o.grow_first) * along;
}

int growth_parts(const FitOptions& o, int num_iters, int it) {
  int parts = 0;
  for (int part = 0; part < o.grow_steps; ++part) {
    parts += it >= static_cast<int>(growth_time(o, part) * static_cast<float>(num_iters));
  }
  return parts;
}

int growth_count(const FitOptions& o, int num_gaussians, int parts) {
  if (parts >= o.grow_steps) return num_gaussians;
  const int start = std::clamp(static_cast<int>(o.start_share * static_cast<float>(num_gaussians)), 1, num_gaussians);
  return start + static_cast<int>(static_cast<std::int64_t>(num_gaussians - start) * parts / o.grow_steps);
}

void grow(Canvas& canvas, const FitOptions& options, int number) {
  Workspace& w = canvas.w;
  float* residual = canvas.plane(1);
  canvas.run({w.base, residual, true, false});
  const Cells cells = cell_errors(w, residual, number);
  Vector<float> sums(cells.errors.size());
  std::transform(cells.errors.begin(), cells.errors.end(), sums.begin(), [](const CellError& e) { return e.sum; });
  std::nth_element(sums.begin(), sums.begin() + (number - 1), sums.end(), std::greater<>());
  const float least = sums[static_cast<std::size_t>(number) - 1];
  auto equal = number - std::count_if(sums.begin(), sums.end(), [&](float sum) { return sum > least; });

  int at = w.count;
  canvas.set_count(w.count + number);
  for (int row = 0; row < cells.rows; ++row) {
    for (int column = 0; column < cells.columns; ++column) {
      const CellError& error = cells.errors[static_cast<std::size_t>(row) * cells.columns + column];
      if (error.sum < least || (error.sum == least && equal-- <= 0)) continue;
      const int left = column * cells.side, top = row * cells.side;
      const int right = std::min(left + cells.side, w.width) - 1, bottom = std::min(top + cells.side, w.height) - 1;
      const Seed seed = seed_of(error, cells.side, static_cast<float>(left), static_cast<float>(top),
                                static_cast<float>(right), static_cast<float>(bottom), options.scale_min);
      const float size = w.cholesky ? seed.sigma : 1.0f / seed.sigma;
      const float values[kParameters] = {seed.x, seed.y, size, 0.0f, size, 0.0f, 0.0f, 0.0f};
      for (int k = 0; k < kParameters; ++k) {
        w.param[k][at] = values[k];
        w.adam_m[k][at] = w.adam_v[k][at] = 0.0f;
      }
      ++at;
    }
  }
  canvas.sort_rows();
}

}  // namespace splat2d
