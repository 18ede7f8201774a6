// Fitting on CUDA devices. The host starts each picture by the code of the CPU fit; everything after that runs on the
// device (docs/cuda.md).
#include "cuda_slot.cuh"

#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "parallel.h"
#include "schedule.h"
#include "splat2d/fit_cuda.h"
#include "stages.h"

namespace splat2d {
namespace {

constexpr int kMostPictures = 128;  // of a chunk: they fill a device, which waits until the host has started the first
constexpr int kFewPictures = 64;    // a call is cut into at least two chunks a device, but into none smaller than this
constexpr double kMemoryShare = 0.6;
constexpr double kPinnedBytes = 1 << 30;  // of a chunk: the system's, of which CUDA does not say what is free

struct Range {
  int first, count;
};

// A positive number from the environment, or `otherwise`.
int from_environment(const char* name, int otherwise) {
  const char* text = std::getenv(name);
  if (text == nullptr || *text == '\0') return otherwise;
  char* end = nullptr;
  const long value = std::strtol(text, &end, 10);
  if (*end == '\0' && value > 0 && value <= 65535) return static_cast<int>(value);
  throw std::runtime_error(std::string(name) + "=" + text + ": expected a whole number from 1 to 65535");
}

// The pictures of a call, shared by its devices.
class Work {
 public:
  Work(const Job& job, int devices) : job(job), devices_(devices) {
    const FitOptions& o = job.options;
    const auto [batch, height, width] = job.input.shape;
    const float rate = job.input.start ? kWarmRate : 1.0f;
    for (int it = 0; it < o.num_iters; ++it) settings.push_back(settings_at(o, height, width, it, o.num_iters, rate));
    for (int it = 0; it < job.iterations() - o.num_iters; ++it) {
      settings.push_back(settings_at(o, height, width, it, o.refit_iters, kRefitRate));
    }
  }

  int devices() const { return devices_; }

  Range take(int most) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const Range range{next_, std::min(most, job.input.shape.batch - next_)};
    next_ += range.count;
    return range;
  }

  const Job job;
  std::vector<StepSettings> settings;
  std::atomic<int> done{0};

 private:
  const int devices_;
  std::mutex mutex_;
  int next_ = 0;
};

// One device: two slots by turns. While the device works on one, the host starts the pictures of the other.
class Driver {
 public:
  Driver(Work& work, int device, int workers, const Stopped& stopped)
      : work_(work), workers_(workers), stopped_(stopped) {
    check(cudaSetDevice(device), "cudaSetDevice");
    const auto [batch, height, width] = work.job.input.shape;
    room_ = first_room(work.job.input.num_gaussians, height, width);
    settings_ = std::make_unique<DeviceArray<StepSettings>>(work.settings.size());
    const Stream stream;
    settings_->upload(work.settings.data(), work.settings.size(), stream);
    stream.wait();
    canvases_.resize(static_cast<std::size_t>(workers));
    std::size_t free = 0, total = 0;
    check(cudaMemGetInfo(&free, &total), "cudaMemGetInfo");
    const double slot = kMemoryShare * static_cast<double>(free) / 2.0;
    const double fitting = std::min(slot / static_cast<double>(bytes_each(work.job, room_)),
                                    kPinnedBytes / static_cast<double>(pinned_bytes_each(work.job)));
    const int share = std::clamp(blocks(batch, 2 * work.devices()), kFewPictures, kMostPictures);
    const int wished = std::min(batch, from_environment("SPLAT2D_CUDA_BATCH", share));
    most_ = std::max(1, static_cast<int>(std::min<double>(wished, fitting)));
  }

  ~Driver() { stop(); }

  void run() {
    for (int turn = 0; !stopped_(); turn ^= 1) {
      std::unique_ptr<Slot>& slot = slots_[turn];
      try {
        if (slot && slot->busy() && !collect(*slot)) break;
        const Range range = next();
        if (range.count == 0) {
          Slot* other = slots_[turn ^ 1].get();
          if (other == nullptr || !other->busy()) return;
          continue;  // the other one's turn: it is collected there
        }
        pending_.push_front(range);  // until the slot has it
        if (!slot) slot = std::make_unique<Slot>(work_.job, *settings_, most_, room_);
        if (!start(*slot, range)) break;
      } catch (const OutOfMemory& error) {
        make_smaller(error);
      }
    }
  }

 private:
  // Both, before either gives memory back: cudaFree waits for all that the device does.
  void stop() {
    for (auto& slot : slots_) {
      if (slot) slot->stop();
    }
  }

  Range next() {
    if (pending_.empty()) return work_.take(most_);
    Range& range = pending_.front();
    const Range taken{range.first, std::min(most_, range.count)};
    range = {range.first + taken.count, range.count - taken.count};
    if (range.count == 0) pending_.pop_front();
    return taken;
  }

  // False: stopped.
  bool start(Slot& slot, Range range) {
    const Job& job = work_.job;
    const std::size_t size = static_cast<std::size_t>(job.input.shape.height) * job.input.shape.width * 3;
    const auto body = [&](int worker, int index, const Stopped&) {
      auto& canvas = canvases_[static_cast<std::size_t>(worker)];
      if (!canvas) {
        canvas = std::make_unique<Canvas>(engine(), job.input.shape.height, job.input.shape.width,
                                          canvas_capacity(job.input));
      }
      const int picture = range.first + index;
      start_fit(*canvas, job.input, job.options, picture, job.first_number(picture));
      slot.stage(*canvas, index, job.input.images + static_cast<std::size_t>(picture) * size);
    };
    if (!parallel(range.count, std::min(workers_, range.count), body, [&](int) { return !stopped_(); })) return false;
    pending_.pop_front();
    slot.begin(range.first, range.count);
    return true;
  }

  // False: stopped.
  bool collect(Slot& slot) {
    const int batch = slot.batch();
    do {
      while (!slot.done()) {
        if (stopped_()) return false;
        std::this_thread::sleep_for(std::chrono::microseconds(100));
      }
    } while (!slot.collect(room_));
    work_.done += batch;
    return true;
  }

  // Half as many pictures at a time; those under way are begun again. Results do not depend on it.
  void make_smaller(const OutOfMemory& error) {
    for (auto& slot : slots_) {
      if (slot && slot->busy()) pending_.push_back({slot->first(), slot->batch()});
    }
    stop();
    for (auto& slot : slots_) slot.reset();
    if (most_ == 1) {
      throw std::runtime_error(std::string(error.what()) + "; one picture at a time needs " +
                               megabytes(bytes_each(work_.job, room_)) + ": fit fewer Gaussians or smaller pictures");
    }
    std::fprintf(stderr, "splat2d: %s: %d pictures at a time instead of %d\n", error.what(), most_ / 2, most_);
    most_ /= 2;
  }

  Work& work_;
  const int workers_;
  const Stopped& stopped_;
  ListRoom room_{};
  int most_ = 1;
  std::unique_ptr<DeviceArray<StepSettings>> settings_;
  std::vector<std::unique_ptr<Canvas>> canvases_;
  std::unique_ptr<Slot> slots_[2];
  std::deque<Range> pending_;
};

}  // namespace

bool cuda_available() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess && count > 0;
}

bool fit_cuda(const FitInput& input, const FitOptions& options, int threads, const FitOutput& out, const Poll& poll) {
  if (options.target_psnr > 0.0f || options.plateau > 0.0f) {
    throw std::runtime_error("CUDA: target_psnr and plateau end each picture at its own time, which this device's loop"
                             " does not do yet; use device=\"cpu\", or num_iters alone");
  }
  int devices = 0;
  check(cudaGetDeviceCount(&devices), "cudaGetDeviceCount");
  if (devices == 0) throw std::runtime_error("CUDA: no device");
  if (input.shape.batch == 0) return true;
  const int few = std::min(kFewPictures, from_environment("SPLAT2D_CUDA_BATCH", kFewPictures));
  devices = std::min(devices, blocks(input.shape.batch, few));
  Work work({input, options, out}, devices);
  const int workers = std::max(1, thread_count(threads, input.shape.batch) / devices);
  const auto body = [&](int, int device, const Stopped& stopped) { Driver(work, device, workers, stopped).run(); };
  return parallel(devices, devices, body, poll ? [&](int) { return poll(work.done); } : Poll{});
}

}  // namespace splat2d
