// One chunk of pictures on a device: its memory, its stream, and the work it is given.
#pragma once

#include <cstdint>
#include <vector>

#include "cuda_chunk.cuh"
#include "cuda_memory.h"
#include "grow.h"
#include "prune.h"
#include "schedule.h"
#include "splat2d/fit.h"
#include "workspace.h"

namespace splat2d {

// What is the same for all chunks of one call.
struct Job {
  const FitInput& input;
  const FitOptions& options;
  const FitOutput& out;
  int iterations() const { return options.num_iters + (prunes(options) ? options.refit_iters : 0); }
  int number(int picture) const { return input.counts ? input.counts[picture] : input.num_gaussians; }
  int first_number(int picture) const {
    return input.start ? number(picture)
                       : growth_count(options, number(picture), growth_parts(options, options.num_iters, 0));
  }
};

// Room for the lists of one picture; it only grows.
struct ListRoom {
  long long slots;  // pairs (Gaussian, tile) of a picture
  int list;         // Gaussians of a tile
};

// Enough for most pictures whose Gaussians cover theirs about as densely as the initialisations make them.
ListRoom first_room(int num_gaussians, int height, int width);

// Device memory of one picture, bytes.
std::size_t bytes_each(const Job& job, const ListRoom& room);

// Pinned host memory of one picture, bytes, without a few numbers.
std::size_t pinned_bytes_each(const Job& job);

class Slot {
 public:
  // Throws OutOfMemory.
  Slot(const Job& job, const DeviceArray<StepSettings>& settings, int capacity, const ListRoom& room);
  ~Slot() { stop(); }  // what is in the stream uses the memory that goes now

  // Picture `index` of the chunk as the host starts it; any thread. The slot must be idle.
  void stage(const Canvas& canvas, int index, const std::uint8_t* image);

  // Puts all of the chunk's work into the stream and returns: pictures first .. first + batch - 1 of the call.
  void begin(int first, int batch);

  bool busy() const { return batch_ > 0; }
  int first() const { return first_; }
  int batch() const { return batch_; }
  bool done() const { return stream_.done(); }

  // After done(). True: the results are written and the slot is idle. False: lists were too short; they were grown,
  // also in `room`, and the work goes on. Throws OutOfMemory.
  bool collect(ListRoom& room);

  // Ends the work early and waits for the device. A device that has failed is no error here.
  void stop();

 private:
  dim3 over_gaussians() const;
  void build_lists();
  void iteration();
  void iterate(int count);
  void grow(int parts);
  void move(int it);
  void place_chosen();
  void prune_all();
  void enqueue(const Control& done);
  void bind();
  void write_results();

  const Job& job_;
  const std::size_t n_, pixels_;
  const int tiles_, cells_each_;
  ListRoom room_;
  int capacity_, first_ = 0, batch_ = 0;
  Stream stream_, side_;
  DeviceArray<std::uint8_t> images_;
  DeviceArray<float> param_, adam_m_, adam_v_, out_, tile_errors_, partial_, pixel_errors_, cells_;
  DeviceArray<DeviceGaussian> gaussians_;
  DeviceArray<Listed> listed_;
  DeviceArray<int> dirty_, active_, counts_, placing_, tile_counts_, wanted_;
  DeviceArray<TileEntry> entries_;
  DeviceArray<double> errors_;
  DeviceArray<Control> control_;
  PinnedArray<std::uint8_t> host_images_;
  PinnedArray<float> host_param_, host_out_;
  PinnedArray<int> host_counts_, host_kept_, host_wanted_, host_stop_;
  PinnedArray<double> host_errors_;
  PinnedArray<Control> host_control_;
  Schedule schedule_;
  DeviceChunk chunk_{};
  Graph graph_;
  int graph_batch_ = 0;
};

}  // namespace splat2d
