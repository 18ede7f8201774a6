// What batched kernels without a sort are compared with: the structure that rasterisers of 2D Gaussians inherit from
// 3D ones. One picture at a time; tiles of 16 x 16; (tile, depth) keys of 64 bits, radix-sorted in every iteration;
// one thread a pixel; gradients summed over a warp, then added by atomics to global memory.
//
//   sorted_fit FILE ITERS PICTURES HOST lr_position lr_shape lr_color lr_final beta1 beta2 epsilon lambda scale_min
//
// FILE: int32 B, H, W, N; uint8 pictures [B, H, W, 3]; float32 means [B, N, 2], cholesky [B, N, 3], colors [B, N, 3]
// to start from. The first PICTURES are fitted by Adam with the given settings. HOST 1: the same tiles, keys and sums
// in plain loops on the CPU, which tests everything but the launches. Prints {"seconds", "psnr_db": [each], "pairs"}.
#include <cuda_runtime.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cub/cub.cuh>
#include <fstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "sorted_fit.h"

namespace {

using namespace sorted;

void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess) throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(status));
}

__global__ void project(Picture d, const float* param, Gaussian* gaussians, int* touched) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i >= d.number) return;
  const Gaussian g = gaussian_of(param, d.number, i);
  const Box box = box_of(g, d);
  gaussians[i] = g;
  touched[i] = max(0, box.x1 - box.x0) * max(0, box.y1 - box.y0);
}

__global__ void duplicate(Picture d, const Gaussian* gaussians, const int* ends, std::uint64_t* keys, int* values) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < d.number) write_keys(box_of(gaussians[i], d), d, i, keys, values, i == 0 ? 0 : ends[i - 1]);
}

__global__ void mark_ranges(const std::uint64_t* keys, int count, int* starts, int* ends) {
  const int k = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (k < count) mark_range(keys, count, k, starts, ends);
}

// Calls body(Gaussian, index) for the tile's Gaussians, which pass through shared memory 256 at a time.
template <typename Body>
__device__ void each_of_tile(const Gaussian* gaussians, const int* values, int first, int last, Body&& body) {
  __shared__ Gaussian shared[kThreads];
  __shared__ int indices[kThreads];
  for (int start = first; start < last; start += kThreads) {
    __syncthreads();
    const int k = start + static_cast<int>(threadIdx.x);
    if (k < last) indices[threadIdx.x] = values[k], shared[threadIdx.x] = gaussians[values[k]];
    __syncthreads();
    for (int j = 0; j < min(kThreads, last - start); ++j) body(shared[j], indices[j]);
  }
}

__global__ void forward(Picture d, const Gaussian* gaussians, const int* values, const int* starts, const int* ends,
                        const std::uint8_t* image, Pixel* residual) {
  const int tile = static_cast<int>(blockIdx.x), thread = static_cast<int>(threadIdx.x);
  const int x = tile % d.columns * kSide + thread % kSide, y = tile / d.columns * kSide + thread / kSide;
  Pixel p{};
  each_of_tile(gaussians, values, starts[tile], ends[tile], [&](const Gaussian& g, int) { draw(g, x, y, p); });
  if (x >= d.width || y >= d.height) return;
  const int at = y * d.width + x;
  residual[at] = {p.red - static_cast<float>(image[at * 3]) / 255.0f,
                  p.green - static_cast<float>(image[at * 3 + 1]) / 255.0f,
                  p.blue - static_cast<float>(image[at * 3 + 2]) / 255.0f};
}

__global__ void backward(Picture d, const Gaussian* gaussians, const int* values, const int* starts, const int* ends,
                         const Pixel* residual, float* moments) {
  const int tile = static_cast<int>(blockIdx.x), thread = static_cast<int>(threadIdx.x);
  const int x = tile % d.columns * kSide + thread % kSide, y = tile / d.columns * kSide + thread / kSide;
  const bool inside = x < d.width && y < d.height;
  const Pixel r = inside ? residual[y * d.width + x] : Pixel{};
  each_of_tile(gaussians, values, starts[tile], ends[tile], [&](const Gaussian& g, int index) {
    float m[8];
    moments_at(g, x, y, r, m);
    if (!__any_sync(~0u, m[0] != 0.0f || m[1] != 0.0f || m[2] != 0.0f)) return;
    for (int k = 0; k < 8; ++k) {
      for (int half = kWarp / 2; half > 0; half /= 2) m[k] += __shfl_down_sync(~0u, m[k], half);
    }
    if (thread % kWarp == 0) {
      for (int k = 0; k < 8; ++k) atomicAdd(moments + index * 8 + k, m[k]);
    }
  });
}

__global__ void update(Picture d, float* param, float* m, float* v, const float* moments, StepSettings s) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < d.number) step(param, m, v, moments, d.number, i, s);
}

template <typename T>
struct OnDevice {
  T* data = nullptr;
  std::size_t size = 0;
  explicit OnDevice(std::size_t wanted = 0) { grow(wanted); }
  OnDevice(const OnDevice&) = delete;
  ~OnDevice() { cudaFree(data); }
  void grow(std::size_t wanted) {
    if (wanted <= size) return;
    check(cudaFree(data), "free");
    check(cudaMalloc(&data, wanted * sizeof(T)), "allocation");
    size = wanted;
  }
  void zero() { check(cudaMemsetAsync(data, 0, size * sizeof(T)), "clearing"); }
};

int blocks(int count) { return (count + kThreads - 1) / kThreads; }

// Fits one picture; param [8][N] is read and replaced. Returns the number of keys of the last iteration.
int fit_on_device(const Picture& d, const std::uint8_t* image, std::vector<float>& param, const Recipe& recipe,
                  int iters, std::vector<Pixel>& residual) {
  const std::size_t n = static_cast<std::size_t>(d.number), pixels = residual.size();
  const std::size_t tiles = static_cast<std::size_t>(d.columns) * static_cast<std::size_t>(d.rows);
  OnDevice<float> p(8 * n), m(8 * n), v(8 * n), moments(8 * n);
  OnDevice<Gaussian> gaussians(n);
  OnDevice<int> touched(n), ends_of(n), values, sorted_values, starts(tiles), ends(tiles);
  OnDevice<std::uint64_t> keys, sorted_keys;
  OnDevice<std::uint8_t> target(pixels * 3), scratch;
  OnDevice<Pixel> r(pixels);
  check(cudaMemcpy(p.data, param.data(), 8 * n * sizeof(float), cudaMemcpyHostToDevice), "copy");
  check(cudaMemcpy(target.data, image, pixels * 3, cudaMemcpyHostToDevice), "copy");
  m.zero(), v.zero();
  int count = 0, bits = 32;
  while ((tiles >> (bits - 32)) != 0) ++bits;
  for (int it = 0; it <= iters; ++it) {  // the last round only draws
    project<<<blocks(d.number), kThreads>>>(d, p.data, gaussians.data, touched.data);
    std::size_t bytes = 0;
    check(cub::DeviceScan::InclusiveSum(nullptr, bytes, touched.data, ends_of.data, d.number), "scan");
    scratch.grow(bytes);
    check(cub::DeviceScan::InclusiveSum(scratch.data, bytes, touched.data, ends_of.data, d.number), "scan");
    check(cudaMemcpy(&count, ends_of.data + n - 1, sizeof count, cudaMemcpyDeviceToHost), "number of keys");
    const std::size_t room = static_cast<std::size_t>(std::max(count, 1)) * 5 / 4;
    if (keys.size < static_cast<std::size_t>(count)) {
      keys.grow(room), sorted_keys.grow(room), values.grow(room), sorted_values.grow(room);
    }
    starts.zero(), ends.zero();
    if (count > 0) {
      duplicate<<<blocks(d.number), kThreads>>>(d, gaussians.data, ends_of.data, keys.data, values.data);
      bytes = 0;
      check(cub::DeviceRadixSort::SortPairs(nullptr, bytes, keys.data, sorted_keys.data, values.data,
                                            sorted_values.data, count, 0, bits), "sort");
      scratch.grow(bytes);
      check(cub::DeviceRadixSort::SortPairs(scratch.data, bytes, keys.data, sorted_keys.data, values.data,
                                            sorted_values.data, count, 0, bits), "sort");
      mark_ranges<<<blocks(count), kThreads>>>(sorted_keys.data, count, starts.data, ends.data);
    }
    const int grid = static_cast<int>(tiles);
    forward<<<grid, kThreads>>>(d, gaussians.data, sorted_values.data, starts.data, ends.data, target.data, r.data);
    if (it == iters) break;
    moments.zero();
    backward<<<grid, kThreads>>>(d, gaussians.data, sorted_values.data, starts.data, ends.data, r.data, moments.data);
    update<<<blocks(d.number), kThreads>>>(d, p.data, m.data, v.data, moments.data, settings_at(recipe, d, it, iters));
  }
  check(cudaGetLastError(), "launch");
  check(cudaMemcpy(param.data(), p.data, 8 * n * sizeof(float), cudaMemcpyDeviceToHost), "copy");
  check(cudaMemcpy(residual.data(), r.data, pixels * sizeof(Pixel), cudaMemcpyDeviceToHost), "copy");
  return count;
}

template <typename T>
std::vector<T> read(std::ifstream& file, std::size_t size) {
  std::vector<T> values(size);
  if (!file.read(reinterpret_cast<char*>(values.data()), static_cast<std::streamsize>(size * sizeof(T)))) {
    throw std::runtime_error("the file is too short");
  }
  return values;
}

int fit_file(char** argv) {
  std::ifstream file(argv[1], std::ios::binary);
  const int iters = std::atoi(argv[2]), wanted = std::atoi(argv[3]);
  const bool on_host = std::atoi(argv[4]) != 0;
  float values[9];
  for (int k = 0; k < 9; ++k) values[k] = static_cast<float>(std::atof(argv[5 + k]));
  const Recipe recipe{values[0], values[1], values[2], values[3], values[4], values[5], values[6], values[7], values[8]};
  const auto head = read<std::int32_t>(file, 4);
  const int height = head[1], width = head[2], number = head[3];
  const Picture d{height, width, number, (width + kSide - 1) / kSide, (height + kSide - 1) / kSide};
  const std::size_t b = static_cast<std::size_t>(head[0]), n = static_cast<std::size_t>(number);
  const std::size_t pixels = static_cast<std::size_t>(height) * static_cast<std::size_t>(width);
  const auto images = read<std::uint8_t>(file, b * pixels * 3);
  const auto means = read<float>(file, b * n * 2), cholesky = read<float>(file, b * n * 3);
  const auto colors = read<float>(file, b * n * 3);
  std::vector<Pixel> residual(pixels);
  std::vector<double> psnr;
  double seconds = 0.0;
  long keys = 0;
  for (int picture = -1; picture < std::min(wanted, head[0]); ++picture) {  // -1: warms the device up
    if (picture < 0 && on_host) continue;
    const std::size_t at = static_cast<std::size_t>(std::max(picture, 0));
    std::vector<float> param(8 * n);
    for (std::size_t i = 0; i < n; ++i) {
      for (std::size_t k = 0; k < 2; ++k) param[k * n + i] = means[(at * n + i) * 2 + k];
      for (std::size_t k = 0; k < 3; ++k) param[(2 + k) * n + i] = cholesky[(at * n + i) * 3 + k];
      for (std::size_t k = 0; k < 3; ++k) param[(5 + k) * n + i] = colors[(at * n + i) * 3 + k];
    }
    const auto start = std::chrono::steady_clock::now();
    const std::uint8_t* image = images.data() + at * pixels * 3;
    const int count = on_host ? fit_on_host(d, image, param, recipe, iters, residual)
                              : fit_on_device(d, image, param, recipe, picture < 0 ? 10 : iters, residual);
    if (picture < 0) continue;
    seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    keys += count;
    double sum = 0.0;
    for (const Pixel& p : residual) sum += p.red * p.red + p.green * p.green + p.blue * p.blue;
    psnr.push_back(-10.0 * std::log10(std::max(sum / (3.0 * static_cast<double>(pixels)), 1e-10)));
  }
  std::printf("{\"seconds\": %.6f, \"keys_mean\": %.0f, \"psnr_db\": [", seconds,
              static_cast<double>(keys) / static_cast<double>(std::max<std::size_t>(psnr.size(), 1)));
  for (std::size_t i = 0; i < psnr.size(); ++i) std::printf("%s%.4f", i ? ", " : "", psnr[i]);
  std::printf("]}\n");
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 14) {
    std::fprintf(stderr, "usage: sorted_fit FILE ITERS PICTURES HOST and nine settings (see the source)\n");
    return 2;
  }
  try {
    return fit_file(argv);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "sorted_fit: %s\n", error.what());
    return 1;
  }
}
