// How long a fit runs and what each iteration steps with, on every device.
#pragma once

#include "splat2d/fit.h"
#include "splat2d/update.h"

namespace splat2d {

// What iteration `it` of `num_iters` steps with. `rate` scales the learning rates.
StepSettings settings_at(const FitOptions& options, int height, int width, int it, int num_iters, float rate);

// Learning rates of a refit after pruning, as a share of the first ones.
constexpr float kRefitRate = 0.3f;

// One run of iterations of one picture: the fit, or the refit after pruning.
//
//   for (int it = 0; it < schedule.end(); ++it) {
//     the gradient of iteration `it`, with the squared error where schedule.measures(it)
//     if (schedule.measures(it) && schedule.done(it, squared error)) break;
//     the step with schedule.settings(it)
//   }
class Schedule {
 public:
  Schedule(const FitOptions& options, int height, int width, int num_iters, float rate);
  int end() const { return end_; }  // iterations; may shrink after done()
  bool measures(int it) const;      // whether the squared error of iteration `it` decides anything
  bool done(int it, double squared);
  StepSettings settings(int it) const;

 private:
  const FitOptions& options_;
  int height_, width_, end_;
  float rate_;
};

}  // namespace splat2d
