// Enough of CUDA to run kernels/src/fit_cuda.cu on the CPU: blocks one after the other, the threads of a block as
// std::threads, __syncthreads as a barrier. Included ahead of the source by the compiler's -include.
#pragma once

#include <barrier>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __shared__ static  // one block runs at a time

struct dim3 {
  unsigned x, y;
  explicit dim3(unsigned columns, unsigned rows = 1) : x(columns), y(rows) {}
};

inline thread_local dim3 threadIdx(0), blockIdx(0), blockDim(0);
inline std::unique_ptr<std::barrier<>> block_barrier;

inline void __syncthreads() { block_barrier->arrive_and_wait(); }

template <typename Kernel, typename... Arguments>
void emulated_launch(Kernel kernel, dim3 grid, dim3 block, Arguments... arguments) {
  for (unsigned y = 0; y < grid.y; ++y) {
    for (unsigned x = 0; x < grid.x; ++x) {
      block_barrier = std::make_unique<std::barrier<>>(static_cast<std::ptrdiff_t>(block.x));
      std::vector<std::thread> threads;
      for (unsigned t = 0; t < block.x; ++t) {
        threads.emplace_back([=] {
          threadIdx = dim3(t);
          blockIdx = dim3(x, y);
          blockDim = block;
          kernel(arguments...);
        });
      }
      for (std::thread& thread : threads) thread.join();
    }
  }
}

#define SPLAT2D_LAUNCH(kernel, grid, block, ...) emulated_launch(kernel, grid, block, __VA_ARGS__)

enum cudaError_t { cudaSuccess, cudaErrorMemoryAllocation };
enum cudaMemcpyKind { cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost };

inline const char* cudaGetErrorString(cudaError_t) { return "out of memory"; }
inline cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}
inline cudaError_t cudaMalloc(void** to, std::size_t size) {
  *to = std::malloc(size);
  if (*to == nullptr) return cudaErrorMemoryAllocation;
  std::memset(*to, 0xff, size);  // NaN, so that what is read before it is written shows
  return cudaSuccess;
}
inline cudaError_t cudaFree(void* data) {
  std::free(data);
  return cudaSuccess;
}
inline cudaError_t cudaMemcpy(void* to, const void* from, std::size_t size, cudaMemcpyKind) {
  std::memcpy(to, from, size);
  return cudaSuccess;
}
inline cudaError_t cudaMemset(void* to, int value, std::size_t size) {
  std::memset(to, value, size);
  return cudaSuccess;
}
inline cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
