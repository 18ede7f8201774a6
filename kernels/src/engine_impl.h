// The hot loops, compiled once for each instruction set (SPLAT2D_TARGET names it, SPLAT2D_LANES sets the width).
//
// For each Gaussian and strip the lanes are neighbouring pixels of a row, and rows follow one another: with
// E(y) = exp(-(u^2 + v^2) / 2), E(y + 1) = E(y) r(y) and r(y + 1) = r(y) exp(-(b^2 + c^2)), two multiplications a
// row. The recurrence is restarted with a true exp after at most 32 rows, earlier for steep Gaussians, so that no
// lane underflows before it enters the ellipse.
#pragma once

#include "engine.h"
#include "simd.h"
#include "splat2d/gaussian.h"
#include "splat2d/update.h"

namespace splat2d {
inline namespace SPLAT2D_TARGET {
namespace {

// Rows until a restart: |u| <= 12.8 must hold n rows before the ellipse, where |u|, |v| <= 3. After n rows the relative
// error is at most 1e-7 (n + n^2 / 4): 3e-5 where n = 32, at the far end of an ellipse.
SPLAT2D_INLINE std::int32_t restart_rows(float b) {
  const float steep = absolute(b);
  return 32 >> ((steep > 0.3f) + (steep > 0.6f) + (steep > 1.2f) + (steep > 2.4f) + (steep > 4.8f));
}

void pack(Workspace& w) {
  const float* const* p = w.param;
  const float* red = w.color_override[0] ? w.color_override[0] : p[5];
  const float* green = w.color_override[1] ? w.color_override[1] : p[6];
  const float* blue = w.color_override[2] ? w.color_override[2] : p[7];
  const float per_strip = 1.0f / kLanes, last = static_cast<float>(w.strips - 1);
  const float k = static_cast<float>(w.row_step);
  for (int start = 0; start < w.padded; start += kLanes) {
    alignas(64) float a[kLanes], b[kLanes], c[kLanes], step_h[kLanes], decay[kLanes];
    for (int j = 0; j < kLanes; ++j) {
      const int i = start + j;
      Factor f{p[2][i], p[3][i], p[4][i]};
      if (w.cholesky) f = factor_of({p[2][i], p[3][i], p[4][i]});
      a[j] = f.a, b[j] = f.b, c[j] = f.c;
      const float h = f.b * f.b + f.c * f.c, inverse_h = 1.0f / h;
      step_h[j] = 0.5f * k * k * h;
      const float iac = 1.0f / (f.a * f.c), ac_h = f.a * f.c * inverse_h;
      const float half = kCutoff * sqrtf(h) * iac;
      // A degenerate or far-away Gaussian compares false and ends up in no strip.
      const float left = (p[0][i] - half) * per_strip, right = (p[0][i] + half) * per_strip;
      const bool inside = right >= 0.0f && left <= last + 1.0f && f.a > 0.0f && f.a < 1e18f && h < 1e18f;
      const float first = inside ? clamp(left, 0.0f, last) : 1.0f, end = inside ? clamp(right, 0.0f, last) : 0.0f;
      w.bounds[i] = Bounds{p[0][i], p[1][i], f.a * f.b * inverse_h, kCutoffSquared * inverse_h, ac_h * ac_h,
                           -kCutoff * f.b * iac, static_cast<std::int32_t>(first), static_cast<std::int32_t>(end)};
    }
    store(decay, exp(load(step_h) * -2.0f));
    for (int j = 0; j < kLanes; ++j) {
      const int i = start + j;
      w.packed[i] = Packed{p[0][i], p[1][i], a[j], b[j], c[j], red[i], green[i], blue[i], k * b[j], k * c[j], step_h[j],
                           decay[j], restart_rows(k * b[j])};
    }
  }
}

void list(Workspace& w) {
  std::int32_t* start = w.strip_start;
  for (int s = 0; s <= w.strips; ++s) start[s] = 0;
  std::size_t total = 0;
  for (int i = 0; i < w.count; ++i) {
    const Bounds& g = w.bounds[i];
    for (int s = g.first_strip; s <= g.last_strip; ++s) ++start[s + 1];
    if (g.last_strip >= g.first_strip) total += static_cast<std::size_t>(g.last_strip - g.first_strip + 1);
  }
  if (total > w.entry_capacity) w.grow_entries(w, total);
  for (int s = 0; s < w.strips; ++s) start[s + 1] += start[s];
  const float last_row = static_cast<float>(w.height - 1);
  const int shift = __builtin_ctz(static_cast<unsigned>(w.row_step));
  // start[s] runs ahead to the end of strip s while its entries are filled in, and is set back below.
  for (int rank = 0; rank < w.count; ++rank) {
    const int i = w.order[rank];
    const Bounds& g = w.bounds[i];
    for (int s = g.first_strip; s <= g.last_strip; ++s) {
      const float left = static_cast<float>(s * kLanes) - g.x, right = left + static_cast<float>(kLanes - 1);
      const float low = clamp(-g.top, left, right), high = clamp(g.top, left, right);
      const float d_low = g.reach - g.bend * low * low, d_high = g.reach - g.bend * high * high;
      float first = g.y - g.slope * low - sqrtf(d_low > 0.0f ? d_low : 0.0f) - 0.01f;
      float end = g.y - g.slope * high + sqrtf(d_high > 0.0f ? d_high : 0.0f) + 0.01f;
      const bool inside = end >= 0.0f && first <= last_row;
      first = clamp(first, 0.0f, last_row);
      end = clamp(end, 0.0f, last_row);
      int row = static_cast<int>(first);
      row += static_cast<float>(row) < first;
      row += (w.row_phase - row) & (w.row_step - 1);
      const int rows = ((static_cast<int>(end) - row) >> shift) + 1;  // under 1: between two rows
      w.entries[start[s]++] = Entry{i, row, inside ? rows : 0};
    }
  }
  for (int s = w.strips; s > 0; --s) start[s] = start[s - 1];
  start[0] = 0;
}

// Where the recurrence of one entry starts: values in its first row and their ratio to the next row's.
struct Start {
  VF value, ratio;
};

SPLAT2D_INLINE Start start_at(const Packed& g, VF adx, int row) {
  const float dy = static_cast<float>(row) - g.y, v = g.c * dy;
  const VF u = adx + g.b * dy;
  const VF power = u * u * -0.5f - 0.5f * v * v;
  // Exactly zero far outside: those lanes stay zero until the restart, whatever the ratio.
  const VF value = power < -87.0f ? VF{} : exp(power);
  return {value, exp(u * -g.step_b - (g.step_c * v + g.step_h))};
}

SPLAT2D_INLINE VF adx_of(const Packed& g, float left) { return (lane_numbers() + (left - g.x)) * g.a; }

SPLAT2D_INLINE void add(const Packed& g, const Entry& e, Start r, float left, int row_step, float* strip) {
  const VF red = all(g.red), green = all(g.green), blue = all(g.blue), decay = all(g.decay);
  const std::ptrdiff_t stride = row_step * 3 * kLanes;
  float* at = strip + e.first_row * 3 * kLanes;
  int rows = e.rows, row = e.first_row;
  for (;;) {
    int n = rows < g.restart ? rows : g.restart;
    rows -= n;
    row += n * row_step;
    do {
      const Mask inside = r.value >= kCutoffValue;
      store(at, add_where(inside, r.value, red, load(at)));
      store(at + kLanes, add_where(inside, r.value, green, load(at + kLanes)));
      store(at + 2 * kLanes, add_where(inside, r.value, blue, load(at + 2 * kLanes)));
      r.value *= r.ratio;
      r.ratio *= decay;
      at += stride;
    } while (--n > 0);
    if (rows <= 0) break;
    r = start_at(g, adx_of(g, left), row);
  }
}

// Moments over y come from running sums: after n rows, sum of (m after each row) = sum (n - i) m_i.
SPLAT2D_INLINE void gather(const Packed& g, const Entry& e, Start r, float left, int row_step, const float* strip,
                           float* moments) {
  const VF decay = all(g.decay);
  VF m0{}, m1{}, m2{}, n0{}, n1{}, n2{}, p0{}, p1{}, p2{};
  const std::ptrdiff_t stride = row_step * 3 * kLanes;
  const float* at = strip + e.first_row * 3 * kLanes;
  int rows = e.rows, row = e.first_row;
  for (;;) {
    int n = rows < g.restart ? rows : g.restart;
    rows -= n;
    row += n * row_step;
    do {
      const Mask inside = r.value >= kCutoffValue;
      m0 = add_where(inside, r.value, load(at), m0);
      m1 = add_where(inside, r.value, load(at + kLanes), m1);
      m2 = add_where(inside, r.value, load(at + 2 * kLanes), m2);
      n0 += m0, n1 += m1, n2 += m2;
      p0 += n0, p1 += n1, p2 += n2;
      r.value *= r.ratio;
      r.ratio *= decay;
      at += stride;
    } while (--n > 0);
    if (rows <= 0) break;
    r = start_at(g, adx_of(g, left), row);
  }
  // q = m . colour. With j = n - i (1 in the last row): s1 = sum j q, 2 s2 - s1 = sum j^2 q, and dy = bottom - j step.
  const VF s0 = m0 * g.red + m1 * g.green + m2 * g.blue;
  const float step = static_cast<float>(row_step), bottom = static_cast<float>(row) - g.y;
  const VF s1 = (n0 * g.red + n1 * g.green + n2 * g.blue) * step;
  const VF s2 = (p0 * g.red + p1 * g.green + p2 * g.blue) * (2.0f * step * step);
  const VF dx = lane_numbers() + (left - g.x);
  const VF y1 = s0 * bottom - s1;
  const VF y2 = (y1 - s1) * bottom + (s2 - s1 * step);
  const VF x1 = s0 * dx;
  const VF sums[8] = {m0, m1, m2, x1, y1, x1 * dx, y1 * dx, y2};
  V8* to = reinterpret_cast<V8*>(moments);
  *to += lane_sums(sums) * step;
}

// Starts are computed for a block of entries at a time: then the processor overlaps their exps, which it cannot do
// across the ends of row loops, whose lengths it cannot predict.
constexpr int kBlock = 32;

template <class Body>
SPLAT2D_INLINE void for_entries(const Workspace& w, int strip, const Body& body) {
  const float left = static_cast<float>(strip * kLanes);
  const Entry* const end = w.entries + w.strip_start[strip + 1];
  for (const Entry* block = w.entries + w.strip_start[strip]; block < end; block += kBlock) {
    Start starts[kBlock];
    const std::ptrdiff_t count = end - block < kBlock ? end - block : kBlock;
    for (std::ptrdiff_t k = 0; k < count; ++k) {
      const Packed& g = w.packed[block[k].index];
      starts[k] = start_at(g, adx_of(g, left), block[k].first_row);
    }
    for (std::ptrdiff_t k = 0; k < count; ++k) {
      if (block[k].rows > 0) body(w.packed[block[k].index], block[k], starts[k], left);
    }
  }
}

double squares(const float* strip, int height, const Pass& pass) {
  VF sum{};
  for (int row = pass.row_phase; row < height; row += pass.row_step) {
    const float* at = strip + static_cast<std::size_t>(row) * 3 * kLanes;
    for (int k = 0; k < 3; ++k) sum += load(at + k * kLanes) * load(at + k * kLanes);
  }
  double total = 0.0;
  for (int j = 0; j < kLanes; ++j) total += static_cast<double>(sum[j]);
  return total * pass.row_step;
}

void run(Workspace& w, const Pass& pass) {
  const std::size_t size = static_cast<std::size_t>(w.height) * 3 * kLanes;
  if (pass.backward) {
    for (std::size_t i = 0; i < static_cast<std::size_t>(w.padded) * 8; ++i) w.moments[i] = 0.0f;
  }
  for (int s = 0; s < w.strips; ++s) {
    float* strip = pass.out ? pass.out + static_cast<std::size_t>(s) * size : w.strip;
    const float* base = pass.base ? pass.base + static_cast<std::size_t>(s) * size : nullptr;
    for (int row = 0; row < w.height; ++row) {
      const bool drawn = (row & (w.row_step - 1)) == w.row_phase;
      if (!drawn && !pass.out) continue;
      for (std::size_t i = 0; i < 3; ++i) {
        const std::size_t at = (static_cast<std::size_t>(row) * 3 + i) * kLanes;
        store(strip + at, base && drawn ? load(base + at) : VF{});
      }
    }
    if (pass.forward) {
      for_entries(w, s, [&](const Packed& g, const Entry& e, const Start& start, float left) {
        add(g, e, start, left, w.row_step, strip);
      });
    }
    const int used = w.width - s * kLanes;
    if (used < kLanes) {  // lanes right of the picture carry no residual
      const VF number = lane_numbers();
      const VF limit = all(static_cast<float>(used));
      for (std::size_t i = 0; i < size; i += kLanes) store(strip + i, number < limit ? load(strip + i) : VF{});
    }
    if (pass.squared) *pass.squared += squares(strip, w.height, pass);
    if (pass.backward) {
      for_entries(w, s, [&](const Packed& g, const Entry& e, const Start& start, float left) {
        gather(g, e, start, left, w.row_step, strip, w.moments + static_cast<std::size_t>(e.index) * 8);
      });
    }
  }
}

template <void (*Step)(Parameters&, const Moments&, AdamState&, const StepSettings&)>
SPLAT2D_INLINE void step_all(Workspace& w, const StepSettings& settings) {
  const StepSettings s = settings;
  for (int start = 0; start < w.padded; start += kLanes) {
#pragma GCC ivdep
    for (int j = 0; j < kLanes; ++j) {
      const int i = start + j;
      Parameters p{w.param[0][i], w.param[1][i], w.param[2][i], w.param[3][i],
                   w.param[4][i], w.param[5][i], w.param[6][i], w.param[7][i]};
      const float* q = w.moments + static_cast<std::size_t>(i) * 8;
      const Moments moments{q[0], q[1], q[2], q[3], q[4], q[5], q[6], q[7]};
      AdamState state;
      for (int k = 0; k < kParameters; ++k) state.m[k] = w.adam_m[k][i], state.v[k] = w.adam_v[k][i];
      Step(p, moments, state, s);
      w.param[0][i] = p.x, w.param[1][i] = p.y, w.param[2][i] = p.s0, w.param[3][i] = p.s1;
      w.param[4][i] = p.s2, w.param[5][i] = p.r, w.param[6][i] = p.g, w.param[7][i] = p.b;
      for (int k = 0; k < kParameters; ++k) w.adam_m[k][i] = state.m[k], w.adam_v[k][i] = state.v[k];
    }
  }
}

void adam(Workspace& w, const StepArguments* s) {
  step_all<adam_step>(w, *reinterpret_cast<const StepSettings*>(s));
}

void natural(Workspace& w, const StepArguments* s) {
  step_all<natural_step>(w, *reinterpret_cast<const StepSettings*>(s));
}

}  // namespace
}  // namespace SPLAT2D_TARGET
}  // namespace splat2d

#define SPLAT2D_DEFINE_ENGINE(function, label)                                                        \
  namespace splat2d {                                                                                 \
  const Engine& function() {                                                                          \
    static constexpr Engine table{label, kLanes, &pack, &list, &run, &adam, &natural};                \
    return table;                                                                                     \
  }                                                                                                   \
  }
