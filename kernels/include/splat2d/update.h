// One optimiser step of one Gaussian, from its moments (host and device, free of branches).
//
// The loss is half the squared error summed over pixels and channels, plus lambda * |colours|_1: the paper's loss
// (GaussianVision, arXiv 2509.22615) times H W / 2. Adam does not see that factor.
#pragma once

#include "splat2d/gaussian.h"

namespace splat2d {
inline namespace SPLAT2D_TARGET {

// What a step needs besides the Gaussian, the same for all of them in one iteration.
struct StepSettings {
  float lr_position, lr_shape, lr_color;  // already scaled by the schedule
  float beta1, beta2;
  float correction1, correction2;  // 1 / (1 - beta^t)
  float epsilon;
  float lambda;              // L1 weight in units of this loss
  float width, height;       // of the picture
  float scale_min;           // smallest standard deviation along an axis, pixels
  float scale_max;           // largest
};

// Parameters x, y, s0, s1, s2, r, g, b; the shape is (l00, l10, l11) for adam_step, (a, b, c) for natural_step.
struct Parameters {
  float x, y, s0, s1, s2, r, g, b;
};

// Adam's running means; natural_step keeps one second moment a group (in v[0], v[1], v[2]).
struct AdamState {
  float m[kParameters];
  float v[kParameters];
};

SPLAT2D_HD float sign(float value) { return value > 0.0f ? 1.0f : (value < 0.0f ? -1.0f : 0.0f); }

// exp for |x| <= 0.7, relative error under 2e-7: all that shape steps need.
SPLAT2D_HD float small_exp(float x) {
  return 1.0f + x * (1.0f + x * (0.5f + x * (1.6666667e-1f + x * (4.1666667e-2f + x * (8.3333333e-3f +
         x * (1.3888889e-3f + x * 1.9841270e-4f))))));
}

SPLAT2D_HD float adam_direction(float& m, float& v, float gradient, const StepSettings& s) {
  m = s.beta1 * m + (1.0f - s.beta1) * gradient;
  v = s.beta2 * v + (1.0f - s.beta2) * gradient * gradient;
  return m * s.correction1 / (sqrtf(v * s.correction2) + s.epsilon);
}

SPLAT2D_HD float keep_near(float value, float size) { return clamp(value, -0.45f * size, 1.45f * size); }

// Plain Adam on (x, y, l00, l10, l11, r, g, b): the recipe `paper`.
SPLAT2D_HD void adam_step(Parameters& p, const Moments& q, AdamState& state, const StepSettings& s) {
  const ShapeGradient g = shape_gradient({p.s0, p.s1, p.s2}, q);
  p.x = keep_near(p.x - s.lr_position * adam_direction(state.m[0], state.v[0], g.x, s), s.width);
  p.y = keep_near(p.y - s.lr_position * adam_direction(state.m[1], state.v[1], g.y, s), s.height);
  const float l00 = p.s0 - s.lr_shape * adam_direction(state.m[2], state.v[2], g.l00, s);
  const float l10 = p.s1 - s.lr_shape * adam_direction(state.m[3], state.v[3], g.l10, s);
  const float l11 = p.s2 - s.lr_shape * adam_direction(state.m[4], state.v[4], g.l11, s);
  p.s0 = clamp(l00, s.scale_min, s.scale_max);
  p.s1 = clamp(l10, -s.scale_max, s.scale_max);
  p.s2 = clamp(l11, s.scale_min, s.scale_max);
  p.r -= s.lr_color * adam_direction(state.m[5], state.v[5], q.r + s.lambda * sign(p.r), s);
  p.g -= s.lr_color * adam_direction(state.m[6], state.v[6], q.g + s.lambda * sign(p.g), s);
  p.b -= s.lr_color * adam_direction(state.m[7], state.v[7], q.b + s.lambda * sign(p.b), s);
}

// Adam in a frame where the Gaussian's own block of the Gauss-Newton matrix is the identity. With n = sqrt(a c / pi)
// the function n E has unit L2 norm; k = colour / n. Unit steps are: k; shifts of sqrt2 / |k| in whitened
// coordinates; U <- [[e^s11, s12], [0, e^s22]] U with (s11, s12, s22) in steps of (sqrt2, 2, sqrt2) / |k|, k held.
SPLAT2D_HD void natural_step(Parameters& p, const Moments& q, AdamState& state, const StepSettings& s) {
  const float a = p.s0, b = p.s1, c = p.s2;
  const float n2 = a * c * (1.0f / kPi), n = sqrtf(n2), inverse_n = 1.0f / n;
  float kr = p.r * inverse_n, kg = p.g * inverse_n, kb = p.b * inverse_n;
  const float w = sqrtf(2.0f / (kr * kr + kg * kg + kb * kb + 0.05f)), w12 = 1.41421356f * w;
  const float total = p.r * q.r + p.g * q.g + p.b * q.b;
  const float quu = a * a * q.xx + 2.0f * a * b * q.xy + b * b * q.yy;
  const float quv = c * (a * q.xy + b * q.yy), qvv = c * c * q.yy;
  const float gradient[kParameters] = {w * (a * q.x + b * q.y),
                                       w * c * q.y,
                                       w * (0.5f * total - quu),
                                       -w12 * quv,
                                       w * (0.5f * total - qvv),
                                       n * (q.r + s.lambda * sign(p.r)),
                                       n * (q.g + s.lambda * sign(p.g)),
                                       n * (q.b + s.lambda * sign(p.b))};
  const float squares[3] = {
      0.5f * (gradient[0] * gradient[0] + gradient[1] * gradient[1]),
      (1.0f / 3.0f) * (gradient[2] * gradient[2] + gradient[3] * gradient[3] + gradient[4] * gradient[4]),
      (1.0f / 3.0f) * (gradient[5] * gradient[5] + gradient[6] * gradient[6] + gradient[7] * gradient[7])};
  float rate[3] = {s.lr_position, s.lr_shape, s.lr_color};
  for (int i = 0; i < 3; ++i) {
    state.v[i] = s.beta2 * state.v[i] + (1.0f - s.beta2) * squares[i];
    rate[i] *= -s.correction1 / (sqrtf(state.v[i] * s.correction2) + s.epsilon);
  }
  for (int i = 0; i < kParameters; ++i) state.m[i] = s.beta1 * state.m[i] + (1.0f - s.beta1) * gradient[i];

  const float shift_u = clamp(w * rate[0] * state.m[0], -1.5f, 1.5f);
  const float shift_v = clamp(w * rate[0] * state.m[1], -1.5f, 1.5f);
  const float dy = shift_v / c, dx = (shift_u - b * dy) / a;
  p.x = keep_near(p.x + dx, s.width);
  p.y = keep_near(p.y + dy, s.height);

  const float e11 = small_exp(clamp(w * rate[1] * state.m[2], -0.5f, 0.5f));
  const float s12 = clamp(w12 * rate[1] * state.m[3], -0.7f, 0.7f);
  const float e22 = small_exp(clamp(w * rate[1] * state.m[4], -0.5f, 0.5f));
  const float low = 1.0f / s.scale_max, high = 1.0f / s.scale_min;
  p.s0 = clamp(a * e11, low, high);
  p.s2 = clamp(c * e22, low, high);
  // l00 = sqrt(b^2 + c^2) / (a c) stays within scale_max as well, or a sheared Gaussian grows to thousands of pixels.
  const float reach = s.scale_max * p.s0, most = 2.0f * high;
  const float widest = p.s2 * sqrtf(reach > 1.0f ? reach * reach - 1.0f : 0.0f), limit = widest < most ? widest : most;
  p.s1 = clamp(b * e11 + s12 * c, -limit, limit);

  kr += rate[2] * state.m[5];
  kg += rate[2] * state.m[6];
  kb += rate[2] * state.m[7];
  const float rescaled = sqrtf(p.s0 * p.s2 * (1.0f / kPi));
  p.r = kr * rescaled;
  p.g = kg * rescaled;
  p.b = kb * rescaled;
}

}  // namespace SPLAT2D_TARGET
}  // namespace splat2d
