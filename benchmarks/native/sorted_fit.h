// What benchmarks/native/sorted_fit.cu computes of one Gaussian, key or pixel (host and device), and the same fit in
// plain loops on the CPU.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "splat2d/gaussian.h"
#include "splat2d/update.h"

namespace sorted {

using namespace splat2d;

constexpr int kSide = 16, kThreads = kSide * kSide, kWarp = 32;

struct Gaussian {
  float x, y, a, b, c, red, green, blue;
};

struct Picture {
  int height, width, number, columns, rows;  // columns, rows of tiles
};

// The tiles [x0, x1) x [y0, y1) that the ellipse's bounding box touches.
struct Box {
  int x0, x1, y0, y1;
};

struct Pixel {
  float red, green, blue;
};

SPLAT2D_HD Gaussian gaussian_of(const float* p, int n, int i) {
  const Factor f = factor_of({p[2 * n + i], p[3 * n + i], p[4 * n + i]});
  return {p[i], p[n + i], f.a, f.b, f.c, p[5 * n + i], p[6 * n + i], p[7 * n + i]};
}

SPLAT2D_HD Box box_of(const Gaussian& g, const Picture& d) {
  const float wide = half_width({g.a, g.b, g.c}), high = kCutoff / g.c;
  const float columns = static_cast<float>(d.columns), rows = static_cast<float>(d.rows);
  return {static_cast<int>(clamp((g.x - wide) / kSide, 0.0f, columns)),
          static_cast<int>(clamp((g.x + wide) / kSide + 1.0f, 0.0f, columns)),
          static_cast<int>(clamp((g.y - high) / kSide, 0.0f, rows)),
          static_cast<int>(clamp((g.y + high) / kSide + 1.0f, 0.0f, rows))};
}

// Gaussians of one depth: the low half of the key is constant, and is sorted all the same.
SPLAT2D_HD std::uint64_t key_of(int tile) { return static_cast<std::uint64_t>(tile) << 32; }

SPLAT2D_HD void write_keys(const Box& box, const Picture& d, int i, std::uint64_t* keys, int* values, int at) {
  for (int y = box.y0; y < box.y1; ++y) {
    for (int x = box.x0; x < box.x1; ++x, ++at) keys[at] = key_of(y * d.columns + x), values[at] = i;
  }
}

SPLAT2D_HD void mark_range(const std::uint64_t* keys, int count, int k, int* starts, int* ends) {
  const int tile = static_cast<int>(keys[k] >> 32);
  if (k == 0 || static_cast<int>(keys[k - 1] >> 32) != tile) starts[tile] = k;
  if (k == count - 1 || static_cast<int>(keys[k + 1] >> 32) != tile) ends[tile] = k + 1;
}

SPLAT2D_HD float value_at(const Gaussian& g, float dx, float dy) {
  const float u = g.a * dx + g.b * dy, v = g.c * dy, distance = u * u + v * v;
#ifdef __CUDA_ARCH__
  return distance <= kCutoffSquared ? __expf(-0.5f * distance) : 0.0f;  // as the kernels that it is compared with
#else
  return distance <= kCutoffSquared ? expf(-0.5f * distance) : 0.0f;
#endif
}

SPLAT2D_HD void draw(const Gaussian& g, int x, int y, Pixel& p) {
  const float value = value_at(g, static_cast<float>(x) - g.x, static_cast<float>(y) - g.y);
  p.red += value * g.red, p.green += value * g.green, p.blue += value * g.blue;
}

// One pixel's part of the eight moments.
SPLAT2D_HD void moments_at(const Gaussian& g, int x, int y, const Pixel& r, float* m) {
  const float dx = static_cast<float>(x) - g.x, dy = static_cast<float>(y) - g.y, value = value_at(g, dx, dy);
  const float q = value * (r.red * g.red + r.green * g.green + r.blue * g.blue);
  m[0] = value * r.red, m[1] = value * r.green, m[2] = value * r.blue;
  m[3] = q * dx, m[4] = q * dy, m[5] = q * dx * dx, m[6] = q * dx * dy, m[7] = q * dy * dy;
}

SPLAT2D_HD void step(float* p, float* m, float* v, const float* moments, int n, int i, const StepSettings& s) {
  Parameters q{p[i], p[n + i], p[2 * n + i], p[3 * n + i], p[4 * n + i], p[5 * n + i], p[6 * n + i], p[7 * n + i]};
  const float* t = moments + i * 8;
  AdamState state;
  for (int k = 0; k < kParameters; ++k) state.m[k] = m[k * n + i], state.v[k] = v[k * n + i];
  adam_step(q, {t[0], t[1], t[2], t[3], t[4], t[5], t[6], t[7]}, state, s);
  const float out[kParameters] = {q.x, q.y, q.s0, q.s1, q.s2, q.r, q.g, q.b};
  for (int k = 0; k < kParameters; ++k) p[k * n + i] = out[k], m[k * n + i] = state.m[k], v[k * n + i] = state.v[k];
}

struct Recipe {
  float lr_position, lr_shape, lr_color, lr_final, beta1, beta2, epsilon, lambda, scale_min;
};

inline StepSettings settings_at(const Recipe& r, const Picture& d, int it, int iters) {
  const double phase = iters > 1 ? static_cast<double>(it) / (iters - 1) : 0.0;
  const double cosine = 0.5 * (1.0 + std::cos(3.14159265358979 * phase));
  const float scale = static_cast<float>(r.lr_final + (1.0 - r.lr_final) * cosine);
  StepSettings s{};
  s.lr_position = r.lr_position * scale, s.lr_shape = r.lr_shape * scale, s.lr_color = r.lr_color * scale;
  s.beta1 = r.beta1, s.beta2 = r.beta2, s.epsilon = r.epsilon;
  s.correction1 = static_cast<float>(1.0 / (1.0 - std::pow(static_cast<double>(r.beta1), it + 1)));
  s.correction2 = static_cast<float>(1.0 / (1.0 - std::pow(static_cast<double>(r.beta2), it + 1)));
  s.lambda = r.lambda * 0.5f * static_cast<float>(d.height * d.width);
  s.width = static_cast<float>(d.width), s.height = static_cast<float>(d.height);
  s.scale_min = r.scale_min;
  s.scale_max = 0.45f * static_cast<float>(std::max(d.width, d.height)) + 2.0f;
  return s;
}

// One picture: param [8][N] is read and replaced. Returns the number of keys of the last iteration.
inline int fit_on_host(const Picture& d, const std::uint8_t* image, std::vector<float>& param, const Recipe& recipe, int iters,
                std::vector<Pixel>& residual) {
  const std::size_t n = static_cast<std::size_t>(d.number), tiles = static_cast<std::size_t>(d.columns * d.rows);
  std::vector<float> m(8 * n), v(8 * n), moments(8 * n);
  std::vector<Gaussian> gaussians(n);
  int count = 0;
  for (int it = 0; it <= iters; ++it) {
    std::vector<int> ends_of(n), starts(tiles), ends(tiles);
    count = 0;
    for (int i = 0; i < d.number; ++i) {
      const Gaussian g = gaussians[static_cast<std::size_t>(i)] = gaussian_of(param.data(), d.number, i);
      const Box box = box_of(g, d);
      count += std::max(0, box.x1 - box.x0) * std::max(0, box.y1 - box.y0);
      ends_of[static_cast<std::size_t>(i)] = count;
    }
    const std::size_t room = static_cast<std::size_t>(count);
    std::vector<std::uint64_t> keys(room), sorted(room);
    std::vector<int> values(room), order(room), sorted_values(room);
    for (int i = 0; i < d.number; ++i) {
      write_keys(box_of(gaussians[static_cast<std::size_t>(i)], d), d, i, keys.data(), values.data(),
                 i == 0 ? 0 : ends_of[static_cast<std::size_t>(i) - 1]);
    }
    for (int k = 0; k < count; ++k) order[static_cast<std::size_t>(k)] = k;
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return keys[a] < keys[b]; });
    for (std::size_t k = 0; k < room; ++k) sorted[k] = keys[order[k]], sorted_values[k] = values[order[k]];
    for (int k = 0; k < count; ++k) mark_range(sorted.data(), count, k, starts.data(), ends.data());
    std::fill(moments.begin(), moments.end(), 0.0f);
    for (int tile = 0; tile < static_cast<int>(tiles); ++tile) {
      for (int thread = 0; thread < kThreads; ++thread) {
        const int x = tile % d.columns * kSide + thread % kSide, y = tile / d.columns * kSide + thread / kSide;
        if (x >= d.width || y >= d.height) continue;
        Pixel p{};
        for (int k = starts[tile]; k < ends[tile]; ++k) draw(gaussians[sorted_values[k]], x, y, p);
        const int at = y * d.width + x;
        p.red -= static_cast<float>(image[at * 3]) / 255.0f;
        p.green -= static_cast<float>(image[at * 3 + 1]) / 255.0f;
        p.blue -= static_cast<float>(image[at * 3 + 2]) / 255.0f;
        residual[static_cast<std::size_t>(at)] = p;
        for (int k = starts[tile]; k < ends[tile]; ++k) {
          float part[8];
          moments_at(gaussians[sorted_values[k]], x, y, p, part);
          for (int j = 0; j < 8; ++j) moments[static_cast<std::size_t>(sorted_values[k]) * 8 + j] += part[j];
        }
      }
    }
    if (it == iters) break;
    const StepSettings s = settings_at(recipe, d, it, iters);
    for (int i = 0; i < d.number; ++i) step(param.data(), m.data(), v.data(), moments.data(), d.number, i, s);
  }
  return count;
}

}  // namespace sorted
