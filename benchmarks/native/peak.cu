// The device's fp32 peak: independent chains of fused multiply-adds in every thread. Prints {"gflops", "name"}.
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>

namespace {

constexpr int kRounds = 20000, kChains = 8, kThreads = 256;

__global__ void chains(float factor, float addend, float* out) {
  float x[kChains];
  for (int k = 0; k < kChains; ++k) x[k] = static_cast<float>(threadIdx.x + k);
  for (int i = 0; i < kRounds; ++i) {
#pragma unroll
    for (int k = 0; k < kChains; ++k) x[k] = fmaf(x[k], factor, addend);
  }
  float sum = 0.0f;
  for (int k = 0; k < kChains; ++k) sum += x[k];
  if (sum == 12345.0f) *out = sum;  // never, but the compiler cannot know
}

}  // namespace

int main() {
  cudaDeviceProp device;
  cudaEvent_t start, stop;
  float* out;
  if (cudaGetDeviceProperties(&device, 0) != cudaSuccess || cudaMalloc(&out, 4) != cudaSuccess ||
      cudaEventCreate(&start) != cudaSuccess || cudaEventCreate(&stop) != cudaSuccess) {
    std::fprintf(stderr, "peak: %s\n", cudaGetErrorString(cudaGetLastError()));
    return 1;
  }
  const int blocks = device.multiProcessorCount * 32;
  double best = 0.0;
  for (int run = 0; run < 5; ++run) {
    float ms = 0.0f;
    cudaEventRecord(start);
    chains<<<blocks, kThreads>>>(0.999999f, 1e-7f, out);
    cudaEventRecord(stop);
    if (cudaEventSynchronize(stop) != cudaSuccess || cudaEventElapsedTime(&ms, start, stop) != cudaSuccess) return 1;
    best = std::max(best, 2.0 * kRounds * kChains * kThreads * blocks / (1e-3 * ms) * 1e-9);
  }
  std::printf("{\"gflops\": %.0f, \"name\": \"%s\"}\n", best, device.name);
}
