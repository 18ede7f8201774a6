// The row loops: Gaussians drawn into a strip, moments gathered from it.
//
// For each Gaussian and strip the lanes are neighbouring pixels of a row, and rows follow one another: with
// E(y) = exp(-(u^2 + v^2) / 2), E(y + 1) = E(y) r(y) and r(y + 1) = r(y) exp(-(b^2 + c^2)), two multiplications a
// row. The recurrence starts anew, with true exps, after at most 32 rows, earlier for steep Gaussians, so that no lane
// underflows before it enters the ellipse.
#pragma once

#include "engine.h"
#include "simd.h"
#include "splat2d/gaussian.h"

namespace splat2d {
inline namespace SPLAT2D_TARGET {
namespace {

// A run of rows with one start of the recurrence.
struct Start {
  VF value, ratio;  // in the first row, value times 2^kScaleBits; to the next row
  std::int32_t index, first_row, rows;
};

static_assert(sizeof(Start) <= kStartBytes);

constexpr float kLowest = -149.0f;  // exp(kLowest) 2^kScaleBits is still a normal number

SPLAT2D_INLINE void start_at(const Packed& g, float left, int row, Start& out) {
  const float dy = static_cast<float>(row) - g.y, v = g.c * dy;
  const VF u = (lane_numbers() + (left - g.x)) * g.a + g.b * dy;
  const VF power = u * u * -0.5f - 0.5f * v * v;
  // Exactly zero far outside: those lanes stay zero, whatever the ratio.
  out.value = power < kLowest ? VF{} : exp_scaled(power, kScaleBits);
  out.ratio = exp(u * -g.b - (g.c * v + g.half_h));
}

SPLAT2D_INLINE void add(const Packed& g, const Start& from, int top, float* strip) {
  const VF red = all(g.red), green = all(g.green), blue = all(g.blue), decay = all(g.decay);
  VF value = from.value, ratio = from.ratio;
  float* at = strip + (from.first_row - top) * 3 * kLanes;
  int rows = from.rows;
  do {
    const Mask inside = at_least(value, kCutoffValue * kScale);
    store(at, add_where(inside, value, red, load(at)));
    store(at + kLanes, add_where(inside, value, green, load(at + kLanes)));
    store(at + 2 * kLanes, add_where(inside, value, blue, load(at + 2 * kLanes)));
    value *= ratio;
    ratio *= decay;
    at += 3 * kLanes;
  } while (--rows > 0);
}

// Moments over y come from running sums: after n rows, sum of (m after each row) = sum (n - i) m_i.
SPLAT2D_INLINE void gather(const Packed& g, const Start& from, float left, int top, const float* strip,
                           float* moments) {
  const VF decay = all(g.decay);
  VF value = from.value, ratio = from.ratio;
  VF m0{}, m1{}, m2{}, n0{}, n1{}, n2{}, p0{}, p1{}, p2{};
  const float* at = strip + (from.first_row - top) * 3 * kLanes;
  int rows = from.rows;
  do {
    const Mask inside = at_least(value, kCutoffValue * kScale);
    m0 = add_where(inside, value, load(at), m0);
    m1 = add_where(inside, value, load(at + kLanes), m1);
    m2 = add_where(inside, value, load(at + 2 * kLanes), m2);
    n0 += m0, n1 += m1, n2 += m2;
    p0 += n0, p1 += n1, p2 += n2;
    value *= ratio;
    ratio *= decay;
    at += 3 * kLanes;
  } while (--rows > 0);
  // q = m . colour. With j = n - i (1 in the last row): s1 = sum j q, 2 s2 - s1 = sum j^2 q, and dy = bottom - j.
  const float bottom = static_cast<float>(from.first_row + from.rows) - g.y;
  const VF s0 = m0 * g.red + m1 * g.green + m2 * g.blue;
  const VF s1 = n0 * g.red + n1 * g.green + n2 * g.blue;
  const VF s2 = (p0 * g.red + p1 * g.green + p2 * g.blue) * 2.0f;
  const VF dx = lane_numbers() + (left - g.x);
  const VF y1 = s0 * bottom - s1;
  const VF y2 = (y1 - s1) * bottom + (s2 - s1);
  const VF x1 = s0 * dx;
  const VF sums[8] = {m0, m1, m2, x1, y1, x1 * dx, y1 * dx, y2};
  const V8 scales = {kUnscale, kUnscale, kUnscale, 1.0f, 1.0f, 1.0f, 1.0f, 1.0f};
  V8* to = reinterpret_cast<V8*>(moments);
  *to += lane_sums(sums) * scales;
}

constexpr int kAhead = 8;  // moments fetched ahead

// The next entry to start and how many of its rows have been.
struct Walk {
  const Entry* entry;
  int done;
};

// The next starts of a strip, at most kStartBlock; their number. A block at a time, because the processor overlaps the
// exps inside a block, which it cannot do across the ends of row loops, whose lengths it cannot predict.
SPLAT2D_INLINE int start_block(const Workspace& w, float left, const Entry* end, Walk& walk, Start* block) {
  int count = 0;
  while (count < kStartBlock && walk.entry < end) {
    const Entry& e = *walk.entry;
    const Packed& g = w.packed[e.index];
    Start& start = block[count];
    start.index = e.index;
    start.first_row = e.first_row + walk.done;
    start_at(g, left, start.first_row, start);
    const int rows = e.rows - walk.done;
    start.rows = rows < g.restart ? rows : g.restart;
    count += start.rows > 0;
    walk.done += start.rows;
    if (walk.done >= e.rows) ++walk.entry, walk.done = 0;
  }
  return count;
}

double squares(const float* strip, std::size_t size) {
  VF sum{};
  for (std::size_t i = 0; i < size; i += kLanes) sum += load(strip + i) * load(strip + i);
  double total = 0.0;
  for (int j = 0; j < kLanes; ++j) total += static_cast<double>(sum[j]);
  return total;
}

SPLAT2D_INLINE void fill(const Workspace& w, From from, std::size_t at, std::size_t size, float* strip) {
  if (from == From::target) {
    for (std::size_t i = 0; i < size; i += kLanes) store(strip + i, load_bytes(w.target + at + i) * (-1.0f / 255.0f));
  } else if (from == From::gradient) {
    for (std::size_t i = 0; i < size; i += kLanes) store(strip + i, load(w.gradient + at + i));
  } else {
    for (std::size_t i = 0; i < size; i += kLanes) store(strip + i, VF{});
  }
}

// Rows top to top + rows of strip s.
void run_strip(Workspace& w, const Pass& pass, int s, int top, int rows, const Entry* first, const Entry* end) {
  Start* const starts = reinterpret_cast<Start*>(w.starts);
  const std::size_t size = static_cast<std::size_t>(rows) * 3 * kLanes;
  const std::size_t at = (static_cast<std::size_t>(s) * w.height + top) * 3 * kLanes;  // in planes
  float* const strip = pass.out ? pass.out + at : w.strip;
  const float left = static_cast<float>(s * kLanes);
  fill(w, pass.from, at, size, strip);
  // The first starts are kept for the backward pass; for those from `rest` on it computes them again.
  Walk walk{first, 0}, rest = walk;
  int saved = 0;
  // The next strip's target comes from far away while this one is drawn.
  const std::uint8_t* next = w.target + at + static_cast<std::size_t>(w.height) * 3 * kLanes;
  const std::uint8_t* const next_end = next + (pass.from == From::target && s + 1 < w.strips ? size : 0);
  if (pass.forward) {
    while (walk.entry < end) {
      const bool keep = saved <= w.saved_starts - kStartBlock;
      Start* const block = starts + (keep ? saved : w.saved_starts);
      const int count = start_block(w, left, end, walk, block);
      for (int k = 0; k < count; ++k) {
        __builtin_prefetch(&w.packed[walk.entry[k].index]);  // for the next block: neighbours are strangers in memory
        if (next < next_end) __builtin_prefetch(next, 0, 2), next += 64;
        add(w.packed[block[k].index], block[k], top, strip);
      }
      if (keep) saved += count, rest = walk;
    }
  }
  const int used = w.width - s * kLanes;
  if (used < kLanes) {  // lanes right of the picture carry no residual
    const VF number = lane_numbers();
    const VF limit = all(static_cast<float>(used));
    for (std::size_t i = 0; i < size; i += kLanes) store(strip + i, number < limit ? load(strip + i) : VF{});
  }
  if (pass.squared) *pass.squared += squares(strip, size);
  if (pass.see) pass.see(pass.seer, s, top, rows, strip);
  if (pass.backward) {
    const auto gather_all = [&](const Start* block, int count) {
      for (int k = 0; k < count; ++k) {
        const int index = block[k].index;
        if (k + kAhead < count) {
          const int later = block[k + kAhead].index;
          __builtin_prefetch(&w.packed[later]);
          __builtin_prefetch(w.moments + static_cast<std::size_t>(later) * 8, 1);
        }
        gather(w.packed[index], block[k], left, top, strip, w.moments + static_cast<std::size_t>(index) * 8);
      }
    };
    gather_all(starts, saved);
    while (rest.entry < end) {
      const int count = start_block(w, left, end, rest, starts + w.saved_starts);
      gather_all(starts + w.saved_starts, count);
    }
  }
}

// Band by band, so that the records of a Gaussian are still near when its next strip comes.
void run(Workspace& w, const Pass& pass) {
  if (pass.backward) {
    for (std::size_t i = 0; i < static_cast<std::size_t>(w.padded) * 8; ++i) w.moments[i] = 0.0f;
  }
  const std::int32_t* start = w.strip_start;
  for (int top = 0; top < w.height; top += w.band_rows, ++start) {
    const int rows = w.height - top < w.band_rows ? w.height - top : w.band_rows;
    for (int s = 0; s < w.strips; ++s, ++start) {
      run_strip(w, pass, s, top, rows, w.entries + start[0], w.entries + start[1]);
    }
  }
}

}  // namespace
}  // namespace SPLAT2D_TARGET
}  // namespace splat2d
