#include "memory.h"

#include <algorithm>
#include <atomic>

namespace splat2d {
namespace {

std::atomic<std::size_t> held{0}, peak{0};

}  // namespace

std::size_t held_bytes() { return held.load(); }

std::size_t peak_bytes() { return peak.load(); }

void reset_peak_bytes() { peak = held.load(); }

void* allocate_counted(std::size_t bytes) {
  void* const memory = std::aligned_alloc(64, (std::max<std::size_t>(bytes, 1) + 63) / 64 * 64);
  if (memory == nullptr) throw std::bad_alloc();
  const std::size_t now = held += bytes;
  for (std::size_t most = peak.load(); most < now && !peak.compare_exchange_weak(most, now);) continue;
  return memory;
}

void free_counted(void* memory, std::size_t bytes) {
  if (memory != nullptr) held -= bytes;
  std::free(memory);
}

}  // namespace splat2d
