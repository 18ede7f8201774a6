// One Gaussian: its two shape factors, its bounds, and gradients from moments (host and device).
//
// Image model (GaussianVision, arXiv 2509.22615): sum_i c_i exp(-1/2 d^T Sigma_i^-1 d), d = pixel - mean_i.
// Users see Sigma = L L^T, L = [[l00, 0], [l10, l11]]. The kernels use Sigma^-1 = U^T U, U = [[a, b], [0, c]]:
// u = a dx + b dy, v = c dy, value = exp(-(u^2 + v^2) / 2).
#pragma once

#include <cmath>

#include "splat2d/config.h"

namespace splat2d {
inline namespace SPLAT2D_TARGET {

struct Factor {
  float a, b, c;
};

struct Cholesky {
  float l00, l10, l11;
};

// Sums over the pixels of one Gaussian's ellipse, E its value and R the picture's gradient (or residual):
// r, g, b = sum E R_channel; the others weigh q = E (colour . R) by d = pixel - mean.
struct Moments {
  float r, g, b, x, y, xx, xy, yy;
};

struct ShapeGradient {
  float x, y, l00, l10, l11;
};

SPLAT2D_HD float absolute(float value) { return value < 0.0f ? -value : value; }

SPLAT2D_HD float clamp(float value, float low, float high) {
  const float raised = value < low ? low : value;
  return raised > high ? high : raised;
}

// The sign of l00 and of l11 does not matter: only L L^T does.
SPLAT2D_HD Factor factor_of(Cholesky l) {
  const float l00 = absolute(l.l00), l11 = absolute(l.l11), l10 = l.l00 < 0.0f ? -l.l10 : l.l10;
  const float s = sqrtf(l10 * l10 + l11 * l11);
  return {s / (l00 * l11), -l10 / (l11 * s), 1.0f / s};
}

SPLAT2D_HD Cholesky cholesky_of(Factor f) {
  const float h = sqrtf(f.b * f.b + f.c * f.c);
  return {h / (f.a * f.c), -f.b / (f.c * h), 1.0f / h};
}

// Half the width of the ellipse's bounding box in x; in y it is kCutoff / c.
SPLAT2D_HD float half_width(Factor f) { return kCutoff * sqrtf(f.b * f.b + f.c * f.c) / (f.a * f.c); }

// Smallest and largest coordinate of a stretch, relative to the mean.
struct Span {
  float low, high;
};

// The dy of the ellipse's points whose dx lies in [left, right], a range that the ellipse meets.
SPLAT2D_HD Span rows_between(Factor f, float left, float right) {
  const float h = f.b * f.b + f.c * f.c, ac = f.a * f.c, tip = kCutoff * f.b / ac;  // dx of the lowest and highest
  const float low = clamp(tip, left, right), high = clamp(-tip, left, right);
  const float d_low = kCutoffSquared * h - ac * ac * low * low, d_high = kCutoffSquared * h - ac * ac * high * high;
  return {(-f.a * f.b * low - sqrtf(d_low > 0.0f ? d_low : 0.0f)) / h,
          (-f.a * f.b * high + sqrtf(d_high > 0.0f ? d_high : 0.0f)) / h};
}

// The dx of the ellipse's points whose dy lies in [top, bottom], a range that the ellipse meets.
SPLAT2D_HD Span columns_between(Factor f, float top, float bottom) {
  const float tip = kCutoff * f.b / (f.c * sqrtf(f.b * f.b + f.c * f.c)), inverse_a = 1.0f / f.a;
  const float low = clamp(tip, top, bottom), high = clamp(-tip, top, bottom);
  const float d_low = kCutoffSquared - f.c * f.c * low * low, d_high = kCutoffSquared - f.c * f.c * high * high;
  return {(-f.b * low - sqrtf(d_low > 0.0f ? d_low : 0.0f)) * inverse_a,
          (-f.b * high + sqrtf(d_high > 0.0f ? d_high : 0.0f)) * inverse_a};
}

// d loss / d (mean, L) from the moments of d loss / d picture.
SPLAT2D_HD ShapeGradient shape_gradient(Cholesky l, const Moments& m) {
  // w = L^-1 d: w0 = dx / l00, w1 = (dy - l10 w0) / l11; the sums below are those of q w and q w w^T.
  const float i00 = 1.0f / l.l00, i11 = 1.0f / l.l11, t = l.l10 * i00;
  const float w0 = m.x * i00, w1 = (m.y - t * m.x) * i11;
  const float w00 = m.xx * i00 * i00, w01 = (m.xy - t * m.xx) * i00 * i11;
  const float w11 = (m.yy - 2.0f * t * m.xy + t * t * m.xx) * i11 * i11;
  ShapeGradient out;
  out.y = w1 * i11;
  out.x = w0 * i00 - t * out.y;
  out.l10 = w01 * i11;
  out.l00 = w00 * i00 - t * out.l10;
  out.l11 = w11 * i11;
  return out;
}

}  // namespace SPLAT2D_TARGET
}  // namespace splat2d
