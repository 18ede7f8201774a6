// The fitter's own memory, counted: every array it makes comes from here.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <memory>
#include <new>
#include <vector>

namespace splat2d {

// The most bytes that arrays of this library held at once, in all threads together, since reset_peak_bytes.
std::size_t peak_bytes();
void reset_peak_bytes();

// Memory aligned to cache lines; throws std::bad_alloc.
void* allocate_counted(std::size_t bytes);
void free_counted(void* memory, std::size_t bytes);

template <typename T>
struct CountingAllocator {
  using value_type = T;
  CountingAllocator() = default;
  template <typename U>
  CountingAllocator(const CountingAllocator<U>&) {}
  T* allocate(std::size_t count) { return static_cast<T*>(allocate_counted(count * sizeof(T))); }
  void deallocate(T* memory, std::size_t count) { free_counted(memory, count * sizeof(T)); }
  friend bool operator==(CountingAllocator, CountingAllocator) { return true; }
};

template <typename T>
using Vector = std::vector<T, CountingAllocator<T>>;

// An array of zeros, aligned to cache lines. Resizing forgets what it held.
template <typename T>
class Aligned {
 public:
  Aligned() = default;
  Aligned(const Aligned&) = delete;
  Aligned& operator=(const Aligned&) = delete;
  ~Aligned() { clear(); }

  void resize(std::size_t size) {
    clear();
    data_ = static_cast<T*>(allocate_counted(size * sizeof(T)));
    size_ = size;
    std::uninitialized_value_construct_n(data_, size);
  }
  void clear() {
    if (data_ != nullptr) free_counted(data_, size_ * sizeof(T));
    data_ = nullptr;
    size_ = 0;
  }
  T* data() { return data_; }
  const T* data() const { return data_; }
  std::size_t size() const { return size_; }

 private:
  T* data_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace splat2d
