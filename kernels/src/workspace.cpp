#include "workspace.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace splat2d {

Canvas::Canvas(const Engine& chosen, int height, int width, int capacity) : engine(chosen) {
  w.height = height;
  w.width = width;
  w.lanes = engine.lanes;
  w.strips = (width + w.lanes - 1) / w.lanes;
  w.bands = (height + kBandRows - 1) / kBandRows;
  w.band_rows = (height + w.bands - 1) / w.bands;
  const std::size_t padded = (static_cast<std::size_t>(capacity) + kMaxLanes - 1) / kMaxLanes * kMaxLanes;
  param_.resize(8 * padded);
  adam_m_.resize(8 * padded);
  adam_v_.resize(8 * padded);
  moments_.resize(8 * padded);
  packed_.resize(padded);
  bounds_.resize(padded);
  order_.resize(padded);
  w.saved_starts = static_cast<int>(std::min<std::size_t>(padded / 4 + kStartBlock, kSavedStarts));  // a strip's share
  starts_.resize(static_cast<std::size_t>(w.saved_starts + kStartBlock) * kStartBytes);
  strip_start_.resize(static_cast<std::size_t>(w.bands) * (static_cast<std::size_t>(w.strips) + 1) + 1);
  strip_.resize(static_cast<std::size_t>(w.band_rows) * 3 * w.lanes);
  target_.resize(plane_size());
  for (std::size_t k = 0; k < 8; ++k) {
    w.param[k] = param_.data() + k * padded;
    w.adam_m[k] = adam_m_.data() + k * padded;
    w.adam_v[k] = adam_v_.data() + k * padded;
  }
  w.packed = packed_.data();
  w.bounds = bounds_.data();
  w.moments = moments_.data();
  w.order = order_.data();
  w.strip_start = strip_start_.data();
  w.strip = strip_.data();
  w.starts = starts_.data();
  w.owner = this;
  w.grow_entries = [](Workspace& space, std::size_t size) {
    Canvas& self = *static_cast<Canvas*>(space.owner);
    self.entries_.resize(size + size / 4 + kStartBlock);
    space.entries = self.entries_.data();
    space.entry_capacity = self.entries_.size() - kStartBlock;
  };
  w.grow_entries(w, padded * 2);
  w.target = target_.data();
  set_count(capacity);
}

std::size_t Canvas::plane_size() const {
  return static_cast<std::size_t>(w.strips) * static_cast<std::size_t>(w.height) * 3 * w.lanes;
}

float* Canvas::plane() {
  if (plane_.size() == 0) plane_.resize(plane_size());
  return plane_.data();
}

void Canvas::set_count(int count) {
  w.count = count;
  w.padded = (count + kMaxLanes - 1) / kMaxLanes * kMaxLanes;
  for (int i = 0; i < count; ++i) w.order[i] = i;
  pad_parameters();
}

void Canvas::pad_parameters() {
  for (int i = w.count; i < w.padded; ++i) {
    for (int k = 0; k < 8; ++k) w.param[k][i] = k == 2 || k == 4 ? 1.0f : 0.0f;
  }
}

void Canvas::clear_state() {
  std::fill_n(adam_m_.data(), adam_m_.size(), 0.0f);
  std::fill_n(adam_v_.data(), adam_v_.size(), 0.0f);
}

void Canvas::load_target(const std::uint8_t* image) {
  for (int s = 0; s < w.strips; ++s) {
    const int left = s * w.lanes, used = std::min(w.lanes, w.width - left);
    std::uint8_t* to = w.target + static_cast<std::size_t>(s) * w.height * 3 * w.lanes;
    for (int y = 0; y < w.height; ++y, to += 3 * w.lanes) {
      const std::uint8_t* from = image + (static_cast<std::size_t>(y) * w.width + left) * 3;
      for (int x = 0; x < used; ++x) {
        for (int k = 0; k < 3; ++k) to[k * w.lanes + x] = from[x * 3 + k];
      }
    }
  }
}

void Canvas::load_gradient(const float* picture) {
  w.gradient = plane();
  for (int s = 0; s < w.strips; ++s) {
    const int left = s * w.lanes, used = std::min(w.lanes, w.width - left);
    float* to = w.gradient + static_cast<std::size_t>(s) * w.height * 3 * w.lanes;
    for (int y = 0; y < w.height; ++y, to += 3 * w.lanes) {
      const float* from = picture + (static_cast<std::size_t>(y) * w.width + left) * 3;
      for (int x = 0; x < used; ++x) {
        for (int k = 0; k < 3; ++k) to[k * w.lanes + x] = from[x * 3 + k];
      }
    }
  }
}

void Canvas::unpack(const float* plane, float* picture) const {
  for (int s = 0; s < w.strips; ++s) {
    const int left = s * w.lanes, used = std::min(w.lanes, w.width - left);
    const float* from = plane + static_cast<std::size_t>(s) * w.height * 3 * w.lanes;
    for (int y = 0; y < w.height; ++y, from += 3 * w.lanes) {
      float* to = picture + (static_cast<std::size_t>(y) * w.width + left) * 3;
      for (int x = 0; x < used; ++x) {
        for (int k = 0; k < 3; ++k) to[x * 3 + k] = from[k * w.lanes + x];
      }
    }
  }
}

void Canvas::load_splats(const float* means, const float* cholesky, const float* colors) {
  w.cholesky = true;
  for (int i = 0; i < w.count; ++i) {
    for (int k = 0; k < 2; ++k) w.param[k][i] = means[i * 2 + k];
    for (int k = 0; k < 3; ++k) w.param[2 + k][i] = cholesky[i * 3 + k];
    for (int k = 0; k < 3; ++k) w.param[5 + k][i] = colors[i * 3 + k];
  }
  pad_parameters();
  sort_rows();
}

void Canvas::store_splats(float* means, float* cholesky, float* colors) const {
  for (int i = 0; i < w.count; ++i) {
    for (int k = 0; k < 2; ++k) means[i * 2 + k] = w.param[k][i];
    for (int k = 0; k < 3; ++k) colors[i * 3 + k] = w.param[5 + k][i];
    Cholesky l{w.param[2][i], w.param[3][i], w.param[4][i]};
    if (!w.cholesky) l = cholesky_of({l.l00, l.l10, l.l11});
    cholesky[i * 3] = l.l00;
    cholesky[i * 3 + 1] = l.l10;
    cholesky[i * 3 + 2] = l.l11;
  }
}

void Canvas::sort_rows() {
  const float last = static_cast<float>(w.height - 1);
  auto row = [&](int i) {
    const float y = w.param[1][i];
    return y > 0.0f ? static_cast<int>(std::min(y, last)) : 0;
  };
  buckets_.assign(static_cast<std::size_t>(w.height) + 1, 0);
  for (int i = 0; i < w.count; ++i) ++buckets_[static_cast<std::size_t>(row(i)) + 1];
  for (std::size_t y = 1; y < buckets_.size(); ++y) buckets_[y] += buckets_[y - 1];
  for (int i = 0; i < w.count; ++i) w.order[buckets_[static_cast<std::size_t>(row(i))]++] = i;
}

void Canvas::run(const Pass& pass) {
  engine.pack(w);
  engine.list(w);
  engine.run(w, pass);
}

float psnr_of(double squared_sum, double values) {
  return static_cast<float>(-10.0 * std::log10(std::max(squared_sum / values, 1e-10)));
}

}  // namespace splat2d
