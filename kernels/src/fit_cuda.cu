// Fitting on a CUDA device: the start, pruning and the last measurement run on the host by the code of the CPU fit,
// the iterations between them on the device.
#ifndef SPLAT2D_EMULATED_CUDA
#include <cuda_runtime.h>
#define SPLAT2D_LAUNCH(kernel, grid, block, ...) kernel<<<grid, block>>>(__VA_ARGS__)
#endif

#include "fit_kernels.cuh"

#include <algorithm>
#include <cstdint>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "parallel.h"
#include "prune.h"
#include "schedule.h"
#include "splat2d/fit_cuda.h"
#include "stages.h"

namespace splat2d {
namespace {

constexpr int kPollEvery = 16;                     // iterations between looks at the host's signals
constexpr std::size_t kChunkBytes = 2u << 30;      // device memory of one chunk of pictures, about

void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess) {
    throw std::runtime_error(std::string("CUDA: ") + what + ": " + cudaGetErrorString(status));
  }
}

template <typename T>
class DeviceArray {
 public:
  explicit DeviceArray(std::size_t size) : size_(size) {
    check(cudaMalloc(reinterpret_cast<void**>(&data_), std::max<std::size_t>(size, 1) * sizeof(T)), "allocation");
  }
  ~DeviceArray() { cudaFree(data_); }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;
  T* data() { return data_; }
  void upload(const T* from, std::size_t size) {
    check(cudaMemcpy(data_, from, size * sizeof(T), cudaMemcpyHostToDevice), "copy to the device");
  }
  void download(T* to, std::size_t size) {
    check(cudaMemcpy(to, data_, size * sizeof(T), cudaMemcpyDeviceToHost), "copy from the device");
  }
  void clear() { check(cudaMemset(data_, 0, size_ * sizeof(T)), "clearing"); }

 private:
  T* data_ = nullptr;
  std::size_t size_;
};

// One chunk of pictures: its canvases' parameters on the host and everything on the device.
class Chunk {
 public:
  Chunk(PictureShape shape, int num_gaussians, bool cholesky)
      : shape_(shape),
        n_(static_cast<std::size_t>(num_gaussians)),
        pixels_(static_cast<std::size_t>(shape.height) * shape.width),
        host_param(static_cast<std::size_t>(shape.batch) * kParameters * n_),
        host_counts(static_cast<std::size_t>(shape.batch), num_gaussians),
        images_(shape.batch * pixels_ * 3),
        residual_(shape.batch * pixels_ * 3),
        param_(host_param.size()),
        adam_m_(host_param.size()),
        adam_v_(host_param.size()),
        packed_(static_cast<std::size_t>(shape.batch) * n_),
        counts_(static_cast<std::size_t>(shape.batch)),
        chunk_{images_.data(), residual_.data(), param_.data(), adam_m_.data(), adam_v_.data(), packed_.data(),
               counts_.data(), num_gaussians, shape.height, shape.width, cholesky} {}

  void load_images(const std::uint8_t* images, int batch) {
    images_.upload(images, static_cast<std::size_t>(batch) * pixels_ * 3);
  }

  void save(const Canvas& canvas, int index) {
    host_counts[static_cast<std::size_t>(index)] = canvas.w.count;
    for (int k = 0; k < kParameters; ++k) std::copy_n(canvas.w.param[k], canvas.w.count, row(index, k));
  }

  void restore(Canvas& canvas, int index) {
    canvas.w.cholesky = chunk_.cholesky;
    canvas.set_count(host_counts[static_cast<std::size_t>(index)]);
    for (int k = 0; k < kParameters; ++k) std::copy_n(row(index, k), canvas.w.count, canvas.w.param[k]);
    canvas.sort_rows();
  }

  // False: stopped by poll.
  bool optimise(const FitOptions& o, int batch, int num_iters, float rate, int done, const Poll& poll) {
    param_.upload(host_param.data(), host_param.size());
    counts_.upload(host_counts.data(), host_counts.size());
    adam_m_.clear();
    adam_v_.clear();
    const unsigned pictures = static_cast<unsigned>(batch), gaussians = static_cast<unsigned>(n_);
    const unsigned tiles = static_cast<unsigned>((shape_.width + kTile - 1) / kTile) *
                           static_cast<unsigned>((shape_.height + kTile - 1) / kTile);
    for (int it = 0; it < num_iters; ++it) {
      const StepSettings s = settings_at(o, shape_.height, shape_.width, it, num_iters, rate);
      SPLAT2D_LAUNCH(prepare, dim3((gaussians + 127) / 128, pictures), dim3(128), chunk_);
      SPLAT2D_LAUNCH(draw, dim3(tiles, pictures), dim3(kTileThreads), chunk_);
      SPLAT2D_LAUNCH(update, dim3(gaussians, pictures), dim3(kGaussianThreads), chunk_, s,
                     o.optimizer == Optimizer::natural);
      if (it % kPollEvery == kPollEvery - 1) {
        check(cudaDeviceSynchronize(), "iteration");
        if (poll && !poll(done)) return false;
      }
    }
    check(cudaGetLastError(), "launch");
    check(cudaDeviceSynchronize(), "iteration");
    param_.download(host_param.data(), host_param.size());
    return true;
  }

 private:
  float* row(int index, int parameter) {
    return host_param.data() + (static_cast<std::size_t>(index) * kParameters + parameter) * n_;
  }

  PictureShape shape_;
  std::size_t n_, pixels_;

 public:
  std::vector<float> host_param;
  std::vector<int> host_counts;

 private:
  DeviceArray<std::uint8_t> images_;
  DeviceArray<float> residual_, param_, adam_m_, adam_v_;
  DeviceArray<DeviceGaussian> packed_;
  DeviceArray<int> counts_;
  DeviceChunk chunk_;
};

}  // namespace

bool cuda_available() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess && count > 0;
}

bool fit_cuda(const FitInput& input, const FitOptions& options, int threads, const FitOutput& out, const Poll& poll) {
  const PictureShape shape = input.shape;
  const int num_gaussians = input.num_gaussians;
  const Engine& chosen = engine();
  std::optional<Curve> curve;
  if (options.init == Init::adaptive) curve.emplace(shape.height, shape.width);
  const std::size_t size = static_cast<std::size_t>(shape.height) * shape.width * 3;
  const std::size_t each = size * 5 + static_cast<std::size_t>(num_gaussians) * (24 * 4 + sizeof(DeviceGaussian));
  const std::size_t fitting = std::max<std::size_t>(1, kChunkBytes / each);
  const int most = static_cast<int>(std::min<std::size_t>({fitting, 32768, static_cast<std::size_t>(shape.batch)}));
  if (shape.batch == 0) return true;
  const int capacity = canvas_capacity(input);
  Chunk chunk({most, shape.height, shape.width}, num_gaussians, options.optimizer == Optimizer::adam);
  const int workers = thread_count(threads, most);
  std::vector<std::unique_ptr<Canvas>> canvases(static_cast<std::size_t>(workers));

  for (int first = 0; first < shape.batch; first += most) {
    const int batch = std::min(most, shape.batch - first);
    const std::uint8_t* from = input.images + static_cast<std::size_t>(first) * size;
    const Poll here = [&](int) { return !poll || poll(first); };
    const auto each_picture = [&](auto&& body) {
      return parallel(batch, workers, [&](int worker, int index, const Stopped&) {
        auto& canvas = canvases[static_cast<std::size_t>(worker)];
        if (!canvas) canvas = std::make_unique<Canvas>(chosen, shape.height, shape.width, capacity);
        body(*canvas, index);
      }, here);
    };
    chunk.load_images(from, batch);
    if (!each_picture([&](Canvas& canvas, int index) {
          start_fit(canvas, input, options, curve ? &*curve : nullptr, first + index,
                    input.counts ? input.counts[first + index] : num_gaussians);
          chunk.save(canvas, index);
        }))
      return false;
    if (!chunk.optimise(options, batch, options.num_iters, 1.0f, first, poll)) return false;
    std::vector<char> again(static_cast<std::size_t>(batch), 0);
    if (prunes(options)) {
      if (!each_picture([&](Canvas& canvas, int index) {
            chunk.restore(canvas, index);
            load_target(canvas, input, first + index);
            const int left = options.prune_to > 0 ? options.prune_to : canvas.w.count;
            again[static_cast<std::size_t>(index)] =
                prune(canvas, options, left) && canvas.w.count > 0 && options.refit_iters > 0;
            chunk.save(canvas, index);
          }))
        return false;
      // Pictures that lost nothing keep their result: their parameters are put back after the others' refit.
      if (std::find(again.begin(), again.end(), 1) != again.end()) {
        const std::vector<float> before = chunk.host_param;
        if (!chunk.optimise(options, batch, options.refit_iters, kRefitRate, first, poll)) return false;
        const std::size_t span = static_cast<std::size_t>(num_gaussians) * kParameters;
        for (std::size_t i = 0; i < again.size(); ++i) {
          if (!again[i]) std::copy_n(before.data() + i * span, span, chunk.host_param.data() + i * span);
        }
      }
    }
    if (!each_picture([&](Canvas& canvas, int index) {
          chunk.restore(canvas, index);
          load_target(canvas, input, first + index);
          const int refit = again[static_cast<std::size_t>(index)] ? options.refit_iters : 0;
          finish_fit(canvas, out, num_gaussians, first + index, options.num_iters + refit);
        }))
      return false;
  }
  return !poll || poll(shape.batch);
}

}  // namespace splat2d
