// What the row loops work from: one record a Gaussian, and the rows of each Gaussian in each strip.
#pragma once

#include "engine.h"
#include "simd.h"
#include "splat2d/gaussian.h"

namespace splat2d {
inline namespace SPLAT2D_TARGET {
namespace {

// Rows until the recurrence starts anew. A lane enters the ellipse with |u|, |v| <= 3, at most n - 1 rows after the
// start, and counts from there on if u^2 + v^2 <= 298 at the start (kLowest in engine_rows.h) and the ratio stays
// under exp(87). The relative error grows to 1e-7 (n + n^2 / 4) + 2e-5: 5e-5 at the far end of an ellipse.
SPLAT2D_INLINE std::int32_t rows_from_a_start(float b) {
  const float steep = absolute(b);
  return 32 >> ((steep > 0.45f) + (steep > 0.92f) + (steep > 1.98f) + (steep > 4.6f) + (steep > 10.0f));
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
      const float r = red[i] * kUnscale, g = green[i] * kUnscale, bl = blue[i] * kUnscale;
      w.packed[i] = Packed{p[0][i], p[1][i], a[j],     b[j],      c[j],     r, g, bl,
                           k * b[j], k * c[j], step_h[j], decay[j], rows_from_a_start(k * b[j])};
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

}  // namespace
}  // namespace SPLAT2D_TARGET
}  // namespace splat2d
