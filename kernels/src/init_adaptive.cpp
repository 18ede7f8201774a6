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

constexpr int kRadius = 4;  // of the smoothing, in pixels

// The smoothed structure tensor of a picture row by row, from the top down. A plane of it would take longer to write and
// to fetch again than it takes to compute twice.
class TensorRows {
 public:
  TensorRows(const std::uint8_t* image, int height, int width)
      : image_(image),
        height_(height),
        width_(width),
        rows_(kHeld * 3 * static_cast<std::size_t>(width)),
        line_(3 * (static_cast<std::size_t>(width) + 2 * kRadius)) {
    float sum = 0.0f;
    for (int k = 0; k <= kRadius; ++k) {
      weight_[k] = std::exp(-0.5f * static_cast<float>(k * k) / (kSmoothing * kSmoothing));
      sum += k == 0 ? weight_[k] : 2.0f * weight_[k];
    }
    for (float& value : weight_) value /= sum;
  }

  // Writes the next row, [xx, xy, yy][width].
  void next(float* to) {
    const int y = next_++;
    for (; made_ <= std::min(y + kRadius, height_ - 1); ++made_) make(made_);
    const std::size_t size = 3 * static_cast<std::size_t>(width_);
    const float* middle = held(y);
    for (std::size_t i = 0; i < size; ++i) to[i] = weight_[0] * middle[i];
    for (int k = 1; k <= kRadius; ++k) {
      const float* up = held(std::max(y - k, 0));
      const float* down = held(std::min(y + k, height_ - 1));
      for (std::size_t i = 0; i < size; ++i) to[i] += weight_[k] * (up[i] + down[i]);
    }
  }

 private:
  static constexpr int kHeld = 2 * kRadius + 1;  // the rows that smoothing reaches

  float* held(int y) { return rows_.data() + static_cast<std::size_t>(y % kHeld) * 3 * static_cast<std::size_t>(width_); }

  // One row, smoothed along itself only.
  void make(int y) {
    const std::size_t w = static_cast<std::size_t>(width_), stride = w + 2 * kRadius;
    const std::uint8_t* row = image_ + static_cast<std::size_t>(y) * w * 3;
    const std::uint8_t* up = image_ + static_cast<std::size_t>(std::max(y - 1, 0)) * w * 3;
    const std::uint8_t* down = image_ + static_cast<std::size_t>(std::min(y + 1, height_ - 1)) * w * 3;
    float* const line = line_.data() + kRadius;
    float* const lines[3] = {line, line + stride, line + 2 * stride};
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
    float* const to = held(y);
    for (std::size_t field = 0; field < 3; ++field) {
      float* const at = lines[field];
      std::fill_n(at - kRadius, kRadius, at[0]);
      std::fill_n(at + w, kRadius, at[w - 1]);
      for (std::size_t x = 0; x < w; ++x) {
        const float* middle = at + x;
        float sum = weight_[0] * middle[0];
        for (std::ptrdiff_t k = 1; k <= kRadius; ++k) sum += weight_[k] * (middle[-k] + middle[k]);
        to[field * w + x] = sum;
      }
    }
  }

  const std::uint8_t* image_;
  int height_, width_, made_ = 0, next_ = 0;
  float weight_[kRadius + 1];
  Vector<float> rows_, line_;
};

// One value a pixel, row by row.
struct Density {
  int height, width;
  Vector<float> values;
  const float* row(int y) const { return values.data() + static_cast<std::size_t>(y) * static_cast<std::size_t>(width); }
};

Density density_of(const std::uint8_t* image, int height, int width) {
  const std::size_t w = static_cast<std::size_t>(width);
  Density density{height, width, Vector<float>(static_cast<std::size_t>(height) * w)};
  TensorRows rows(image, height, width);
  Vector<float> tensor(3 * w);
  double total = 0.0;
  for (std::size_t first = 0; first < density.values.size(); first += w) {
    rows.next(tensor.data());
    float* const to = density.values.data() + first;
    for (std::size_t x = 0; x < w; ++x) to[x] = std::sqrt(tensor[x] + tensor[2 * w + x]);
    for (std::size_t x = 0; x < w; ++x) total += static_cast<double>(to[x]);
  }
  const float mean = static_cast<float>(total / static_cast<double>(density.values.size()));
  // A flat picture has no gradient anywhere: then the density is uniform.
  for (float& value : density.values) value = mean > 1e-12f ? kFlatShare + (1.0f - kFlatShare) * value / mean : 1.0f;
  return density;
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

Centres sample(const Density& density, int n, std::uint64_t seed) {
  Centres out{Vector<float>(static_cast<std::size_t>(n)), Vector<float>(static_cast<std::size_t>(n))};
  double total = 0.0;
  for (const float d : density.values) total += static_cast<double>(d);
  const double step = total / n, offset = unit_random(seed);
  double mass = 0.0, next = offset * step;
  int last_x = 0, last_y = 0;
  std::size_t taken = 0, last = static_cast<std::size_t>(n);
  along_curves(density.width, density.height, [&](int x, int y) {
    mass += static_cast<double>(density.row(y)[x]);
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
void even_out(const Density& density, Centres& centres) {
  Vector<Mass> masses(centres.x.size());
  Voronoi voronoi(density.height, density.width, centres.x, centres.y);
  voronoi.for_each_pixel([&](int x, int y, std::int32_t centre) {
    Mass& mass = masses[static_cast<std::size_t>(centre)];
    const double weight = static_cast<double>(density.row(y)[x]);
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

Vector<Cell> cells_of(const std::uint8_t* image, int height, int width, const Centres& centres) {
  const std::size_t w = static_cast<std::size_t>(width);
  Vector<Cell> cells(centres.x.size());
  TensorRows rows(image, height, width);
  Vector<float> tensors(Voronoi::kTile * 3 * w);  // of the tiles that are being looked at
  int made = 0;
  Voronoi(height, width, centres.x, centres.y).for_each_pixel([&](int x, int y, std::int32_t centre) {
    for (; made <= y; ++made) rows.next(tensors.data() + static_cast<std::size_t>(made % Voronoi::kTile) * 3 * w);
    const float* tensor = tensors.data() + static_cast<std::size_t>(y % Voronoi::kTile) * 3 * w + x;
    const std::uint8_t* color = image + (static_cast<std::size_t>(y) * w + static_cast<std::size_t>(x)) * 3;
    Cell& cell = cells[static_cast<std::size_t>(centre)];
    cell.area += 1.0f;
    for (std::size_t k = 0; k < 3; ++k) cell.color[k] += color[k];
    cell.xx += tensor[0];
    cell.xy += tensor[w];
    cell.yy += tensor[2 * w];
  });
  return cells;
}

}  // namespace

void init_adaptive(Canvas& canvas, const std::uint8_t* image, std::uint64_t seed) {
  Workspace& w = canvas.w;
  Density density = density_of(image, w.height, w.width);
  limit(density.values, w.count);
  Centres centres = sample(density, w.count, seed);
  even_out(density, centres);
  const Vector<Cell> cells = cells_of(image, w.height, w.width, centres);
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
