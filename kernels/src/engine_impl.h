// The hot loops, compiled once for each instruction set (SPLAT2D_TARGET names it, SPLAT2D_LANES sets the width).
//
// For each Gaussian and strip the lanes are neighbouring pixels of a row, and rows follow one another: with
// E(y) = exp(-(u^2 + v^2) / 2), E(y + 1) = E(y) r(y) and r(y + 1) = r(y) exp(-(b^2 + c^2)), two multiplications a
// row. The recurrence is restarted with a true exp after at most 16 rows, earlier for steep Gaussians, so that no
// lane underflows before it enters the ellipse.
#pragma once

#include "engine.h"
#include "simd.h"
#include "splat2d/gaussian.h"
#include "splat2d/update.h"

namespace splat2d {
inline namespace SPLAT2D_TARGET {
namespace {

// Rows until a restart: |u| <= 12.8 must hold n rows before the ellipse, where |u|, |v| <= 3.
SPLAT2D_INLINE int restart_rows(float b) {
  const float steep = absolute(b);
  return steep <= 0.6f ? 16 : steep <= 1.2f ? 8 : steep <= 2.4f ? 4 : steep <= 4.8f ? 2 : 1;
}

void pack(Workspace& w) {
  const float* const* p = w.param;
  const float* red = w.color_override[0] ? w.color_override[0] : p[5];
  const float* green = w.color_override[1] ? w.color_override[1] : p[6];
  const float* blue = w.color_override[2] ? w.color_override[2] : p[7];
  const float per_strip = 1.0f / kLanes, last = static_cast<float>(w.strips - 1);
  for (int start = 0; start < w.padded; start += kLanes) {
    alignas(64) float a[kLanes], b[kLanes], c[kLanes], h[kLanes], top[kLanes], ih[kLanes], first[kLanes], end[kLanes];
    alignas(64) float decay[kLanes];
    for (int j = 0; j < kLanes; ++j) {
      const int i = start + j;
      Factor f{p[2][i], p[3][i], p[4][i]};
      if (w.cholesky) f = factor_of({p[2][i], p[3][i], p[4][i]});
      a[j] = f.a, b[j] = f.b, c[j] = f.c;
      h[j] = f.b * f.b + f.c * f.c;
      ih[j] = 1.0f / h[j];
      const float iac = 1.0f / (f.a * f.c);
      top[j] = -kCutoff * f.b * iac;
      const float half = kCutoff * sqrtf(h[j]) * iac;
      // A degenerate or far-away Gaussian compares false and ends up in no strip.
      const float left = (p[0][i] - half) * per_strip, right = (p[0][i] + half) * per_strip;
      const bool inside = right >= 0.0f && left <= last + 1.0f && f.a > 0.0f && f.a < 1e18f && h[j] < 1e18f;
      first[j] = inside ? clamp(left, 0.0f, last) : 1.0f;
      end[j] = inside ? clamp(right, 0.0f, last) : 0.0f;
    }
    store(decay, exp(-load(h)));
    for (int j = 0; j < kLanes; ++j) {
      const int i = start + j;
      w.packed[i] = Packed{p[0][i], p[1][i], a[j],  b[j], c[j],         red[i],
                           green[i], blue[i], decay[j], h[j], top[j],   a[j] * b[j],
                           a[j] * a[j] * c[j] * c[j],   ih[j], static_cast<std::int32_t>(first[j]),
                           static_cast<std::int32_t>(end[j])};
    }
  }
}

void list(Workspace& w) {
  std::int32_t* start = w.strip_start;
  for (int s = 0; s <= w.strips; ++s) start[s] = 0;
  std::size_t total = 0;
  for (int i = 0; i < w.count; ++i) {
    const Packed& g = w.packed[i];
    for (int s = g.first_strip; s <= g.last_strip; ++s) ++start[s + 1];
    if (g.last_strip >= g.first_strip) total += static_cast<std::size_t>(g.last_strip - g.first_strip + 1);
  }
  if (total > w.entry_capacity) w.grow_entries(w, total);
  for (int s = 0; s < w.strips; ++s) start[s + 1] += start[s];
  const float last_row = static_cast<float>(w.height - 1);
  // start[s] runs ahead to the end of strip s while its entries are filled in, and is set back below.
  for (int rank = 0; rank < w.count; ++rank) {
    const int i = w.order[rank];
    const Packed& g = w.packed[i];
    for (int s = g.first_strip; s <= g.last_strip; ++s) {
      const float left = static_cast<float>(s * kLanes) - g.x, right = left + static_cast<float>(kLanes - 1);
      const float low = clamp(-g.top, left, right), high = clamp(g.top, left, right);
      const float d_low = kCutoffSquared * g.h - g.ac2 * low * low;
      const float d_high = kCutoffSquared * g.h - g.ac2 * high * high;
      float first = g.y + (-g.ab * low - sqrtf(d_low > 0.0f ? d_low : 0.0f)) * g.inverse_h - 0.01f;
      float end = g.y + (-g.ab * high + sqrtf(d_high > 0.0f ? d_high : 0.0f)) * g.inverse_h + 0.01f;
      Entry& e = w.entries[start[s]++];
      e.index = i;
      const bool inside = end >= 0.0f && first <= last_row;
      first = clamp(first, 0.0f, last_row);
      end = clamp(end, 0.0f, last_row);
      const int row = static_cast<int>(first);
      e.first_row = static_cast<std::uint16_t>(inside ? row + (static_cast<float>(row) < first) : 1);
      e.last_row = static_cast<std::uint16_t>(inside ? static_cast<int>(end) : 0);
    }
  }
  for (int s = w.strips; s > 0; --s) start[s] = start[s - 1];
  start[0] = 0;
}

struct Recurrence {
  VF value, ratio;
};

// `b`, `c`, `h`: the Gaussian's, for one step down its rows (b and c times row_step, h times its square).
struct Step {
  float b, c, h, decay;
};

SPLAT2D_INLINE Step step_of(const Packed& g, int row_step) {
  const float k = static_cast<float>(row_step);
  float decay = g.decay;
  for (int i = 1; i < row_step; i *= 2) decay = (decay * decay) * (decay * decay);
  return {k * g.b, k * g.c, k * k * g.h, decay};
}

SPLAT2D_INLINE int first_row(const Entry& e, const Pass& pass) {
  return e.first_row + ((pass.row_phase - e.first_row) & (pass.row_step - 1));
}

SPLAT2D_INLINE Recurrence restart(const Packed& g, const Step& s, VF adx, int row) {
  const float dy = static_cast<float>(row) - g.y, v = g.c * dy;
  const VF u = adx + g.b * dy;
  const VF power = u * u * -0.5f - 0.5f * v * v;
  // Exactly zero far outside, where the ratio may be as large as exp(87): those lanes stay zero until the restart.
  const VF value = power < -87.0f ? VF{} : exp(power);
  return {value, exp(u * -s.b - (s.c * v + 0.5f * s.h))};
}

SPLAT2D_INLINE VF cut(VF value) { return value >= kCutoffValue ? value : VF{}; }

SPLAT2D_INLINE void add(const Packed& g, const Entry& e, const Pass& pass, float left, float* strip) {
  const int k = pass.row_step;
  const Step s = step_of(g, k);
  const VF adx = (lane_numbers() + (left - g.x)) * g.a;
  const VF red = all(g.red), green = all(g.green), blue = all(g.blue), decay = all(s.decay);
  const int step = restart_rows(s.b) * k;
  for (int row = first_row(e, pass); row <= e.last_row; row += step) {
    Recurrence r = restart(g, s, adx, row);
    const int end = row + step - 1 < e.last_row ? row + step - 1 : e.last_row;
    float* at = strip + row * 3 * kLanes;
    for (int i = row; i <= end; i += k, at += k * 3 * kLanes) {
      const VF value = cut(r.value);
      store(at, load(at) + value * red);
      store(at + kLanes, load(at + kLanes) + value * green);
      store(at + 2 * kLanes, load(at + 2 * kLanes) + value * blue);
      r.value *= r.ratio;
      r.ratio *= decay;
    }
  }
}

// Moments over y come from running sums: after n rows, sum of (s0 after each row) = sum (n - i) q_i.
SPLAT2D_INLINE void gather(const Packed& g, const Entry& e, const Pass& pass, float left, const float* strip,
                           float* moments) {
  const int k = pass.row_step;
  const Step s = step_of(g, k);
  const VF dx = lane_numbers() + (left - g.x), adx = dx * g.a;
  const VF red = all(g.red), green = all(g.green), blue = all(g.blue), decay = all(s.decay);
  VF m0{}, m1{}, m2{}, s0{}, s1{}, s2{};
  const int step = restart_rows(s.b) * k;
  int after = first_row(e, pass);  // the row after the last one
  for (int row = after; row <= e.last_row; row += step) {
    Recurrence r = restart(g, s, adx, row);
    const int end = row + step - 1 < e.last_row ? row + step - 1 : e.last_row;
    const float* at = strip + row * 3 * kLanes;
    for (after = row; after <= end; after += k, at += k * 3 * kLanes) {
      const VF value = cut(r.value);
      const VF r0 = load(at), r1 = load(at + kLanes), r2 = load(at + 2 * kLanes);
      m0 += value * r0;
      m1 += value * r1;
      m2 += value * r2;
      s0 += value * (r0 * red + r1 * green + r2 * blue);
      s1 += s0;
      s2 += s1;
      r.value *= r.ratio;
      r.ratio *= decay;
    }
  }
  // With j = n - i (1 in the last row): s1 = sum j q, 2 s2 - s1 = sum j^2 q, and dy = bottom - k j.
  const float spacing = static_cast<float>(k), bottom = static_cast<float>(after) - g.y;
  const VF y1 = s0 * bottom - s1 * spacing;
  const VF y2 = s0 * (bottom * bottom) - s1 * (2.0f * bottom * spacing) + (s2 * 2.0f - s1) * (spacing * spacing);
  VF sums[8] = {m0, m1, m2, s0 * dx, y1, s0 * dx * dx, y1 * dx, y2};
  for (VF& sum : sums) sum *= spacing;
  V8* to = reinterpret_cast<V8*>(moments);
  *to += lane_sums(sums);
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
    const Entry* entries = w.entries + w.strip_start[s];
    const int count = w.strip_start[s + 1] - w.strip_start[s];
    const float left = static_cast<float>(s * kLanes);
    float* strip = pass.out ? pass.out + static_cast<std::size_t>(s) * size : w.strip;
    const float* base = pass.base ? pass.base + static_cast<std::size_t>(s) * size : nullptr;
    for (int row = 0; row < w.height; ++row) {
      const bool drawn = (row & (pass.row_step - 1)) == pass.row_phase;
      if (!drawn && !pass.out) continue;
      for (std::size_t i = 0; i < 3; ++i) {
        const std::size_t at = (static_cast<std::size_t>(row) * 3 + i) * kLanes;
        store(strip + at, base && drawn ? load(base + at) : VF{});
      }
    }
    if (pass.forward) {
      for (int k = 0; k < count; ++k) add(w.packed[entries[k].index], entries[k], pass, left, strip);
    }
    const int used = w.width - s * kLanes;
    if (used < kLanes) {  // lanes right of the picture carry no residual
      const VF number = lane_numbers();
      const VF limit = all(static_cast<float>(used));
      for (std::size_t i = 0; i < size; i += kLanes) store(strip + i, number < limit ? load(strip + i) : VF{});
    }
    if (pass.squared) *pass.squared += squares(strip, w.height, pass);
    if (pass.backward) {
      for (int k = 0; k < count; ++k) {
        const int index = entries[k].index;
        gather(w.packed[index], entries[k], pass, left, strip, w.moments + static_cast<std::size_t>(index) * 8);
      }
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
