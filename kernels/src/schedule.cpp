#include "schedule.h"

#include <algorithm>
#include <cmath>

namespace splat2d {

StepSettings settings_at(const FitOptions& o, int height, int width, int it, int num_iters, float rate) {
  const double phase = num_iters > 1 ? static_cast<double>(it) / (num_iters - 1) : 0.0;
  const double cosine = 0.5 * (1.0 + std::cos(3.14159265358979 * phase));
  const float scale = rate * static_cast<float>(o.lr_final + (1.0 - o.lr_final) * cosine);
  StepSettings s{};
  s.lr_position = o.lr_position * scale;
  s.lr_shape = o.lr_shape * scale;
  s.lr_color = o.lr_color * scale;
  s.beta1 = o.beta1;
  s.beta2 = o.beta2;
  s.correction1 = static_cast<float>(1.0 / (1.0 - std::pow(static_cast<double>(o.beta1), it + 1)));
  s.correction2 = static_cast<float>(1.0 / (1.0 - std::pow(static_cast<double>(o.beta2), it + 1)));
  s.epsilon = o.epsilon;
  s.lambda = static_cast<float>(o.lambda_color * 0.5 * height * width);
  s.width = static_cast<float>(width);
  s.height = static_cast<float>(height);
  s.scale_min = o.scale_min;
  // 100 px at 224 px; small pictures keep room for one Gaussian that covers them.
  s.scale_max = 0.45f * static_cast<float>(std::max(width, height)) + 2.0f;
  return s;
}

Schedule::Schedule(const FitOptions& options, int height, int width, int num_iters, float rate)
    : options_(options), height_(height), width_(width), end_(num_iters), rate_(rate) {}

bool Schedule::measures(int) const { return false; }

bool Schedule::done(int, double) { return false; }

StepSettings Schedule::settings(int it) const { return settings_at(options_, height_, width_, it, end_, rate_); }

}  // namespace splat2d
