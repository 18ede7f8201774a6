// The machine's fp32 peak: chains of fused multiply-adds in registers, on every thread at once.
//
//   peak THREADS    prints {"isa", "gflops": [each thread, per second of its own processor time], "wall_gflops"}
//
// Two operations a fused multiply-add. The widest instructions that the processor has are chosen at run time.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace {

constexpr long kRounds = 4000000;
constexpr int kChains = 12;  // enough to hide 4 cycles of latency on 2 ports, few enough for 16 registers

// In a form that cannot be folded: the factor is read at run time, and the sum is used.
volatile float factor = 0.999999f, addend = 1e-7f;
volatile float sink;

#if defined(__x86_64__)
__attribute__((target("avx512f"))) double avx512() {
  const __m512 m = _mm512_set1_ps(factor), c = _mm512_set1_ps(addend);
  __m512 x[kChains];
  for (int k = 0; k < kChains; ++k) x[k] = _mm512_set1_ps(static_cast<float>(k));
  for (long i = 0; i < kRounds; ++i) {
#pragma GCC unroll 12
    for (int k = 0; k < kChains; ++k) x[k] = _mm512_fmadd_ps(x[k], m, c);
  }
  for (int k = 1; k < kChains; ++k) x[0] = _mm512_add_ps(x[0], x[k]);
  alignas(64) float lanes[16];
  _mm512_store_ps(lanes, x[0]);
  sink = lanes[0];
  return 2.0 * 16 * kChains * kRounds;
}

__attribute__((target("avx2,fma"))) double avx2() {
  const __m256 m = _mm256_set1_ps(factor), c = _mm256_set1_ps(addend);
  __m256 x[kChains];
  for (int k = 0; k < kChains; ++k) x[k] = _mm256_set1_ps(static_cast<float>(k));
  for (long i = 0; i < kRounds; ++i) {
#pragma GCC unroll 12
    for (int k = 0; k < kChains; ++k) x[k] = _mm256_fmadd_ps(x[k], m, c);
  }
  for (int k = 1; k < kChains; ++k) x[0] = _mm256_add_ps(x[0], x[k]);
  alignas(32) float lanes[8];
  _mm256_store_ps(lanes, x[0]);
  sink = lanes[0];
  return 2.0 * 8 * kChains * kRounds;
}
#endif

// Vectors of 16 bytes: NEON, SSE and their like; contracted to fused multiply-adds where the target has them.
double portable() {
  using Vector = float __attribute__((vector_size(16)));
  const float m = factor, c = addend;
  Vector x[kChains];
  for (int k = 0; k < kChains; ++k) x[k] = Vector{} + static_cast<float>(k);
  for (long i = 0; i < kRounds; ++i) {
#pragma GCC unroll 12
    for (int k = 0; k < kChains; ++k) x[k] = x[k] * m + c;
  }
  for (int k = 1; k < kChains; ++k) x[0] += x[k];
  sink = x[0][0];
  return 2.0 * 4 * kChains * kRounds;
}

double thread_seconds() {
  timespec now;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

}  // namespace

int main(int argc, char** argv) {
  const int threads = argc > 1 ? std::max(1, std::atoi(argv[1])) : 1;
  const char* isa = "portable";
  double (*work)() = portable;
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f")) {
    isa = "avx512", work = avx512;
  } else if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    isa = "avx2", work = avx2;
  }
#endif
  std::vector<double> best(static_cast<std::size_t>(threads), 0.0);
  double wall_best = 0.0;
  for (int run = 0; run < 5; ++run) {
    std::atomic<int> waiting{threads};
    std::atomic<double> operations{0.0};
    std::vector<std::thread> pool;
    const auto start = std::chrono::steady_clock::now();
    for (int t = 0; t < threads; ++t) {
      pool.emplace_back([&, t] {
        --waiting;
        while (waiting > 0) std::this_thread::yield();
        const double before = thread_seconds(), done = work();
        auto& mine = best[static_cast<std::size_t>(t)];
        mine = std::max(mine, done / (thread_seconds() - before) * 1e-9);
        operations += done;
      });
    }
    for (auto& thread : pool) thread.join();
    const std::chrono::duration<double> wall = std::chrono::steady_clock::now() - start;
    wall_best = std::max(wall_best, operations / wall.count() * 1e-9);
  }
  std::printf("{\"isa\": \"%s\", \"gflops\": [", isa);
  for (std::size_t t = 0; t < best.size(); ++t) std::printf("%s%.1f", t ? ", " : "", best[t]);
  std::printf("], \"wall_gflops\": %.1f}\n", wall_best);
}
