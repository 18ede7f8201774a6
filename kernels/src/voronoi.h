// The nearest centre of every pixel, a tile of pixels at a time.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "memory.h"

namespace splat2d {

// Centres in square bins, about two a bin. The centres must outlive it.
class Voronoi {
 public:
  Voronoi(int height, int width, const Vector<float>& x, const Vector<float>& y)
      : height_(height), width_(width), x_(x), y_(y) {
    const double n = static_cast<double>(x.size());
    size_ = static_cast<float>(std::max(1.0, std::sqrt(2.0 * height * width / n)));
    columns_ = static_cast<int>(static_cast<float>(width) / size_) + 1;
    rows_ = static_cast<int>(static_cast<float>(height) / size_) + 1;
    start_.assign(static_cast<std::size_t>(columns_) * static_cast<std::size_t>(rows_) + 1, 0);
    for (std::size_t i = 0; i < x.size(); ++i) ++start_[bin(i) + 1];
    for (std::size_t b = 1; b < start_.size(); ++b) start_[b] += start_[b - 1];
    members_.resize(x.size());
    // start_[b] runs ahead to the end of bin b while it is filled in, and is set back below.
    for (std::size_t i = 0; i < x.size(); ++i) {
      members_[static_cast<std::size_t>(start_[bin(i)]++)] = static_cast<std::int32_t>(i);
    }
    for (std::size_t b = start_.size() - 1; b > 0; --b) start_[b] = start_[b - 1];
    start_[0] = 0;
  }

  static constexpr int kTile = 8;

  // body(x, y, centre) for every pixel, in rows of tiles of kTile by kTile pixels; of equally near centres the first
  // one met, the same on every machine.
  template <class Body>
  void for_each_pixel(const Body& body) {
    for (int top = 0; top < height_; top += kTile) {
      for (int left = 0; left < width_; left += kTile) {
        find_candidates(left, top);
        for (int y = top; y < std::min(top + kTile, height_); ++y) {
          std::int32_t nearest[kTile];
          search_row(static_cast<float>(left), static_cast<float>(y), nearest);
          for (int x = left; x < std::min(left + kTile, width_); ++x) body(x, y, nearest[x - left]);
        }
      }
    }
  }

 private:
  // With d the distance from the tile's middle to its nearest centre and r to its corners, every pixel of the tile has
  // a centre within d + r, and that one is within d + 2 r of the middle.
  void find_candidates(int left, int top) {
    const float half = 0.5f * static_cast<float>(kTile - 1), radius = half * 1.41421356f;
    const float x = static_cast<float>(left) + half, y = static_cast<float>(top) + half;
    const float limit = nearest_distance(x, y) + 2.0f * radius + 0.01f;
    candidates_.clear();
    for (int by = row(y - limit); by <= row(y + limit); ++by) {
      const std::size_t line = static_cast<std::size_t>(by) * static_cast<std::size_t>(columns_);
      const std::size_t first = line + static_cast<std::size_t>(column(x - limit));
      const std::size_t last = line + static_cast<std::size_t>(column(x + limit));
      for (std::int32_t k = start_[first]; k < start_[last + 1]; ++k) {
        const std::int32_t i = members_[static_cast<std::size_t>(k)];
        const std::size_t at = static_cast<std::size_t>(i);
        if (squared(at, x, y) <= limit * limit) candidates_.push_back({x_[at], y_[at], i});
      }
    }
  }

  // Searches outwards in rings of bins.
  float nearest_distance(float x, float y) const {
    const int cx = column(x), cy = row(y);
    float distance = 1e30f;
    for (int ring = 0; ring <= std::max(columns_, rows_); ++ring) {
      const float margin = static_cast<float>(ring - 1) * size_;
      if (margin > 0.0f && margin * margin > distance) break;
      for (int by = std::max(cy - ring, 0); by <= std::min(cy + ring, rows_ - 1); ++by) {
        const bool edge = by == cy - ring || by == cy + ring;
        for (int bx = cx - ring; bx <= cx + ring; bx += edge || ring == 0 ? 1 : 2 * ring) {
          if (bx < 0 || bx >= columns_) continue;
          const std::size_t b = static_cast<std::size_t>(by) * static_cast<std::size_t>(columns_) +
                                static_cast<std::size_t>(bx);
          for (std::int32_t k = start_[b]; k < start_[b + 1]; ++k) {
            const std::size_t i = static_cast<std::size_t>(members_[static_cast<std::size_t>(k)]);
            distance = std::min(distance, squared(i, x, y));
          }
        }
      }
    }
    return std::sqrt(distance);
  }

  void search_row(float left, float y, std::int32_t (&nearest)[kTile]) const {
    float distance[kTile];
    for (int j = 0; j < kTile; ++j) distance[j] = 1e30f, nearest[j] = 0;
    for (const Candidate& c : candidates_) {
      const float dx = c.x - left, dy = c.y - y, dy2 = dy * dy;
      for (int j = 0; j < kTile; ++j) {
        const float d = (dx - static_cast<float>(j)) * (dx - static_cast<float>(j)) + dy2;
        const bool closer = d < distance[j];
        distance[j] = closer ? d : distance[j];
        nearest[j] = closer ? c.index : nearest[j];
      }
    }
  }

  int column(float x) const { return std::clamp(static_cast<int>(x / size_), 0, columns_ - 1); }
  int row(float y) const { return std::clamp(static_cast<int>(y / size_), 0, rows_ - 1); }
  std::size_t bin(std::size_t i) const {
    return static_cast<std::size_t>(row(y_[i])) * static_cast<std::size_t>(columns_) +
           static_cast<std::size_t>(column(x_[i]));
  }
  float squared(std::size_t i, float x, float y) const {
    return (x_[i] - x) * (x_[i] - x) + (y_[i] - y) * (y_[i] - y);
  }

  struct Candidate {
    float x, y;
    std::int32_t index;
  };

  int height_, width_;
  const Vector<float>&x_, &y_;
  float size_ = 1.0f;
  int columns_ = 1, rows_ = 1;
  Vector<std::int32_t> start_, members_;
  Vector<Candidate> candidates_;
};

}  // namespace splat2d
