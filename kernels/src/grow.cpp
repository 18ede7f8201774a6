#include "grow.h"

#include <algorithm>
#include <cstdint>
#include <functional>
#include <numeric>

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
    int column[kMaxLanes];
    float dx[kMaxLanes];
    for (int lane = 0; lane < used; ++lane) {
      column[lane] = (left + lane) / cells.side;
      dx[lane] = static_cast<float>((left + lane) % cells.side);
    }
    const float* at = residual + static_cast<std::size_t>(s) * w.height * 3 * w.lanes;
    for (int y = 0; y < w.height; ++y, at += 3 * w.lanes) {
      CellError* row = cells.errors.data() + static_cast<std::size_t>(y / cells.side) * cells.columns;
      const float dy = static_cast<float>(y % cells.side);
      for (int lane = 0; lane < used; ++lane) {
        const float r = at[lane], g = at[w.lanes + lane], b = at[2 * w.lanes + lane], e = r * r + g * g + b * b;
        CellError& cell = row[column[lane]];
        cell.sum += e;
        cell.x += e * dx[lane];
        cell.y += e * dy;
      }
    }
  }
  return cells;
}

const float* residual_of(Canvas& canvas) {
  float* residual = canvas.plane(1);
  canvas.run({canvas.w.base, residual, true, false});
  return residual;
}

// Writes one seed into each slot, where the residual is largest.
void place(Canvas& canvas, const FitOptions& options, const float* residual, const Vector<int>& slots) {
  Workspace& w = canvas.w;
  const std::ptrdiff_t number = static_cast<std::ptrdiff_t>(slots.size());
  const Cells cells = cell_errors(w, residual, static_cast<int>(number));
  Vector<float> sums(cells.errors.size());
  std::transform(cells.errors.begin(), cells.errors.end(), sums.begin(), [](const CellError& e) { return e.sum; });
  std::nth_element(sums.begin(), sums.begin() + (number - 1), sums.end(), std::greater<>());
  const float least = sums[static_cast<std::size_t>(number) - 1];
  auto equal = number - std::count_if(sums.begin(), sums.end(), [&](float sum) { return sum > least; });

  auto slot = slots.begin();
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
        w.param[k][*slot] = values[k];
        w.adam_m[k][*slot] = w.adam_v[k][*slot] = 0.0f;
      }
      ++slot;
    }
  }
  canvas.sort_rows();
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

float move_time(const FitOptions& o, int part) {
  return o.grow_last + (o.move_last - o.grow_last) * static_cast<float>(part + 1) / static_cast<float>(o.move_steps);
}

void grow(Canvas& canvas, const FitOptions& options, int number) {
  Vector<int> slots(static_cast<std::size_t>(number));
  std::iota(slots.begin(), slots.end(), canvas.w.count);
  const float* residual = residual_of(canvas);
  canvas.set_count(canvas.w.count + number);
  place(canvas, options, residual, slots);
}

void move_weakest(Canvas& canvas, const FitOptions& options) {
  Workspace& w = canvas.w;
  const int number = static_cast<int>(options.move_share * static_cast<float>(w.count));
  if (number < 1) return;
  Vector<float> energy(static_cast<std::size_t>(w.count));
  for (std::size_t i = 0; i < energy.size(); ++i) {
    Factor f{w.param[2][i], w.param[3][i], w.param[4][i]};
    if (w.cholesky) f = factor_of({f.a, f.b, f.c});
    const float red = w.param[5][i], green = w.param[6][i], blue = w.param[7][i];
    energy[i] = (red * red + green * green + blue * blue) / (f.a * f.c);
  }
  Vector<int> slots(energy.size());
  std::iota(slots.begin(), slots.end(), 0);
  const auto weaker = [&](int i, int j) {
    const float a = energy[static_cast<std::size_t>(i)], b = energy[static_cast<std::size_t>(j)];
    return a < b || (a == b && i < j);
  };
  std::nth_element(slots.begin(), slots.begin() + (number - 1), slots.end(), weaker);
  slots.resize(static_cast<std::size_t>(number));
  std::sort(slots.begin(), slots.end());
  for (const int i : slots) w.param[5][i] = w.param[6][i] = w.param[7][i] = 0.0f;
  place(canvas, options, residual_of(canvas), slots);
}

}  // namespace splat2d
