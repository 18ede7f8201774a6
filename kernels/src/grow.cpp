#include "grow.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <numeric>

#include "splat2d/growth.h"

namespace splat2d {
namespace {

// Errors of the cells that `number` new Gaussians are chosen from.
class Cells {
 public:
  Cells(const Workspace& w, int number)
      : side(growth_cell(static_cast<float>(w.height) * static_cast<float>(w.width), static_cast<float>(number))),
        columns((w.width + side - 1) / side),
        rows((w.height + side - 1) / side),
        errors(static_cast<std::size_t>(columns) * static_cast<std::size_t>(rows)),
        w_(w) {}

  // Rows of a strip of render - target: sums over the rows of a cell in every lane, then over the lanes.
  void add(int strip, int top, int number, const float* at) {
    const int left = strip * w_.lanes, used = std::min(w_.lanes, w_.width - left);
    for (int end = top + number; top < end;) {
      float sum[kMaxLanes] = {}, down[kMaxLanes] = {};
      const int row = top / side, first = top - row * side, last = std::min(side, end - row * side);
      for (int y = first; y < last; ++y, at += 3 * w_.lanes) {
        for (int lane = 0; lane < w_.lanes; ++lane) {
          const float r = at[lane], g = at[w_.lanes + lane], b = at[2 * w_.lanes + lane], e = r * r + g * g + b * b;
          sum[lane] += e;
          down[lane] += e * static_cast<float>(y);
        }
      }
      CellError* cell = errors.data() + static_cast<std::size_t>(row) * columns + left / side;
      for (int lane = 0, dx = left % side; lane < used; ++lane, ++dx) {
        if (dx == side) dx = 0, ++cell;
        cell->sum += sum[lane];
        cell->x += sum[lane] * static_cast<float>(dx);
        cell->y += down[lane];
      }
      top = row * side + last;
    }
  }

  const int side, columns, rows;
  Vector<CellError> errors;

 private:
  const Workspace& w_;
};

Cells cell_errors(Canvas& canvas, int number) {
  Cells cells(canvas.w, number);
  Pass pass{From::target, true, false};
  pass.see = [](void* seer, int strip, int first_row, int rows, const float* values) {
    static_cast<Cells*>(seer)->add(strip, first_row, rows, values);
  };
  pass.seer = &cells;
  canvas.run(pass);
  for (CellError& cell : cells.errors) {  // where a fit has diverged there is nothing to go by, nor an order to sort in
    if (!std::isfinite(cell.sum) || !std::isfinite(cell.x) || !std::isfinite(cell.y)) cell = {};
  }
  return cells;
}

// Writes one seed into each slot, in the cells with the largest errors.
void place(Canvas& canvas, const FitOptions& options, const Cells& cells, const Vector<int>& slots) {
  Workspace& w = canvas.w;
  const std::ptrdiff_t number = static_cast<std::ptrdiff_t>(slots.size());
  Vector<float> sums(cells.errors.size());
  std::transform(cells.errors.begin(), cells.errors.end(), sums.begin(), [](const CellError& e) { return e.sum; });
  std::nth_element(sums.begin(), sums.begin() + (number - 1), sums.end(), std::greater<>());
  const float least = sums[static_cast<std::size_t>(number) - 1];
  auto equal = number - std::count_if(sums.begin(), sums.end(), [&](float sum) { return sum > least; });

  auto slot = slots.begin();
  for (int row = 0; row < cells.rows; ++row) {
    for (int column = 0; column < cells.columns; ++column) {
      const CellError& error = cells.errors[static_cast<std::size_t>(row) * cells.columns + column];
      if (slot == slots.end()) break;
      if (!(error.sum > least) && !(error.sum == least && equal-- > 0)) continue;
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
    parts += it >= std::min(static_cast<int>(growth_time(o, part) * static_cast<float>(num_iters)), num_iters - 1);
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
  const Cells cells = cell_errors(canvas, number);
  canvas.set_count(canvas.w.count + number);
  place(canvas, options, cells, slots);
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
    const float found = (red * red + green * green + blue * blue) / (f.a * f.c);
    energy[i] = std::isfinite(found) ? found : 0.0f;
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
  place(canvas, options, cell_errors(canvas, number), slots);
}

}  // namespace splat2d
