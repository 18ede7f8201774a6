#include "schedule.h"

#include <algorithm>
#include <cmath>

#include "grow.h"
#include "workspace.h"

namespace splat2d {
namespace {

constexpr double kMargin = 0.001;  // dB: the result is measured again after a change of parameters
constexpr double kExact = 100.0;   // dB: psnr_of gives no more
constexpr double kNear = 0.5;      // dB
constexpr int kFirstGrowth = 6;    // iterations before their gains tell anything
constexpr int kOpenGrowth = 140;   // where the end is not known: what the times of growth and moves are shares of

// Iterations before the root sets in: what a recipe's steps need to come near.
double steady_iters(Optimizer optimizer) { return optimizer == Optimizer::adam ? 600.0 : 20.0; }

StepSettings settings_of(const FitOptions& o, int height, int width, int it, float scale) {
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
  s.scale_max = scale_max_of(height, width);
  return s;
}

}  // namespace

float scale_max_of(int height, int width) { return 0.45f * static_cast<float>(std::max(width, height)) + 2.0f; }

StepSettings settings_at(const FitOptions& options, int height, int width, int it, int num_iters, float rate) {
  return Schedule(options, height, width, num_iters, rate).settings(it);
}

Schedule::Schedule(const FitOptions& options, int height, int width, int num_iters, float rate)
    : options_(options), height_(height), width_(width), num_iters_(num_iters), end_(num_iters), rate_(rate) {
  if (rate < 1.0f || options.start_share >= 1.0f) parts_ = options.grow_steps;  // all Gaussians are there
}

bool Schedule::open_ended() const { return options_.target_psnr > 0.0f || options_.plateau > 0.0f; }

int Schedule::parts(int it) const {
  return std::max(parts_, growth_parts(options_, open_ended() ? std::min(num_iters_, kOpenGrowth) : num_iters_, it));
}

int Schedule::gaussians(int number, int it) const { return growth_count(options_, number, parts(it)); }

// Only in the first fit of a picture: what was moved last has to settle.
bool Schedule::moves(int it) const {
  if (rate_ < 1.0f) return false;
  const int length = open_ended() ? std::min(num_iters_, kOpenGrowth) : num_iters_;
  for (int part = 0; part < options_.move_steps; ++part) {
    if (it == std::min(static_cast<int>(move_time(options_, part) * static_cast<float>(length)), length - 1)) return true;
  }
  return false;
}

bool Schedule::measures(int it) const {
  const bool wanted = options_.target_psnr > 0.0f || (options_.plateau > 0.0f && ending_ < 0);
  return wanted && it % kMeasureEvery == 0;
}

bool Schedule::done(int it, double squared) {
  const double psnr = static_cast<double>(psnr_of(squared, 3.0 * height_ * width_));
  seen_.push_back(psnr);
  if (options_.target_psnr > 0.0f) {
    const double gap = std::min(static_cast<double>(options_.target_psnr) + kMargin, kExact) - psnr;
    if (gap <= 0.0) return true;
    near_ = std::clamp(gap / kNear, 0.5, 1.0);
    expect(it, gap);
  }
  if (options_.plateau > 0.0f && ending_ < 0 && it >= resting_ + kPlateauIters) {
    const double then = seen_[seen_.size() - 1 - kPlateauIters / kMeasureEvery];
    if (psnr - then < static_cast<double>(options_.plateau)) settle(it);
  }
  return false;
}

// The iterations double per `gain` dB, or rather more slowly: the end is expected at it * 4^(gap / gain).
void Schedule::expect(int it, double gap) {
  const double gain = seen_.back() - seen_[seen_.size() / 2];
  const int added = parts(it);
  if (it < kFirstGrowth || added >= options_.grow_steps) return;
  const double share = static_cast<double>(growth_time(options_, added));
  if (gap * 2.0 <= gain * -std::log2(share)) parts_ = added + 1;
}

// Little is gained any more: more Gaussians, or the end where all are there.
void Schedule::settle(int it) {
  resting_ = it;
  if (parts(it) < options_.grow_steps) {
    parts_ = parts(it) + 1;
    return;
  }
  ending_ = it;
  end_ = std::min(end_, it + std::max(8, it / 4));
}

double Schedule::cosine(double phase) const {
  const double final = static_cast<double>(options_.lr_final);
  return final + (1.0 - final) * 0.5 * (1.0 + std::cos(3.14159265358979 * phase));
}

double Schedule::share(int it) const {
  const int now = ending_ < 0 ? it : ending_;
  double share = cosine(num_iters_ > 1 ? static_cast<double>(now) / (num_iters_ - 1) : 0.0);
  if (open_ended()) {
    share *= near_ * std::sqrt(std::min(1.0, steady_iters(options_.optimizer) / (now + 1)));
  }
  if (ending_ >= 0) share *= cosine(static_cast<double>(it - ending_ + 1) / (end_ - ending_));
  return share;
}

StepSettings Schedule::settings(int it) const {
  return settings_of(options_, height_, width_, it, rate_ * static_cast<float>(share(it)));
}

}  // namespace splat2d
