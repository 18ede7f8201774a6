// Enough of CUDA to compile kernels/src/*.cu for the CPU; the compiler's -include puts it ahead of the source.
//
// Memory, on the device, pinned or shared, is poisoned with 0xff (NaN as a float) before its first use. A stream only
// queues: its work is done when somebody waits for it or asks, so that a missing wait shows. Settings of the
// environment: EMULATED_ORDER (emulated_block.h), EMULATED_DEVICES, EMULATED_MEMORY (bytes of each device) and
// EMULATED_FAIL (the number of the allocation, from 1, that fails for lack of memory).
#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstddef>
#include <deque>
#include <map>
#include <utility>

#include "emulated_block.h"

#define __global__
#define __device__
#define __host__
#define __launch_bounds__(...)
#define __shared__ static __attribute__((section("cuda_shared")))  // one block runs at a time

extern "C" char __start_cuda_shared[], __stop_cuda_shared[];

inline void __syncthreads() { emulated::block().wait(emulated::Group::block); }
inline int __syncthreads_or(int value) { return emulated::block().wait(emulated::Group::block, value != 0); }

template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta) {
  const unsigned lane = threadIdx.x % emulated::kLanes;
  const emulated::Shown shown = emulated::show("__shfl_up_sync", mask, value);
  return lane >= delta ? emulated::seen<T>(shown, lane - delta) : value;
}

template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int bits) {
  const unsigned lane = threadIdx.x % emulated::kLanes;
  const emulated::Shown shown = emulated::show("__shfl_xor_sync", mask, value);
  return emulated::seen<T>(shown, lane ^ static_cast<unsigned>(bits));
}

inline unsigned __ballot_sync(unsigned mask, bool value) {
  const emulated::Shown shown = emulated::show("__ballot_sync", mask, value);
  unsigned bits = 0;
  for (unsigned lane = 0; lane < emulated::kLanes; ++lane) {
    bits |= static_cast<unsigned>(emulated::seen<bool>(shown, lane)) << lane;
  }
  return bits;
}

inline unsigned __float_as_uint(float value) {
  unsigned bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline int __ffs(int bits) { return __builtin_ffs(bits); }
inline float __expf(float x) { return std::exp(x); }
inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }

template <typename T>
T atomicExch(T* at, T value) {
  return std::atomic_ref<T>(*at).exchange(value);
}

template <typename T>
T atomicMax(T* at, T value) {
  std::atomic_ref<T> target(*at);
  T old = target.load();
  while (old < value && !target.compare_exchange_weak(old, value)) {
  }
  return old;
}

enum cudaError_t { cudaSuccess, cudaErrorMemoryAllocation, cudaErrorNotReady, cudaErrorInvalidValue };
enum cudaMemcpyKind { cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost };
enum cudaStreamCaptureMode { cudaStreamCaptureModeThreadLocal };
constexpr unsigned cudaStreamNonBlocking = 1;

namespace emulated {

using Work = std::function<void()>;

struct Stream {
  std::deque<Work> queue;
  bool capturing = false;
  std::vector<Work> captured;
};

struct Graph {
  std::vector<Work> work;
};

// One host thread drives a device, as fit_cuda.cu has it: what belongs to a device is the thread's own.
inline thread_local std::vector<Stream*> streams;
inline thread_local std::size_t memory_used = 0;
inline thread_local cudaError_t last_error = cudaSuccess;
inline std::mutex launching, bookkeeping;
inline std::map<void*, std::size_t> live;  // device and pinned memory
inline long allocations = 0;

inline cudaError_t reported(cudaError_t error) {
  if (error != cudaSuccess) last_error = error;
  return error;
}

// The section holds only what kernels call __shared__; it is filled without a sanitizer's knowledge of its parts.
__attribute__((no_sanitize("address", "thread"))) inline void poison_shared() {
  volatile char *at = __start_cuda_shared, *end = __stop_cuda_shared;
  while (at != end && reinterpret_cast<std::uintptr_t>(at) % 8 != 0) *at++ = static_cast<char>(0xff);
  for (; end - at >= 8; at += 8) *reinterpret_cast<volatile std::uint64_t*>(at) = ~0ull;
  while (at != end) *at++ = static_cast<char>(0xff);
}

inline void put(Stream* stream, Work work) {
  if (stream->capturing) {
    stream->captured.push_back(std::move(work));
  } else {
    stream->queue.push_back(std::move(work));
  }
}

inline bool advance(Stream* stream) {
  if (stream->queue.empty()) return false;
  const Work work = std::move(stream->queue.front());
  stream->queue.pop_front();
  work();
  return true;
}

inline void finish_all() {
  for (Stream* stream : streams) {
    while (advance(stream)) {
    }
  }
}

template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 size, Stream* stream, Arguments... arguments) {
  put(stream, [=] {
    const std::lock_guard<std::mutex> lock(launching);
    const std::function<void()> body = [&] { kernel(arguments...); };
    blockDim = size;
    for (unsigned y = 0; y < grid.y; ++y) {
      for (unsigned x = 0; x < grid.x; ++x) {
        blockIdx = dim3(x, y);
        poison_shared();
        block().run(size.x, body);
      }
    }
  });
}

inline cudaError_t allocate(void** to, std::size_t size) {
  const std::lock_guard<std::mutex> lock(bookkeeping);
  const std::size_t memory = static_cast<std::size_t>(setting("EMULATED_MEMORY", 1l << 30));
  if (++allocations == setting("EMULATED_FAIL", 0) || memory_used + size > memory) {
    return reported(cudaErrorMemoryAllocation);
  }
  *to = std::malloc(size);
  std::memset(*to, 0xff, size);
  live[*to] = size;
  memory_used += size;
  return cudaSuccess;
}

inline cudaError_t release(void* data) {
  finish_all();
  if (data == nullptr) return cudaSuccess;
  const std::lock_guard<std::mutex> lock(bookkeeping);
  const auto found = live.find(data);
  if (found == live.end()) return reported(cudaErrorInvalidValue);
  memory_used -= found->second;
  live.erase(found);
  std::free(data);
  return cudaSuccess;
}

}  // namespace emulated

#define SPLAT2D_LAUNCH(kernel, grid, block, stream, ...) emulated::launch(kernel, grid, block, stream, __VA_ARGS__)

using cudaStream_t = emulated::Stream*;
using cudaGraph_t = emulated::Graph*;
using cudaGraphExec_t = emulated::Graph*;

inline const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaErrorMemoryAllocation ? "out of memory" : "invalid argument";
}
inline cudaError_t cudaGetLastError() { return std::exchange(emulated::last_error, cudaSuccess); }
inline cudaError_t cudaGetDeviceCount(int* count) {
  *count = static_cast<int>(emulated::setting("EMULATED_DEVICES", 1));
  return cudaSuccess;
}
inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
inline cudaError_t cudaMemGetInfo(std::size_t* free, std::size_t* total) {
  *total = static_cast<std::size_t>(emulated::setting("EMULATED_MEMORY", 1l << 30));
  *free = *total - emulated::memory_used;
  return cudaSuccess;
}
inline cudaError_t cudaMalloc(void** to, std::size_t size) { return emulated::allocate(to, size); }
inline cudaError_t cudaFree(void* data) { return emulated::release(data); }
inline cudaError_t cudaMallocHost(void** to, std::size_t size) { return emulated::allocate(to, size); }
inline cudaError_t cudaFreeHost(void* data) { return emulated::release(data); }
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t size, cudaMemcpyKind, cudaStream_t stream) {
  emulated::put(stream, [=] { std::memcpy(to, from, size); });
  return cudaSuccess;
}
inline cudaError_t cudaMemsetAsync(void* to, int value, std::size_t size, cudaStream_t stream) {
  emulated::put(stream, [=] { std::memset(to, value, size); });
  return cudaSuccess;
}
inline cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  emulated::streams.push_back(*stream = new emulated::Stream);
  return cudaSuccess;
}
inline cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  while (emulated::advance(stream)) {
  }
  return cudaSuccess;
}
inline cudaError_t cudaStreamQuery(cudaStream_t stream) {
  return emulated::advance(stream) ? cudaErrorNotReady : cudaSuccess;
}
inline cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  cudaStreamSynchronize(stream);
  std::erase(emulated::streams, stream);
  delete stream;
  return cudaSuccess;
}
inline cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  stream->capturing = true;
  return cudaSuccess;
}
inline cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  stream->capturing = false;
  *graph = new emulated::Graph{std::exchange(stream->captured, {})};
  return cudaSuccess;
}
inline cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned long long) {
  *exec = new emulated::Graph(*graph);
  return cudaSuccess;
}
inline cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
  for (const emulated::Work& work : exec->work) emulated::put(stream, work);
  return cudaSuccess;
}
inline cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph;
  return cudaSuccess;
}
inline cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
  delete exec;
  return cudaSuccess;
}
