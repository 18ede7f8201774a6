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

void smooth(Vector<float>& field, int height, int width, Vector<float>& scratch) {
  constexpr int radius = 4;
  float weight[radius + 1], total = 0.0f;
  for (int k = 0; k <= radius; ++k) {
    weight[k] = std::exp(-0.5f * static_cast<float>(k * k) / (kSmoothing * kSmoothing));
    total += k == 0 ? weight[k] : 2.0f * weight[k];
  }
  for (float& value : weight) value /= total;
  const std::size_t w = static_cast<std::size_t>(width);
  Vector<float> line(w + 2 * radius);
  for (int y = 0; y < height; ++y) {
    const float* from = field.data() + static_cast<std::size_t>(y) * w;
    std::copy_n(from, w, line.data() + radius);
    std::fill_n(line.data(), radius, from[0]);
    std::fill_n(line.data() + radius + w, radius, from[w - 1]);
    float* to = scratch.data() + static_cast<std::size_t>(y) * w;
    const float* at = line.data() + radius;
    for (int x = 0; x < width; ++x) {
      float sum = weight[0] * at[x];
      for (int k = 1; k <= radius; ++k) sum += weight[k] * (at[x - k] + at[x + k]);
      to[x] = sum;
    }
  }
  for (int y = 0; y < height; ++y) {
    float* to = field.data() + static_cast<std::size_t>(y) * w;
    const float* middle = scratch.data() + static_cast<std::size_t>(y) * w;
    for (std::size_t x = 0; x < w; ++x) to[x] = weight[0] * middle[x];
    for (int k = 1; k <= radius; ++k) {
      const float* up = scratch.data() + static_cast<std::size_t>(std::max(y - k, 0)) * w;
      const float* down = scratch.data() + static_cast<std::size_t>(std::min(y + k, height - 1)) * w;
      for (std::size_t x = 0; x < w; ++x) to[x] += weight[k] * (up[x] + down[x]);
    }
  }
}

Fields structure(const std::uint8_t* image, int height, int width) {
  const std::size_t size = static_cast<std::size_t>(height) * width;
  Fields f{height, width, Vector<float>(size), Vector<float>(size), Vector<float>(size), {}};
  for (int y = 0; y < height; ++y) {
    const int up = std::max(y - 1, 0), down = std::min(y + 1, height - 1);
    for (int x = 0; x < width; ++x) {
      const int left = std::max(x - 1, 0), right = std::min(x + 1, width - 1);
      auto at = [&](int row, int column) { return image + (static_cast<std::size_t>(row) * width + column) * 3; };
      const std::uint8_t *l = at(y, left), *r = at(y, right), *u = at(up, x), *d = at(down, x);
      float xx = 0.0f, xy = 0.0f, yy = 0.0f;
      for (int k = 0; k < 3; ++k) {
        const float gx = static_cast<float>(r[k] - l[k]) / 510.0f, gy = static_cast<float>(d[k] - u[k]) / 510.0f;
        xx += gx * gx, xy += gx * gy, yy += gy * gy;
      }
      const std::size_t i = static_cast<std::size_t>(y) * width + x;
      f.xx[i] = xx, f.xy[i] = xy, f.yy[i] = yy;
    }
  }
  Vector<float> scratch(size);
  smooth(f.xx, height, width, scratch);
  smooth(f.xy, height, width, scratch);
  smooth(f.yy, height, width, scratch);
  f.density = std::move(scratch);
  double total = 0.0;
  for (std::size_t i = 0; i < size; ++i) {
    f.density[i] = std::sqrt(f.xx[i] + f.yy[i]);
    total += static_cast<double>(f.density[i]);
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

Centres sample(const Fields& f, const Curve& curve, int n, std::uint64_t seed) {
  Centres out{Vector<float>(static_cast<std::size_t>(n)), Vector<float>(static_cast<std::size_t>(n))};
  double total = 0.0;
  for (const float d : f.density) total += static_cast<double>(d);
  const double step = total / n, offset = unit_random(seed);
  double mass = 0.0;
  std::size_t taken = 0, last = static_cast<std::size_t>(n);
  for (const std::int32_t pixel : curve.pixels) {
    mass += static_cast<double>(f.density[static_cast<std::size_t>(pixel)]);
    while (taken < last && mass > (static_cast<double>(taken) + offset) * step) {
      out.x[taken] = static_cast<float>(pixel % f.width);
      out.y[taken++] = static_cast<float>(pixel / f.width);
    }
  }
  for (; taken < last; ++taken) {  // rounding in the sum may leave the last one
    out.x[taken] = static_cast<float>(curve.pixels.back() % f.width);
    out.y[taken] = static_cast<float>(curve.pixels.back() / f.width);
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

Curve::Curve(int height, int width) {
  // Squares as wide as the shorter side stand in a row along the longer one, each with a curve of its own.
  int side = 1;
  while (side < std::min(height, width)) side *= 2;
  pixels.reserve(static_cast<std::size_t>(height) * width);
  const std::int64_t length = static_cast<std::int64_t>(side) * side;
  for (int offset = 0; offset < std::max(height, width); offset += side) {
    const int left = width > height ? offset : 0, top = width > height ? 0 : offset;
    for (std::int64_t d = 0; d < length; ++d) {
      int x = 0, y = 0;
      std::int64_t t = d;
      for (int s = 1; s < side; s *= 2, t /= 4) {
        const int rx = static_cast<int>(1 & (t / 2)), ry = static_cast<int>(1 & (t ^ rx));
        if (ry == 0) {
          if (rx == 1) x = s - 1 - x, y = s - 1 - y;
          std::swap(x, y);
        }
        x += s * rx;
        y += s * ry;
      }
      x += left;
      y += top;
      if (x < width && y < height) pixels.push_back(y * width + x);
    }
  }
}

void init_adaptive(Canvas& canvas, const std::uint8_t* image, const Curve& curve, std::uint64_t seed) {
  Workspace& w = canvas.w;
  Fields f = structure(image, w.height, w.width);
  limit(f.density, w.count);
  Centres centres = sample(f, curve, w.count, seed);
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
