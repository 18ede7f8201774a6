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
SPLAT2D_INLINE VI rows_from_a_start(VF b) {
  const VF steep = max(b, -b);  // a comparison that holds gives -1
  return 32 >> -((steep > 0.45f) + (steep > 0.92f) + (steep > 1.98f) + (steep > 4.6f) + (steep > 10.0f));
}

SPLAT2D_INLINE VF limited(VF value, VF low, VF high) { return min(max(value, low), high); }

void pack(Workspace& w) {
  const float* const* p = w.param;
  const float* const colors[3] = {w.color_override[0] ? w.color_override[0] : p[5],
                                  w.color_override[1] ? w.color_override[1] : p[6],
                                  w.color_override[2] ? w.color_override[2] : p[7]};
  const VF last = all(static_cast<float>(w.strips - 1)), zero{};
  for (int i = 0; i < w.padded; i += kLanes) {
    const VF x = load(p[0] + i), y = load(p[1] + i);
    VF a = load(p[2] + i), b = load(p[3] + i), c = load(p[4] + i);
    if (w.cholesky) {  // factor_of in vectors
      const VF l00 = max(a, -a), l11 = max(c, -c), l10 = a < 0.0f ? -b : b;
      const VF s = square_root(l10 * l10 + l11 * l11);
      a = s / (l00 * l11), b = -l10 / (l11 * s), c = 1.0f / s;
    }
    const VF h = b * b + c * c, inverse_h = 1.0f / h, ac = a * c, iac = 1.0f / ac, ac_h = ac * inverse_h;
    const VF half = kCutoff * square_root(h) * iac;
    // A degenerate or far-away Gaussian compares false and ends up in no strip.
    const VF left = (x - half) * (1.0f / kLanes), right = (x + half) * (1.0f / kLanes);
    const VI inside = (right >= 0.0f) & (left <= last + 1.0f) & (a > 0.0f) & (a < 1e18f) & (h < 1e18f);
    const VF first = inside ? limited(left, zero, last) : zero + 1.0f, end = inside ? limited(right, zero, last) : zero;
    const VF bounds[8] = {x, y, a * b * inverse_h, kCutoffSquared * inverse_h, ac_h * ac_h, -kCutoff * b * iac,
                          (VF)truncated(first), (VF)truncated(end)};
    const VF low[8] = {x, y, a, b, c, load(colors[0] + i) * kUnscale, load(colors[1] + i) * kUnscale,
                       load(colors[2] + i) * kUnscale};
    const VF high[8] = {0.5f * h, exp(-h), (VF)rows_from_a_start(b), zero, zero, zero, zero, zero};
    store_records(bounds, reinterpret_cast<float*>(w.bounds + i), 8);
    store_records(low, reinterpret_cast<float*>(w.packed + i), 16);
    store_records(high, reinterpret_cast<float*>(w.packed + i) + 8, 16);
  }
}

constexpr int kBoundsAhead = 8, kEntriesAhead = 8;

// The bands that an ellipse may reach.
struct BandRange {
  int first, last;
};

SPLAT2D_INLINE BandRange bands_of(const Workspace& w, const Bounds& g) {
  if (w.bands == 1) return {0, 0};
  const float squared = g.reach - g.bend * g.top * g.top, lean = g.slope * g.top;
  const float half = (lean < 0.0f ? -lean : lean) + __builtin_sqrtf(squared > 0.0f ? squared : 0.0f);
  const float per_row = 1.0f / static_cast<float>(w.band_rows), last = static_cast<float>(w.bands - 1);
  const float low = (g.y - half * 1.001f - 0.02f) * per_row, high = (g.y + half * 1.001f + 0.02f) * per_row;
  return {low > 0.0f ? static_cast<int>(low < last ? low : last) : 0,
          high < last ? (high > 0.0f ? static_cast<int>(high) : 0) : w.bands - 1};
}

void list(Workspace& w) {
  std::int32_t* start = w.strip_start;
  const int cells = w.bands * (w.strips + 1);  // the last of a band stays empty
  for (int cell = 0; cell <= cells; ++cell) start[cell] = 0;
  for (int i = 0; i < w.count; ++i) {  // where Gaussians begin and, a strip late, where they end
    const Bounds& g = w.bounds[i];
    if (g.first_strip > g.last_strip) continue;
    const BandRange bands = bands_of(w, g);
    for (int band = bands.first; band <= bands.last; ++band) {
      ++start[band * (w.strips + 1) + g.first_strip];
      --start[band * (w.strips + 1) + g.last_strip + 1];
    }
  }
  std::size_t total = 0;
  for (int cell = 0, covering = 0; cell <= cells; ++cell) {
    covering += start[cell];
    start[cell] = static_cast<std::int32_t>(total);
    total += static_cast<std::size_t>(covering);
  }
  if (total > w.entry_capacity) w.grow_entries(w, total);
  const VF last_row = all(static_cast<float>(w.height - 1)), zero{};
  // start[cell] runs ahead to the end of a cell while its entries are filled in, and is set back below.
  for (int rank = 0; rank < w.count; ++rank) {
    const int i = w.order[rank];
    const Bounds& g = w.bounds[i];
    if (rank + kBoundsAhead < w.count) __builtin_prefetch(&w.bounds[w.order[rank + kBoundsAhead]]);
    if (g.first_strip > g.last_strip) continue;
    const BandRange bands = bands_of(w, g);
    for (int from = g.first_strip; from <= g.last_strip; from += kLanes) {  // a lane a strip
      const VF left = (lane_numbers() + static_cast<float>(from)) * static_cast<float>(kLanes) - g.x;
      const VF right = left + static_cast<float>(kLanes - 1);
      const VF low = limited(all(-g.top), left, right), high = limited(all(g.top), left, right);
      const VF rise = square_root(max(g.reach - g.bend * low * low, zero));
      const VF fall = square_root(max(g.reach - g.bend * high * high, zero));
      const VF first = (g.y - 0.01f) - g.slope * low - rise, end = (g.y + 0.01f) - g.slope * high + fall;
      const VI inside = (end >= 0.0f) & (first <= last_row);
      const VF top = limited(first, zero, last_row);
      VI row = truncated(top);
      row -= as_floats(row) < top;  // rounded up
      const VI bottom = inside ? truncated(limited(end, zero, last_row)) : row - 1;
      const int used = g.last_strip - from + 1 < kLanes ? g.last_strip - from + 1 : kLanes;
      for (int band = bands.first; band <= bands.last; ++band) {
        std::int32_t* const at = start + band * (w.strips + 1) + from;
        const VI highest = VI{} + band * w.band_rows, lowest = highest + (w.band_rows - 1);
        const VI begin = row > highest ? row : highest;
        const VI rows = (bottom < lowest ? bottom : lowest) - begin + 1;  // under 1: none
        for (int j = 0; j < used; ++j) {
          Entry* const to = w.entries + at[j]++;
          __builtin_prefetch(to + kEntriesAhead, 1);
          *to = Entry{i, begin[j], rows[j]};
        }
      }
    }
  }
  for (int cell = cells; cell > 0; --cell) start[cell] = start[cell - 1];
  start[0] = 0;
}

}  // namespace
}  // namespace SPLAT2D_TARGET
}  // namespace splat2d
