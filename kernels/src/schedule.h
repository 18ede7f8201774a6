// How long a fit runs and what each iteration steps with, on every device.
#pragma once

#include <vector>

#include "splat2d/fit.h"
#include "splat2d/update.h"

namespace splat2d {

// What iteration `it` of `num_iters` steps with where nothing but their number ends the run. `rate` scales the
// learning rates.
StepSettings settings_at(const FitOptions& options, int height, int width, int it, int num_iters, float rate);

// Largest standard deviation of a Gaussian, in pixels: 100 at 224 px; small pictures keep room for one that covers them.
float scale_max_of(int height, int width);

// Learning rates of a refit after pruning, as a share of the first ones.
constexpr float kRefitRate = 0.3f;

// Learning rates of a fit that starts from given Gaussians: near enough to them, far enough for what has moved.
constexpr float kWarmRate = 0.5f;

constexpr int kMeasureEvery = 2;   // iterations between looks at the squared error, where it decides anything
constexpr int kPlateauIters = 32;  // iterations over which a plateau is judged

// One run of iterations of one picture: the fit, or the refit after pruning.
//
//   for (int it = 0; it < schedule.end(); ++it) {
//     Gaussians are added until there are schedule.gaussians(number, it), or move where schedule.moves(it) (grow.h)
//     the gradient of iteration `it`, with the squared error where schedule.measures(it)
//     if (schedule.measures(it) && schedule.done(it, squared error)) break;
//     the step with schedule.settings(it)
//   }
//
// The rates fall along a cosine to options.lr_final at the last iteration, and Gaussians are added at shares of the
// iterations. Under a target nobody knows which iteration is the last. The rates then fall with the root of the
// iterations done as well, and once more in the last half dB; Gaussians are added at those shares of the length that
// the gains of the last half of the iterations let expect. Where a plateau is seen, the next part of the Gaussians is
// added; where all are there, the end is near: the rates fall to lr_final within a quarter of the iterations done.
class Schedule {
 public:
  Schedule(const FitOptions& options, int height, int width, int num_iters, float rate);
  int end() const { return end_; }
  bool moves(int it) const;  // whether the weakest Gaussians move before iteration `it`
  int gaussians(int number, int it) const;  // before iteration `it`, of `number` in the end
  bool measures(int it) const;  // whether the squared error of iteration `it` decides anything
  bool done(int it, double squared);
  StepSettings settings(int it) const;

 private:
  bool open_ended() const;      // whether anything but the number of iterations can end the run
  int parts(int it) const;      // of the Gaussians, added so far
  void expect(int it, double gap);
  void settle(int it);
  double share(int it) const;   // of the recipe's rates
  double cosine(double phase) const;

  const FitOptions& options_;
  int height_, width_, num_iters_, end_;
  float rate_;
  double near_ = 1.0;           // falls to a half where the target is near
  int parts_ = 0;               // of the Gaussians, added before their time
  int resting_ = 0;             // the iteration from which a plateau is looked for
  int ending_ = -1;             // the iteration at which the last one was seen
  std::vector<double> seen_;    // dB measured so far
};

}  // namespace splat2d
