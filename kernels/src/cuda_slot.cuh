// Slot's work, in the source file that holds the kernels.
#pragma once

#include <cmath>
#include <cstring>
#include <limits>

#include "cuda_grow.cuh"
#include "cuda_lists.cuh"
#include "cuda_slot.h"
#include "cuda_tile.cuh"
#include "cuda_update.cuh"
#include "grow.h"

namespace splat2d {

constexpr int kGraphIterations = 16;

namespace {

int blocks(int count, int size) { return (count + size - 1) / size; }

int tiles_across(int width) { return blocks(width, kTileWidth); }

int tiles_of_picture(int height, int width) { return tiles_across(width) * blocks(height, kTileHeight); }

// The most cells that growth looks at in one picture: those of the largest number of
// Gaussians placed at once.
int most_cells(const Job& job) {
  const FitOptions& o = job.options;
  const auto [batch, height, width] = job.input.shape;
  if (job.input.start) return 0;  // nothing is added or moves
  const int n = job.input.num_gaussians, added = n - growth_count(o, n, 0);
  const int most = std::max(added, o.move_steps > 0 ? static_cast<int>(o.move_share * static_cast<float>(n)) : 0);
  if (most <= 0) return 0;
  const int side = growth_cell(static_cast<float>(height) * static_cast<float>(width), static_cast<float>(most));
  return blocks(width, side) * blocks(height, side);
}

dim3 grid(int x, int y = 1) { return dim3(static_cast<unsigned>(x), static_cast<unsigned>(y)); }

}  // namespace

ListRoom first_room(int num_gaussians, int height, int width) {
  // Six standard deviations of .45 cells, and half as much again for stretched and overlapping ones.
  const double across = 4.0 * std::sqrt(static_cast<double>(height) * width / num_gaussians) + 2.0 * kMargin;
  const double tiles = tiles_of_picture(height, width);
  const double each = std::min(tiles, (across / kTileWidth + 1.0) * (across / kTileHeight + 1.0));
  const double slots = num_gaussians * each, list = 3.0 * slots / tiles + 64.0;
  return {static_cast<long long>(slots) + 64, static_cast<int>(std::min<double>(list, num_gaussians))};
}

std::size_t bytes_each(const Job& job, const ListRoom& room) {
  const auto [batch, height, width] = job.input.shape;
  const std::size_t tiles = static_cast<std::size_t>(tiles_of_picture(height, width));
  const std::size_t gaussian = 4 * kParameters * sizeof(float) + sizeof(DeviceGaussian) + sizeof(Listed);
  const std::size_t cells = static_cast<std::size_t>(most_cells(job));
  const std::size_t pixels = static_cast<std::size_t>(height) * width;
  return pixels * (cells > 0 ? 7 : 3) + cells * 12 + static_cast<std::size_t>(job.input.num_gaussians) * gaussian +
         static_cast<std::size_t>(room.slots) * 8 * sizeof(float) +
         tiles * (static_cast<std::size_t>(room.list) * sizeof(TileEntry) + sizeof(int) + sizeof(float)) + 32;
}

std::size_t pinned_bytes_each(const Job& job) {
  const std::size_t pixels = static_cast<std::size_t>(job.input.shape.height) * job.input.shape.width;
  return pixels * 3 + 2 * kParameters * sizeof(float) * static_cast<std::size_t>(job.input.num_gaussians);
}

Slot::Slot(const Job& job, const DeviceArray<StepSettings>& settings, int capacity, const ListRoom& room)
    : job_(job),
      n_(static_cast<std::size_t>(job.input.num_gaussians)),
      pixels_(static_cast<std::size_t>(job.input.shape.height) * job.input.shape.width),
      tiles_(tiles_of_picture(job.input.shape.height, job.input.shape.width)),
      cells_each_(most_cells(job)),
      room_(room),
      capacity_(capacity),
      images_(capacity * pixels_ * 3),
      param_(capacity * n_ * kParameters),
      adam_m_(capacity * n_ * kParameters),
      adam_v_(capacity * n_ * kParameters),
      out_(capacity * n_ * kParameters),
      tile_errors_(static_cast<std::size_t>(capacity) * tiles_),
      partial_(static_cast<std::size_t>(capacity) * static_cast<std::size_t>(room.slots) * 8),
      pixel_errors_(cells_each_ > 0 ? capacity * pixels_ : 0),
      cells_(static_cast<std::size_t>(capacity) * 3 * cells_each_),
      gaussians_(capacity * n_),
      listed_(capacity * n_),
      dirty_(static_cast<std::size_t>(capacity)),
      active_(static_cast<std::size_t>(capacity)),
      counts_(static_cast<std::size_t>(capacity)),
      placing_(static_cast<std::size_t>(capacity)),
      tile_counts_(static_cast<std::size_t>(capacity) * tiles_),
      wanted_(static_cast<std::size_t>(capacity) * (job.options.grow_steps + 1)),
      entries_(static_cast<std::size_t>(capacity) * tiles_ * room.list),
      errors_(static_cast<std::size_t>(capacity)),
      control_(1),
      host_images_(capacity * pixels_ * 3),
      host_param_(capacity * n_ * kParameters),
      host_out_(capacity * n_ * kParameters),
      host_counts_(static_cast<std::size_t>(capacity)),
      host_kept_(static_cast<std::size_t>(capacity)),
      host_wanted_(static_cast<std::size_t>(capacity) * (job.options.grow_steps + 1)),
      host_stop_(1),
      host_errors_(static_cast<std::size_t>(capacity)),
      host_control_(1),
      schedule_(job.options, job.input.shape.height, job.input.shape.width, job.options.num_iters,
                job.input.start ? kWarmRate : 1.0f) {
  chunk_.settings = settings.data();
  bind();
}

void Slot::bind() {
  const PictureShape shape = job_.input.shape;
  chunk_.images = images_.data();
  chunk_.param = param_.data();
  chunk_.adam_m = adam_m_.data();
  chunk_.adam_v = adam_v_.data();
  chunk_.gaussians = gaussians_.data();
  chunk_.listed = listed_.data();
  chunk_.dirty = dirty_.data();
  chunk_.active = active_.data();
  chunk_.placing = placing_.data();
  chunk_.counts = counts_.data();
  chunk_.entries = entries_.data();
  chunk_.tile_counts = tile_counts_.data();
  chunk_.partial = partial_.data();
  chunk_.tile_errors = tile_errors_.data();
  chunk_.errors = errors_.data();
  chunk_.pixel_errors = pixel_errors_.data();
  chunk_.cells = cells_.data();
  chunk_.cell_capacity = cells_each_;
  chunk_.out = out_.data();
  chunk_.control = control_.data();
  chunk_.slot_capacity = room_.slots;
  chunk_.list_capacity = room_.list;
  chunk_.num_gaussians = job_.input.num_gaussians;
  chunk_.height = shape.height;
  chunk_.width = shape.width;
  chunk_.tiles_x = tiles_across(shape.width);
  chunk_.tiles = tiles_;
  chunk_.adam = job_.options.optimizer == Optimizer::adam;
  graph_.clear();
}

void Slot::stage(const Canvas& canvas, int index, const std::uint8_t* image) {
  const std::size_t at = static_cast<std::size_t>(index);
  std::memcpy(host_images_.data() + at * pixels_ * 3, image, pixels_ * 3);
  host_counts_[at] = canvas.w.count;
  for (std::size_t k = 0; k < kParameters; ++k) {
    float* to = host_param_.data() + (at * kParameters + k) * n_;
    std::fill(std::copy_n(canvas.w.param[k], canvas.w.count, to), to + n_, 0.0f);
  }
}

dim3 Slot::over_gaussians() const { return grid(blocks(job_.input.num_gaussians, kUpdateBlock), batch_); }

void Slot::build_lists() {
  SPLAT2D_LAUNCH(place, grid(batch_), dim3(kBlock), stream_.get(), chunk_);
  SPLAT2D_LAUNCH(list, grid(blocks(tiles_, kWarps), batch_), dim3(kBlock), stream_.get(), chunk_);
}

void Slot::iteration() {
  build_lists();
  SPLAT2D_LAUNCH(fit_tile, grid(tiles_, batch_), dim3(kBlock), stream_.get(), chunk_, true);
  SPLAT2D_LAUNCH(update, over_gaussians(), dim3(kUpdateBlock), stream_.get(), chunk_);
}

void Slot::iterate(int count) {
  if (count >= kGraphIterations && (!graph_.recorded() || graph_batch_ != batch_)) {
    graph_.record(stream_, [this] {
      for (int i = 0; i < kGraphIterations; ++i) iteration();
    });
    graph_batch_ = batch_;
  }
  for (; count >= kGraphIterations; count -= kGraphIterations) graph_.launch(stream_);
  for (; count > 0; --count) iteration();
}

// Brings every picture to the number of Gaussians that it has after `parts` of the growth.
void Slot::grow(int parts) {
  const int* wanted = wanted_.data() + static_cast<std::size_t>(parts) * static_cast<std::size_t>(capacity_);
  build_lists();
  SPLAT2D_LAUNCH(plan_growth, grid(batch_), dim3(kBlock), stream_.get(), chunk_, wanted);
  place_chosen();
}

void Slot::move(int it) {
  build_lists();
  SPLAT2D_LAUNCH(plan_move, grid(batch_), dim3(kBlock), stream_.get(), chunk_, job_.options.move_share, it);
  place_chosen();
}

void Slot::place_chosen() {
  SPLAT2D_LAUNCH(draw_errors, grid(tiles_, batch_), dim3(kBlock), stream_.get(), chunk_);
  SPLAT2D_LAUNCH(sum_cells, grid(blocks(cells_each_, kBlock), batch_), dim3(kBlock), stream_.get(), chunk_);
  SPLAT2D_LAUNCH(place_seeds, grid(batch_), dim3(kBlock), stream_.get(), chunk_, job_.options.scale_min);
}

void Slot::prune_all() {
  const FitOptions& o = job_.options;
  const bool by_loss = o.prune_score == PruneScore::loss;
  if (by_loss) {
    build_lists();
    SPLAT2D_LAUNCH(fit_tile, grid(tiles_, batch_), dim3(kBlock), stream_.get(), chunk_, false);
  }
  SPLAT2D_LAUNCH(score, over_gaussians(), dim3(kUpdateBlock), stream_.get(), chunk_, by_loss);
  SPLAT2D_LAUNCH(prune_kernel, grid(batch_), dim3(kBlock), stream_.get(), chunk_, o.prune_threshold, o.prune_to,
                 o.refit_iters > 0);
}

// All that is left to do after what `done` says is done.
void Slot::enqueue(const Control& done) {
  const FitOptions& o = job_.options;
  const auto parts = [&](int it) { return cells_each_ > 0 ? growth_parts(o, o.num_iters, it) : 0; };
  int from = done.iteration;
  while (from < o.num_iters) {
    if (from > 0 && parts(from) > 0) grow(parts(from));
    if (cells_each_ > 0 && schedule_.moves(from) && done.moved != from + 1) move(from);
    int to = from + 1;
    while (to < o.num_iters && parts(to) == parts(to - 1) && !schedule_.moves(to)) ++to;
    iterate(to - from);
    from = to;
  }
  if (prunes(o) && done.pruned == 0) prune_all();
  iterate(job_.iterations() - from);
  SPLAT2D_LAUNCH(hand_out, over_gaussians(), dim3(kUpdateBlock), stream_.get(), chunk_);
  build_lists();
  SPLAT2D_LAUNCH(measure_tile, grid(tiles_, batch_), dim3(kBlock), stream_.get(), chunk_);
  SPLAT2D_LAUNCH(sum_errors, grid(blocks(batch_, kWarp)), dim3(kWarp), stream_.get(), chunk_, batch_);
  check(cudaGetLastError(), "kernel launch");
  const std::size_t batch = static_cast<std::size_t>(batch_);
  control_.download(host_control_.data(), 1, stream_);
  out_.download(host_out_.data(), batch * n_ * kParameters, stream_);
  counts_.download(host_kept_.data(), batch, stream_);
  errors_.download(host_errors_.data(), batch, stream_);
}

void Slot::begin(int first, int batch) {
  first_ = first;
  batch_ = batch;
  const std::size_t pictures = static_cast<std::size_t>(batch);
  control_.fill(0, stream_);
  stream_.wait();  // from here on a stop may be written through the other stream
  images_.upload(host_images_.data(), pictures * pixels_ * 3, stream_);
  param_.upload(host_param_.data(), pictures * n_ * kParameters, stream_);
  counts_.upload(host_counts_.data(), pictures, stream_);
  for (int parts = 0; parts <= job_.options.grow_steps; ++parts) {
    int* wanted = host_wanted_.data() + static_cast<std::size_t>(parts) * static_cast<std::size_t>(capacity_);
    for (int i = 0; i < batch; ++i) wanted[i] = growth_count(job_.options, job_.number(first + i), parts);
  }
  wanted_.upload(host_wanted_.data(), static_cast<std::size_t>(capacity_) * (job_.options.grow_steps + 1), stream_);
  adam_m_.fill(0, stream_);
  adam_v_.fill(0, stream_);
  dirty_.fill(1, stream_);  // any value but zero
  active_.fill(1, stream_);
  SPLAT2D_LAUNCH(pack, over_gaussians(), dim3(kUpdateBlock), stream_.get(), chunk_);
  enqueue(Control{});
}

bool Slot::collect(ListRoom& room) {
  stream_.wait();
  Control& control = host_control_[0];
  const bool short_slots = control.slots_needed > static_cast<unsigned long long>(room_.slots);
  const bool short_list = control.list_needed > room_.list;
  if (!short_slots && !short_list) {
    write_results();
    batch_ = 0;
    return true;
  }
  constexpr unsigned long long kMostSlots = std::numeric_limits<int>::max();
  if (control.slots_needed > kMostSlots) {
    throw std::runtime_error("CUDA: " + std::to_string(control.slots_needed) +
                             " pairs of a Gaussian and a tile in one picture; expected under 2^31: fit fewer Gaussians");
  }
  // The other slot may have met the same.
  if (short_slots) {
    const auto slots = std::min(kMostSlots, control.slots_needed + control.slots_needed / 4);
    room.slots = std::max(room.slots, static_cast<long long>(slots));
  }
  if (short_list) room.list = std::max(room.list, std::min(job_.input.num_gaussians, control.list_needed * 5 / 4));
  const std::size_t pictures = static_cast<std::size_t>(capacity_);
  if (room.slots > room_.slots) partial_.grow(pictures * static_cast<std::size_t>(room.slots) * 8);
  if (room.list > room_.list) entries_.grow(pictures * tiles_ * static_cast<std::size_t>(room.list));
  room_ = room;
  bind();
  control.slots_needed = 0;
  control.list_needed = 0;
  control_.upload(&control, 1, stream_);
  dirty_.fill(1, stream_);
  stream_.wait();  // `control` is about to be a copy's target again
  enqueue(Control{control});  // a copy: `control` is filled again; what was halted has not begun
  return false;
}

void Slot::write_results() {
  const FitOutput& out = job_.out;
  const double values = 3.0 * static_cast<double>(pixels_);
  for (int i = 0; i < batch_; ++i) {
    const std::size_t at = static_cast<std::size_t>(i), to = static_cast<std::size_t>(first_) + at;
    const float* from = host_out_.data() + at * kParameters * n_;
    std::copy_n(from, 2 * n_, out.means + to * 2 * n_);
    std::copy_n(from + 2 * n_, 3 * n_, out.cholesky + to * 3 * n_);
    std::copy_n(from + 5 * n_, 3 * n_, out.colors + to * 3 * n_);
    out.counts[to] = host_kept_[at];
    out.psnr[to] = psnr_of(host_errors_[at], values);
    const bool again = prunes(job_.options) && host_kept_[at] > 0 && host_kept_[at] < job_.number(first_ + i);
    if (out.iters) out.iters[to] = job_.options.num_iters + (again ? job_.options.refit_iters : 0);
  }
}

void Slot::stop() {
  if (!busy()) return;
  host_stop_[0] = 1;
  cudaMemcpyAsync(&control_.data()->stop, host_stop_.data(), sizeof(int), cudaMemcpyHostToDevice, side_.get());
  cudaStreamSynchronize(side_.get());
  cudaStreamSynchronize(stream_.get());
  batch_ = 0;
}

}  // namespace splat2d
