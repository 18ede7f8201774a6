// One engine: the hot loops, compiled once for each instruction set (SPLAT2D_TARGET names it, SPLAT2D_LANES sets the
// width).
#pragma once

#include "engine_lists.h"
#include "engine_metric.h"
#include "engine_rows.h"
#include "splat2d/update.h"

namespace splat2d {
inline namespace SPLAT2D_TARGET {
namespace {

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
    static constexpr Engine table{label, kLanes, &pack, &list, &run, &adam, &natural, &multiply};     \
    return table;                                                                                     \
  }                                                                                                   \
  }
