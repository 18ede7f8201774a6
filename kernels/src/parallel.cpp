#include "parallel.h"

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace splat2d {
namespace {

void flush_denormals() {
#if defined(__x86_64__)
  _mm_setcsr(_mm_getcsr() | 0x8040u);  // flush to zero, denormals are zero
#elif defined(__aarch64__)
  std::uint64_t mode;
  __asm__ volatile("mrs %0, fpcr" : "=r"(mode));
  __asm__ volatile("msr fpcr, %0" : : "r"(mode | (1ull << 24)));
#endif
}

}  // namespace

int thread_count(int threads, int count) {
  if (threads <= 0) {
    cpu_set_t set;
    CPU_ZERO(&set);
    threads = sched_getaffinity(0, sizeof(set), &set) == 0 ? CPU_COUNT(&set)
                                                           : static_cast<int>(std::thread::hardware_concurrency());
  }
  return std::max(1, std::min(threads, count));
}

bool parallel(int count, int threads, const std::function<void(int, int, const Stopped&)>& body, const Poll& poll) {
  const int workers = thread_count(threads, count);
  std::atomic<int> next{0}, done{0}, running{workers};
  std::atomic<bool> stop{false};
  std::mutex mutex;
  std::condition_variable changed;
  std::exception_ptr failure;
  const Stopped stopped = [&] { return stop.load(std::memory_order_relaxed); };

  std::vector<std::thread> pool;
  auto work = [&](int worker) {
    flush_denormals();
    try {
      for (int i = next++; i < count && !stop; i = next++) {
        body(worker, i, stopped);
        ++done;
      }
    } catch (...) {
      const std::lock_guard<std::mutex> lock(mutex);
      if (!failure) failure = std::current_exception();
      stop = true;
    }
    const std::lock_guard<std::mutex> lock(mutex);
    --running;
    changed.notify_one();
  };
  for (int worker = 0; worker < workers; ++worker) pool.emplace_back(work, worker);

  bool finished = true;
  {
    std::unique_lock<std::mutex> lock(mutex);
    while (running > 0) {
      changed.wait_for(lock, std::chrono::milliseconds(50));
      if (running > 0 && finished && poll) {
        lock.unlock();
        if (!poll(done)) {
          finished = false;
          stop = true;
        }
        lock.lock();
      }
    }
  }
  for (std::thread& thread : pool) thread.join();
  if (failure) std::rethrow_exception(failure);
  if (finished && poll) finished = poll(done);
  return finished;
}

}  // namespace splat2d
