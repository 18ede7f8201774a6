#include "memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <atomic>

namespace splat2d {
namespace {

std::atomic<std::size_t> held{0}, peak{0};

constexpr std::size_t kHuge = 2 << 20;  // Linux backs such arrays with huge pages when asked: fewer misses at 2048 px

}  // namespace

std::size_t peak_bytes() { return peak.load(); }

void reset_peak_bytes() { peak = held.load(); }

void* allocate_counted(std::size_t bytes) {
  void* memory = nullptr;
  if (posix_memalign(&memory, bytes >= kHuge ? kHuge : 64, std::max<std::size_t>(bytes, 64)) != 0) {
    throw std::bad_alloc();
  }
  if (bytes >= kHuge) madvise(memory, bytes / kHuge * kHuge, MADV_HUGEPAGE);
  const std::size_t now = held += bytes;
  for (std::size_t most = peak.load(); most < now && !peak.compare_exchange_weak(most, now);) continue;
  return memory;
}

void free_counted(void* memory, std::size_t bytes) {
  if (memory != nullptr) held -= bytes;
  std::free(memory);
}

}  // namespace splat2d
