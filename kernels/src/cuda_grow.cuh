// Growing, moving and pruning on the device: grow.h and prune.h.
#pragma once

#include "cuda_choose.cuh"
#include "cuda_tile.cuh"
#include "splat2d/growth.h"
#include "splat2d/score.h"

namespace splat2d {

// Growing and moving place new Gaussians where the residual is largest. The first kernel of either says how many
// (`placing`) and where they go (`chosen`, in d.out, which is free until the end); the other three are shared.
__device__ inline int* chosen_of(const DeviceChunk& d, int picture) {
  return reinterpret_cast<int*>(d.out + parameter_row(d, picture, 0));
}

// wanted: [B], how many Gaussians each picture is to have. Doing it again changes nothing.
__global__ void __launch_bounds__(kBlock) plan_growth(DeviceChunk d, const int* wanted) {
  if (block_halted(d)) return;
  const int picture = static_cast<int>(blockIdx.x), thread = static_cast<int>(threadIdx.x), count = d.counts[picture];
  const int number = d.active[picture] != 0 ? max(0, wanted[picture] - count) : 0;
  for (int k = thread; k < number; k += kBlock) chosen_of(d, picture)[k] = count + k;
  __syncthreads();  // every thread has read the count
  if (thread == 0) {
    d.placing[picture] = number;
    d.counts[picture] = count + number;
  }
}

// The weakest `share` of the Gaussians turn black, to be placed anew; `iteration` is left in the chunk's control, so
// that it is not done again.
__global__ void __launch_bounds__(kBlock) plan_move(DeviceChunk d, float share, int iteration) {
  __shared__ int totals[kWarps];
  if (block_halted(d)) return;
  const int picture = static_cast<int>(blockIdx.x), thread = static_cast<int>(threadIdx.x), count = d.counts[picture];
  const int number = d.active[picture] != 0 ? static_cast<int>(share * static_cast<float>(count)) : 0;
  if (thread == 0) {
    d.placing[picture] = number;
    if (picture == 0) d.control->moved = iteration + 1;
  }
  if (number <= 0) return;
  const std::size_t n = static_cast<std::size_t>(d.num_gaussians), base = parameter_row(d, picture, 0);
  float* weakness = d.out + base + n;
  DeviceGaussian* gaussians = d.gaussians + static_cast<std::size_t>(picture) * n;
  for (int i = thread; i < count; i += kBlock) {
    const DeviceGaussian g = gaussians[i];
    weakness[i] = -(g.red * g.red + g.green * g.green + g.blue * g.blue) / (g.a * g.c);
  }  // below, too, a thread reads only what it wrote itself: no barrier
  const Choice choice = largest(weakness, count, number, totals);
  int equal = 0, found = 0;
  for (int first = 0; first < count; first += kBlock) {
    const int i = first + thread;
    const unsigned order = i < count ? order_of(weakness[i]) : 0;
    const bool same = i < count && order == choice.least;
    const Rank among_equal = rank_of(same, totals);
    const bool weak = i < count && (order > choice.least || (same && equal + among_equal.before < choice.equal));
    const Rank rank = rank_of(weak, totals);
    if (weak) {
      chosen_of(d, picture)[found + rank.before] = i;
      for (int k = 5; k < kParameters; ++k) d.param[base + k * n + i] = 0.0f;
      gaussians[i].red = gaussians[i].green = gaussians[i].blue = 0.0f;
    }
    equal += among_equal.total;
    found += rank.total;
  }
}

struct Cells {
  int side, columns, count;
};

__device__ inline Cells cells_of(const DeviceChunk& d, int number) {
  const int side = growth_cell(static_cast<float>(d.height) * static_cast<float>(d.width), static_cast<float>(number));
  const int columns = (d.width + side - 1) / side;
  return {side, columns, columns * ((d.height + side - 1) / side)};
}

// The squared residual of every pixel. The lists must be good; new Gaussians are in none.
__global__ void __launch_bounds__(kBlock) draw_errors(DeviceChunk d) {
  __shared__ DeviceGaussian gaussians[kBlock];
  __shared__ unsigned boxes[kBlock];
  __shared__ int slots[kBlock];
  if (block_halted(d) || d.placing[blockIdx.y] <= 0) return;
  const Tile t = tile_here(d);
  Sums sums[2];
  forward(d, t, {gaussians, boxes, slots}, sums);
  const Patch patch = patch_here();
  for (int p = 0; p < 2; ++p) {
    const int x = patch.x + 8 * p, y = patch.y;
    if (t.left + x >= d.width || t.top + y >= d.height) continue;
    const std::size_t pixel = (static_cast<std::size_t>(t.picture) * d.height + t.top + y) * d.width + t.left + x;
    d.pixel_errors[pixel] = squared(residual_at(d, t, x, y, sums[p]));
  }
}

// Their sums over cells, a thread each.
__global__ void __launch_bounds__(kBlock) sum_cells(DeviceChunk d) {
  const int picture = static_cast<int>(blockIdx.y), cell = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  const int number = d.placing[picture];
  if (halted(d) || number <= 0) return;
  const Cells cells = cells_of(d, number);
  if (cell >= cells.count) return;
  const int left = cell % cells.columns * cells.side, top = cell / cells.columns * cells.side;
  const int right = min(left + cells.side, d.width), bottom = min(top + cells.side, d.height);
  CellError error{0.0f, 0.0f, 0.0f};
  for (int y = top; y < bottom; ++y) {
    const float* row = d.pixel_errors + (static_cast<std::size_t>(picture) * d.height + y) * d.width;
    for (int x = left; x < right; ++x) {
      error.sum += row[x];
      error.x += row[x] * static_cast<float>(x - left);
      error.y += row[x] * static_cast<float>(y - top);
    }
  }
  float* to = d.cells + static_cast<std::size_t>(picture) * 3 * d.cell_capacity + cell;
  to[0] = error.sum;
  to[d.cell_capacity] = error.x;
  to[2 * static_cast<std::size_t>(d.cell_capacity)] = error.y;
}

// A Gaussian in each of the cells with the largest errors.
__global__ void __launch_bounds__(kBlock) place_seeds(DeviceChunk d, float scale_min) {
  __shared__ int totals[kWarps];
  const int picture = static_cast<int>(blockIdx.x), thread = static_cast<int>(threadIdx.x);
  const int number = d.placing[picture];
  if (block_halted(d) || number <= 0) return;
  const Cells cells = cells_of(d, number);
  const float* sums = d.cells + static_cast<std::size_t>(picture) * 3 * d.cell_capacity;
  const Choice choice = largest(sums, cells.count, number, totals);
  const std::size_t n = static_cast<std::size_t>(d.num_gaussians), base = parameter_row(d, picture, 0);
  int equal = 0, added = 0;
  for (int first = 0; first < cells.count; first += kBlock) {
    const int cell = first + thread;
    const unsigned order = cell < cells.count ? order_of(sums[cell]) : 0;
    const bool same = cell < cells.count && order == choice.least;
    const Rank among_equal = rank_of(same, totals);
    const bool chosen =
        cell < cells.count && (order > choice.least || (same && equal + among_equal.before < choice.equal));
    const Rank rank = rank_of(chosen, totals);
    if (chosen) {
      const CellError error{sums[cell], sums[d.cell_capacity + cell],
                            sums[2 * static_cast<std::size_t>(d.cell_capacity) + cell]};
      const int left = cell % cells.columns * cells.side, top = cell / cells.columns * cells.side;
      const Seed seed = seed_of(error, cells.side, static_cast<float>(left), static_cast<float>(top),
                                static_cast<float>(min(left + cells.side, d.width) - 1),
                                static_cast<float>(min(top + cells.side, d.height) - 1), scale_min);
      const float size = d.adam ? seed.sigma : 1.0f / seed.sigma;
      const float values[kParameters] = {seed.x, seed.y, size, 0.0f, size, 0.0f, 0.0f, 0.0f};
      const std::size_t at = static_cast<std::size_t>(chosen_of(d, picture)[added + rank.before]);
      for (int k = 0; k < kParameters; ++k) {
        d.param[base + k * n + at] = values[k];
        d.adam_m[base + k * n + at] = d.adam_v[base + k * n + at] = 0.0f;
      }
      const float factor = 1.0f / seed.sigma;
      d.gaussians[static_cast<std::size_t>(picture) * n + at] = {seed.x, seed.y, factor, 0.0f, factor, 0.0f, 0.0f, 0.0f};
    }
    equal += among_equal.total;
    added += rank.total;
  }
  if (thread == 0) d.dirty[picture] = 1;
}

// Pruning, first: each Gaussian's score, into the first row of adam_m. Scores by loss need the moments of a pass.
__global__ void __launch_bounds__(kUpdateBlock) score(DeviceChunk d, bool by_loss) {
  const int picture = static_cast<int>(blockIdx.y), i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (halted(d) || i >= d.counts[picture]) return;
  const std::size_t row = static_cast<std::size_t>(picture) * d.num_gaussians;
  const DeviceGaussian g = d.gaussians[row + i];
  float& to = d.adam_m[parameter_row(d, picture, 0) + i];
  if (!by_loss) {
    to = luminance_score(g.red, g.green, g.blue);
    return;
  }
  const Listed l = d.listed[row + i];
  const float* partial = d.partial + (static_cast<std::size_t>(picture) * static_cast<std::size_t>(d.slot_capacity) +
                                      static_cast<std::size_t>(l.start)) * 8;
  float moments[3] = {0.0f, 0.0f, 0.0f};
  const int slots = slots_of(l);
  for (int s = 0; s < slots; ++s) {
    for (int k = 0; k < 3; ++k) moments[k] += partial[s * 8 + k];
  }
  const double norm = squared_norm(g.x, g.y, {g.a, g.b, g.c}, d.height, d.width);
  to = loss_score(g.red, g.green, g.blue, moments, norm, static_cast<double>(d.height) * d.width);
}

// Second: drops Gaussians under the threshold (0: none), then the worst until `most` are left (0: all), the later ones
// of equal ones first; the others keep their order. Where `refit` and some but not all were dropped, the picture is
// made ready to be fitted again, otherwise it rests.
__global__ void __launch_bounds__(kBlock) prune_kernel(DeviceChunk d, float threshold, int most, bool refit) {
  __shared__ int totals[kWarps];
  if (block_halted(d)) return;
  const int picture = static_cast<int>(blockIdx.x), thread = static_cast<int>(threadIdx.x), count = d.counts[picture];
  const std::size_t n = static_cast<std::size_t>(d.num_gaussians), base = parameter_row(d, picture, 0);
  const float* scores = d.adam_m + base;
  // Those under the threshold score less than all others: what is chosen among all is chosen among the others.
  Choice choice{0, count};
  if (most > 0 && most < count) choice = largest(scores, count, most, totals);
  int kept = 0, equal = 0;
  for (int first = 0; first < count; first += kBlock) {
    const int i = first + thread;
    float values[kParameters] = {};
    bool keep = false;
    unsigned order = 0;
    if (i < count) {
      for (int k = 0; k < kParameters; ++k) values[k] = d.param[base + k * n + i];
      order = order_of(scores[i]);
      keep = threshold <= 0.0f || !(scores[i] < threshold);
    }
    const bool same = i < count && order == choice.least;
    const Rank among_equal = rank_of(same, totals);
    keep = keep && (order > choice.least || (same && equal + among_equal.before < choice.equal));
    const Rank rank = rank_of(keep, totals);  // its barriers: all of this round is read before any is overwritten
    const std::size_t to = static_cast<std::size_t>(kept + rank.before);
    if (keep) {
      for (int k = 0; k < kParameters; ++k) d.param[base + k * n + to] = values[k];
    }
    equal += among_equal.total;
    kept += rank.total;
  }
  __syncthreads();  // scores are read, parameters in place
  for (int i = thread; i < kParameters * d.num_gaussians; i += kBlock) d.adam_m[base + i] = d.adam_v[base + i] = 0.0f;
  for (int i = thread; i < kept; i += kBlock) {
    d.gaussians[static_cast<std::size_t>(picture) * n + i] = gaussian_of(load_parameters(d, picture, i), d.adam);
  }
  if (thread == 0) {
    d.counts[picture] = kept;
    d.active[picture] = refit && kept > 0 && kept < count;
    d.dirty[picture] = 1;
    if (picture == 0) d.control->pruned = 1;
  }
}

}  // namespace splat2d
