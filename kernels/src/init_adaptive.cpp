// Density-adaptive initialisation. A smoothed structure tensor gives a density of Gaussians; systematic sampling of
// that density along a Hilbert curve gives N well-spread centres; one weighted Lloyd step evens them out; the
// Voronoi cells then give areas, colours and directions.
#include <algorithm>
#include <cmath>

#include "init.h"
#include "voronoi.h"

namespace splat2d {
namespace {

constexpr float kSpread = 0.5f;       // standard deviation in units of sqrt(cell area)
constexpr float kFlatShare = 0.1f;    // share of the density that is uniform
constexpr double kStretch = 1.5;      // axis ratio along a clean edge, less 1
constexpr float kSmoothing = 1.5f;    // pixels, of the structure tensor

struct Fields {
  int height, width;
  Vector<float> xx, xy, yy, density;
};

constexpr int kRadius = 4;  // of the smoothing, in pixels

// One row of the structure tensor, [xx, xy, yy][width], smoothed along the row.
void tensor_row(const std::uint8_t* image, int height, int width, int y, const float (&weight)[kRadius + 1],
                Vector<float>& line, float* to) {
  const std::size_t w = static_cast<std::size_t>(width), stride = w + 2 * kRadius;
  const std::uint8_t* row = image + static_cast<std::size_t>(y) * w * 3;
  const std::uint8_t* up = image + static_cast<std::size_t>(std::max(y - 1, 0)) * w * 3;
  const std::uint8_t* down = image + static_cast<std::size_t>(std::min(y + 1, height - 1)) * w * 3;
  float* const lines[3] = {line.data() + kRadius, line.data() + stride + kRadius, line.data() + 2 * stride + kRadius};
  for (std::size_t x = 0; x < w; ++x) {
    const std::uint8_t *l = row + (x > 0 ? x - 1 : 0) * 3, *r = row + std::min(x + 1, w - 1) * 3;
    float xx = 0.0f, xy = 0.0f, yy = 0.0f;
    for (std::size_t k = 0; k < 3; ++k) {
      const float gx = static_cast<float>(r[k] - l[k]) / 510.0f;
      const float gy = static_cast<float>(down[x * 3 + k] - up[x * 3 + k]) / 510.0f;
      xx += gx * gx, xy += gx * gy, yy += gy * gy;
    }
    lines[0][x] = xx, lines[1][x] = xy, lines[2][x] = yy;
  }
  for (std::size_t field = 0; field < 3; ++field) {
    float* const at = lines[field];
    std::fill_n(at - kRadius, kRadius, at[0]);
    std::fill_n(at + w, kRadius, at[w - 1]);
    for (std::size_t x = 0; x < w; ++x) {
      const float* middle = at + x;
      float sum = weight[0] * middle[0];
      for (std::ptrdiff_t k = 1; k <= kRadius; ++k) sum += weight[k] * (middle[-k] + middle[k]);
      to[field * w + x] = sum;
    }
  }
}

// Rows in turn, so that every plane is written once: only the rows that smoothing reaches are held.
Fields structure(const std::uint8_t* image, int height, int width) {
  const std::size_t w = static_cast<std::size_t>(width), size = static_cast<std::size_t>(height) * w;
  Fields f{height, width, Vector<float>(size), Vector<float>(size), Vector<float>(size), Vector<float>(size)};
  float weight[kRadius + 1], sum = 0.0f;
  for (int k = 0; k <= kRadius; ++k) {
    weight[k] = std::exp(-0.5f * static_cast<float>(k * k) / (kSmoothing * kSmoothing));
    sum += k == 0 ? weight[k] : 2.0f * weight[k];
  }
  for (float& value : weight) value /= sum;
  constexpr int held = 2 * kRadius + 1;
  Vector<float> rows(held * 3 * w), line(3 * (w + 2 * kRadius));
  const auto row_at = [&](int y) { return rows.data() + static_cast<std::size_t>(y % held) * 3 * w; };
  double total = 0.0;
  for (int y = 0, made = 0; y < height; ++y) {
    for (; made <= std::min(y + kRadius, height - 1); ++made) {
      tensor_row(image, height, width, made, weight, line, row_at(made));
    }
    const std::size_t first = static_cast<std::size_t>(y) * w;
    float* const to[3] = {f.xx.data() + first, f.xy.data() + first, f.yy.data() + first};
    for (std::size_t field = 0; field < 3; ++field) {
      const float* middle = row_at(y) + field * w;
      for (std::size_t x = 0; x < w; ++x) to[field][x] = weight[0] * middle[x];
      for (int k = 1; k <= kRadius; ++k) {
        const float* up = row_at(std::max(y - k, 0)) + field * w;
        const float* down = row_at(std::min(y + k, height - 1)) + field * w;
        for (std::size_t x = 0; x < w; ++x) to[field][x] += weight[k] * (up[x] + down[x]);
      }
    }
    for (std::size_t x = 0; x < w; ++x) f.density[first + x] = std::sqrt(to[0][x] + to[2][x]);
    for (std::size_t x = 0; x < w; ++x) total += static_cast<double>(f.density[first + x]);
  }
  const float mean = static_cast<float>(total / static_cast<double>(size));
  // A flat picture has no gradient anywhere: then the density is uniform.
  for (float& value : f.density) value = mean > 1e-12f ? kFlatShare + (1.0f - kFlatShare) * value / mean : 1.0f;
  return f;
}

// Scales the density to sum n with no pixel above 1, so that no pixel is drawn twice.
void limit(Vector<float>& density, int n) {
  double total = 0.0;
  for (const float d : density) total += static_cast<double>(d);
  double scale = n / total;
  for (int round = 0; round < 20; ++round) {
    double free = 0.0, full = 0.0;
    for (const float d : density) {
      const double scaled = d * scale;
      (scaled >= 1.0 ? full : free) += scaled >= 1.0 ? 1.0 : scaled;
    }
    if (free <= 0.0 || std::abs(free + full - n) < 1e-4 * n) break;
    scale *= std::max(n - full, 0.0) / free;
  }
  for (float& d : density) d = static_cast<float>(std::min(1.0, d * scale));
}

double unit_random(std::uint64_t seed) {  // splitmix64
  std::uint64_t z = seed + 0x9e3779b97f4a7c15ull;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  return static_cast<double>((z ^ (z >> 31)) >> 11) * 0x1.0p-53;
}

struct Centres {
  Vector<float> x, y;
};

// body(x, y) for every pixel of the picture that lies in the square at (left, top), along a Hilbert curve. The quarters
// of a square hold its curve flipped (both axes), swapped (the axes with each other), or both.
template <class Body>
void along_curve(int width, int height, int left, int top, int side, bool flip, bool swap, const Body& body) {
  if (left >= width || top >= height) return;
  if (side == 1) {
    body(left, top);
    return;
  }
  const int half = side / 2;
  for (int quarter = 0; quarter < 4; ++quarter) {
    const bool right = (quarter >= 2) != flip, below = (quarter == 1 || quarter == 2) != flip;
    along_curve(width, height, left + ((swap ? below : right) ? half : 0), top + ((swap ? right : below) ? half : 0),
                half, flip != (quarter == 3), swap != (quarter == 0 || quarter == 3), body);
  }
}

// Squares as wide as the shorter side stand in a row along the longer one, each with a curve of its own.
template <class Body>
void along_curves(int width, int height, const Body& body) {
  int side = 1;
  while (side < std::min(height, width)) side *= 2;
  for (int offset = 0; offset < std::max(height, width); offset += side) {
    along_curve(width, height, width > height ? offset : 0, width > height ? 0 : offset, side, false, false, body);
  }
}

Centres sample(const Fields& f, int n, std::uint64_t seed) {
  Centres out{Vector<float>(static_cast<std::size_t>(n)), Vector<float>(static_cast<std::size_t>(n))};
  double total = 0.0;
  for (const float d : f.density) total += static_cast<double>(d);
  const double step = total / n, offset = unit_random(seed);
  double mass = 0.0, next = offset * step;
  int last_x = 0, last_y = 0;
  std::size_t taken = 0, last = static_cast<std::size_t>(n);
  along_curves(f.width, f.height, [&](int x, int y) {
    mass += static_cast<double>(f.density[static_cast<std::size_t>(y) * static_cast<std::size_t>(f.width) + x]);
    last_x = x, last_y = y;
    while (mass > next && taken < last) {
      out.x[taken] = static_cast<float>(x);
      out.y[taken++] = static_cast<float>(y);
      next = (static_cast<double>(taken) + offset) * step;
    }
  });
  for (; taken < last; ++taken) {  // rounding in the sum may leave the last one
    out.x[taken] = static_cast<float>(last_x);
    out.y[taken] = static_cast<float>(last_y);
  }
  return out;
}

// Sums over the pixels nearest to one centre.
struct Mass {
  double weight = 0.0, x = 0.0, y = 0.0;
};

struct Cell {
  float area = 0.0f, color[3] = {0.0f, 0.0f, 0.0f}, xx = 0.0f, xy = 0.0f, yy = 0.0f;
};

// One weighted Lloyd step: every centre moves to the centre of mass of its cell.
void even_out(const Fields& f, Centres& centres) {
  Vector<Mass> masses(centres.x.size());
  Voronoi(f.height, f.width, centres.x, centres.y).for_each_pixel([&](int x, int y, std::int32_t centre) {
    Mass& mass = masses[static_cast<std::size_t>(centre)];
    const double weight =
        static_cast<double>(f.density[static_cast<std::size_t>(y) * static_cast<std::size_t>(f.width) + x]);
    mass.weight += weight;
    mass.x += weight * x;
    mass.y += weight * y;
  });
  for (std::size_t i = 0; i < masses.size(); ++i) {
    if (masses[i].weight <= 0.0) continue;
    centres.x[i] = static_cast<float>(masses[i].x / masses[i].weight);
    centres.y[i] = static_cast<float>(masses[i].y / masses[i].weight);
  }
}

Vector<Cell> cells_of(const Fields& f, const Centres& centres, const std::uint8_t* image) {
  Vector<Cell> cells(centres.x.size());
  Voronoi(f.height, f.width, centres.x, centres.y).for_each_pixel([&](int x, int y, std::int32_t centre) {
    Cell& cell = cells[static_cast<std::size_t>(centre)];
    const std::size_t i = static_cast<std::size_t>(y) * static_cast<std::size_t>(f.width) + x;
    cell.area += 1.0f;
    for (std::size_t k = 0; k < 3; ++k) cell.color[k] += image[i * 3 + k];
    cell.xx += f.xx[i];
    cell.xy += f.xy[i];
    cell.yy += f.yy[i];
  });
  return cells;
}

}  // namespace

void init_adaptive(Canvas& canvas, const std::uint8_t* image, std::uint64_t seed) {
  Workspace& w = canvas.w;
  Fields f = structure(image, w.height, w.width);
  limit(f.density, w.count);
  Centres centres = sample(f, w.count, seed);
  even_out(f, centres);
  const Vector<Cell> cells = cells_of(f, centres, image);
  for (int i = 0; i < w.count; ++i) {
    const Cell& cell = cells[static_cast<std::size_t>(i)];
    const double area = std::max(static_cast<double>(cell.area), 1.0);
    const double xx = static_cast<double>(cell.xx), xy = static_cast<double>(cell.xy);
    const double yy = static_cast<double>(cell.yy);
    const double sigma2 = static_cast<double>(kSpread) * kSpread * area;
    // Eigenvectors of the cell's tensor: the short axis lies across the edge.
    const double half = 0.5 * (xx - yy), root = std::sqrt(half * half + xy * xy);
    const double trace = xx + yy, ratio = trace > 1e-12 ? 1.0 + kStretch * (2.0 * root / trace) : 1.0;
    const double cos2 = root > 0.0 ? half / root : 1.0, sin2 = root > 0.0 ? xy / root : 0.0;
    const double across = sigma2 / ratio, along = sigma2 * ratio;
    const double middle = 0.5 * (across + along), swing = 0.5 * (across - along);
    set_shape(canvas, i, middle + swing * cos2, swing * sin2, middle - swing * cos2);
    w.param[0][i] = centres.x[static_cast<std::size_t>(i)];
    w.param[1][i] = centres.y[static_cast<std::size_t>(i)];
    const float overlap = static_cast<float>(255.0 * 2.0 * 3.14159265358979 * sigma2);
    for (std::size_t k = 0; k < 3; ++k) w.param[5 + k][i] = cell.color[k] / overlap;
  }
  canvas.pad_parameters();
}

}  // namespace splat2d
