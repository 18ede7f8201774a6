// Owners of what the CUDA runtime hands out, and its errors as exceptions.
#pragma once

#ifndef SPLAT2D_EMULATED_CUDA
#include <cuda_runtime.h>
#define SPLAT2D_LAUNCH(kernel, grid, block, stream, ...) kernel<<<grid, block, 0, stream>>>(__VA_ARGS__)
#endif

#include <algorithm>
#include <cstddef>
#include <stdexcept>
#include <string>
#include <utility>

namespace splat2d {

// Too little memory, on the device or to be pinned: the one error that a smaller batch gets over.
struct OutOfMemory : std::runtime_error {
  using std::runtime_error::runtime_error;
};

inline void check(cudaError_t status, const std::string& call) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // what is thrown here is not to be met again by the next call
  const std::string text = "CUDA: " + call + ": " + cudaGetErrorString(status);
  if (status == cudaErrorMemoryAllocation) throw OutOfMemory(text);
  throw std::runtime_error(text);
}

inline std::string megabytes(std::size_t bytes) { return std::to_string((bytes + (1u << 20) - 1) >> 20) + " MiB"; }

class Stream {
 public:
  Stream() { check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "cudaStreamCreateWithFlags"); }
  ~Stream() { cudaStreamDestroy(stream_); }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  cudaStream_t get() const { return stream_; }
  void wait() const { check(cudaStreamSynchronize(stream_), "cudaStreamSynchronize"); }
  bool done() const {
    const cudaError_t status = cudaStreamQuery(stream_);
    if (status == cudaErrorNotReady) return false;
    check(status, "cudaStreamQuery");
    return true;
  }

 private:
  cudaStream_t stream_{};
};

// Not cleared; moving hands it over.
template <typename T>
class DeviceArray {
 public:
  explicit DeviceArray(std::size_t size) : size_(std::max<std::size_t>(size, 1)) {
    check(cudaMalloc(reinterpret_cast<void**>(&data_), bytes()), "cudaMalloc of " + megabytes(bytes()));
  }
  ~DeviceArray() { cudaFree(data_); }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;
  T* data() const { return data_; }
  std::size_t bytes() const { return size_ * sizeof(T); }

  // Gives the old memory back first.
  void grow(std::size_t size) {
    cudaFree(std::exchange(data_, nullptr));
    size_ = size;
    check(cudaMalloc(reinterpret_cast<void**>(&data_), bytes()), "cudaMalloc of " + megabytes(bytes()));
  }
  void upload(const T* from, std::size_t size, const Stream& stream) {
    check(cudaMemcpyAsync(data_, from, size * sizeof(T), cudaMemcpyHostToDevice, stream.get()), "cudaMemcpyAsync");
  }
  void download(T* to, std::size_t size, const Stream& stream) const {
    check(cudaMemcpyAsync(to, data_, size * sizeof(T), cudaMemcpyDeviceToHost, stream.get()), "cudaMemcpyAsync");
  }
  void fill(int byte, const Stream& stream) {
    check(cudaMemsetAsync(data_, byte, bytes(), stream.get()), "cudaMemsetAsync");
  }

 private:
  T* data_ = nullptr;
  std::size_t size_;
};

// Host memory that the device copies from and to while the host goes on.
template <typename T>
class PinnedArray {
 public:
  explicit PinnedArray(std::size_t size) {
    const std::size_t bytes = std::max<std::size_t>(size, 1) * sizeof(T);
    check(cudaMallocHost(reinterpret_cast<void**>(&data_), bytes), "cudaMallocHost of " + megabytes(bytes));
  }
  ~PinnedArray() { cudaFreeHost(data_); }
  PinnedArray(const PinnedArray&) = delete;
  PinnedArray& operator=(const PinnedArray&) = delete;
  T* data() const { return data_; }
  T& operator[](std::size_t i) { return data_[i]; }

 private:
  T* data_ = nullptr;
};

// Launches recorded once and started as one.
class Graph {
 public:
  Graph() = default;
  ~Graph() { clear(); }
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;
  bool recorded() const { return exec_ != nullptr; }

  template <typename Launches>
  void record(const Stream& stream, const Launches& launches) {
    clear();
    check(cudaStreamBeginCapture(stream.get(), cudaStreamCaptureModeThreadLocal), "cudaStreamBeginCapture");
    launches();
    cudaGraph_t graph{};
    check(cudaStreamEndCapture(stream.get(), &graph), "cudaStreamEndCapture");
    const cudaError_t status = cudaGraphInstantiateWithFlags(&exec_, graph, 0);
    cudaGraphDestroy(graph);
    check(status, "cudaGraphInstantiateWithFlags");
  }
  void launch(const Stream& stream) const { check(cudaGraphLaunch(exec_, stream.get()), "cudaGraphLaunch"); }
  void clear() {
    if (exec_ != nullptr) cudaGraphExecDestroy(std::exchange(exec_, nullptr));
  }

 private:
  cudaGraphExec_t exec_ = nullptr;
};

}  // namespace splat2d
