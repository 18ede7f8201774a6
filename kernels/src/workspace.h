// Memory of one worker thread, and the way in and out of the kernels' layout.
#pragma once

#include <cstdint>

#include "engine.h"
#include "memory.h"
#include "splat2d/fit.h"
#include "splat2d/update.h"

namespace splat2d {

// A Workspace and what it points to. Holds one picture at a time.
class Canvas {
 public:
  Canvas(const Engine& engine, int height, int width, int capacity);
  Canvas(const Canvas&) = delete;
  Canvas& operator=(const Canvas&) = delete;

  Workspace w{};
  const Engine& engine;

  void set_count(int count);            // Gaussians in use; the padding is made harmless
  void clear_state();                   // Adam's running means
  void load_target(const std::uint8_t* image);
  void load_gradient(const float* picture);  // into the plane
  void load_splats(const float* means, const float* cholesky, const float* colors);
  void store_splats(float* means, float* cholesky, float* colors) const;
  void sort_rows();                     // order by row
  void run(const Pass& pass);           // pack, list, run
  float* plane();                       // a scratch plane, allocated on first use
  void unpack(const float* plane, float* picture) const;
  void pad_parameters();                // copies of a harmless Gaussian behind the last one

 private:
  std::size_t plane_size() const;
  Aligned<float> param_, adam_m_, adam_v_, moments_, strip_, plane_;
  Aligned<std::uint8_t> target_;
  Aligned<char> starts_;
  Aligned<Packed> packed_;
  Aligned<Bounds> bounds_;
  Aligned<std::int32_t> order_, strip_start_;
  Aligned<Entry> entries_;
  Vector<std::int32_t> buckets_;
};

// PSNR in dB of a squared error summed over all values of pictures in [0, 1]; at most 100.
float psnr_of(double squared_sum, double values);

}  // namespace splat2d
