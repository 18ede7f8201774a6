// Runs the threads of one block on the CPU, one block after the other: as fibres on one thread (fast, any order), or,
// with EMULATED_THREADS, as std::threads (for ThreadSanitizer). Only what the kernels need: whole warps, one block
// barrier. What CUDA leaves undefined ends the program: a thread that returns while others wait for it, lanes of a
// warp at different operations.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

struct dim3 {
  unsigned x, y, z;
  explicit dim3(unsigned columns = 1, unsigned rows = 1, unsigned layers = 1) : x(columns), y(rows), z(layers) {}
};

inline thread_local dim3 threadIdx, blockIdx, blockDim;

namespace emulated {

constexpr int kLanes = 32;

[[noreturn]] inline void fail(const char* what) {
  std::fprintf(stderr, "emulated CUDA: %s\n", what);
  std::_Exit(3);
}

inline long setting(const char* name, long otherwise) {
  const char* text = std::getenv(name);
  return text == nullptr || *text == '\0' ? otherwise : std::atol(text);
}

// What the lanes of a warp show each other: two generations, so that one barrier an exchange is enough.
struct Exchange {
  struct Slot {
    const char* operation;
    std::uint64_t value;
  };
  Slot slots[2][kLanes];
};

enum class Group { warp, block };

#if !defined(EMULATED_THREADS)

// Fibres. Which of the runnable ones goes on is decided by EMULATED_ORDER: 0 first come, first served; 1 the newest,
// so that one warp runs ahead as far as it can; above 1 at random from that seed.
struct Fiber {
#if defined(__x86_64__)
  void* stack_pointer;
#else
  ucontext_t context;
#endif
  std::unique_ptr<char[]> stack;
  unsigned thread;
  enum { ready, at_warp, at_block, done } state;
  unsigned generation;
};

constexpr std::size_t kStack = 128 << 10;

#if defined(__x86_64__)
extern "C" void emulated_switch(void** from, void* to);
__asm__(R"(
.text
.globl emulated_switch
.type emulated_switch,@function
emulated_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size emulated_switch,.-emulated_switch
)");
#endif

class Block {
 public:
  void run(unsigned threads, const std::function<void()>& body) {
    body_ = &body;
    count_ = threads;
    while (fibers_.size() < threads) add();
    exchange_.resize((threads + kLanes - 1) / kLanes);
    waiting_warp_.assign(exchange_.size(), 0);
    waiting_block_ = done_ = 0;
    ready_.clear();
    for (unsigned t = 0; t < threads; ++t) release(t);
    while (!ready_.empty()) resume(choose());
    if (done_ != threads) fail("threads of a block wait for others that have returned or wait elsewhere");
  }

  // Whether any thread said yes, at a block's barrier.
  bool wait(Group group, bool says_yes = false) {
    Fiber& self = *current_;
    if (group == Group::block) {
      self.state = Fiber::at_block;
      said_ |= says_yes;
      if (++waiting_block_ == count_) {
        waiting_block_ = 0;
        any_ = std::exchange(said_, false);
        for (unsigned t = 0; t < count_; ++t) release(t);
      }
    } else {
      self.state = Fiber::at_warp;
      const unsigned warp = self.thread / kLanes, first = warp * kLanes;
      const unsigned lanes = std::min<unsigned>(kLanes, count_ - first);
      if (++waiting_warp_[warp] == lanes) {
        waiting_warp_[warp] = 0;
        for (unsigned t = first; t < first + lanes; ++t) release(t);
      }
    }
    leave();
    return any_;
  }

  Exchange& exchange() { return exchange_[current_->thread / kLanes]; }
  unsigned next_generation() { return current_->generation++ & 1u; }

 private:
  void release(unsigned t) {
    fibers_[t]->state = Fiber::ready;
    ready_.push_back(t);
  }

  unsigned choose() {
    std::size_t at = 0;
    if (order_ == 1) at = ready_.size() - 1;
    if (order_ > 1) {
      state_ ^= state_ << 13, state_ ^= state_ >> 7, state_ ^= state_ << 17;
      at = state_ % ready_.size();
    }
    if (order_ == 0) {  // a queue: what is behind `head_` has run
      const unsigned t = ready_[head_++];
      if (head_ == ready_.size()) ready_.clear(), head_ = 0;
      return t;
    }
    std::swap(ready_[at], ready_.back());
    const unsigned t = ready_.back();
    ready_.pop_back();
    return t;
  }

  void resume(unsigned t) {
    current_ = fibers_[t].get();
    threadIdx = dim3(t);
    enter();
  }

  void loop() {
    for (;;) {
      current_->generation = 0;
      (*body_)();
      current_->state = Fiber::done;
      ++done_;
      leave();
    }
  }

#if defined(__SANITIZE_ADDRESS__)
  void enter() {
    void* fake = nullptr;
    __sanitizer_start_switch_fiber(&fake, current_->stack.get(), kStack);
    jump_in();
    __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
  }
  void leave() {
    void* fake = nullptr;
    __sanitizer_start_switch_fiber(&fake, main_bottom_, main_size_);
    jump_out();
    __sanitizer_finish_switch_fiber(fake, &main_bottom_, &main_size_);
  }
  static void begin() {
    __sanitizer_finish_switch_fiber(nullptr, &here_->main_bottom_, &here_->main_size_);
    here_->loop();
  }
  const void* main_bottom_ = nullptr;
  std::size_t main_size_ = 0;
#else
  void enter() { jump_in(); }
  void leave() { jump_out(); }
  static void begin() { here_->loop(); }
#endif

#if defined(__x86_64__)
  void jump_in() { here_ = this, emulated_switch(&main_, current_->stack_pointer); }
  void jump_out() { emulated_switch(&current_->stack_pointer, main_); }
  void prepare(Fiber& fiber) {
    // As emulated_switch leaves a stack: six registers, then where to go on. A function starts with its stack pointer
    // eight bytes off a multiple of 16.
    void** top = reinterpret_cast<void**>((reinterpret_cast<std::uintptr_t>(fiber.stack.get()) + kStack) & ~15ull) - 2;
    top[0] = reinterpret_cast<void*>(&Block::begin);
    top[1] = nullptr;
    fiber.stack_pointer = top - 6;
  }
  void* main_ = nullptr;
#else
  void jump_in() { here_ = this, swapcontext(&main_, &current_->context); }
  void jump_out() { swapcontext(&current_->context, &main_); }
  void prepare(Fiber& fiber) {
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = kStack;
    makecontext(&fiber.context, &Block::begin, 0);
  }
  ucontext_t main_;
#endif

  void add() {
    auto fiber = std::make_unique<Fiber>();
    fiber->stack.reset(new char[kStack]());
    fiber->thread = static_cast<unsigned>(fibers_.size());
    prepare(*fiber);
    fibers_.push_back(std::move(fiber));
  }

  inline static Block* here_ = nullptr;
  const std::function<void()>* body_ = nullptr;
  std::vector<std::unique_ptr<Fiber>> fibers_;
  std::vector<Exchange> exchange_;
  std::vector<unsigned> waiting_warp_, ready_;
  Fiber* current_ = nullptr;
  std::size_t head_ = 0;
  unsigned count_ = 0, waiting_block_ = 0, done_ = 0;
  bool said_ = false, any_ = false;
  const long order_ = setting("EMULATED_ORDER", 0);
  std::uint64_t state_ = static_cast<std::uint64_t>(setting("EMULATED_ORDER", 0)) * 0x9e3779b97f4a7c15ull + 1;
};

#else

// Threads that stay; the barriers count those that have returned, so that nobody waits for them in silence.
class Block {
 public:
  ~Block() {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      quit_ = true;
    }
    start_.notify_all();
    for (std::thread& thread : pool_) thread.join();
  }

  void run(unsigned threads, const std::function<void()>& body) {
    std::unique_lock<std::mutex> lock(mutex_);
    body_ = &body;
    block_index_ = blockIdx;
    block_size_ = blockDim;
    count_ = running_ = threads;
    exchange_.resize((threads + kLanes - 1) / kLanes);
    block_ = Gate{threads};
    warps_.clear();
    for (unsigned first = 0; first < threads; first += kLanes) {
      warps_.push_back(Gate{std::min<unsigned>(kLanes, threads - first)});
    }
    ++round_;
    while (pool_.size() < threads) {
      const unsigned t = static_cast<unsigned>(pool_.size());
      pool_.emplace_back([this, t, round = round_ - 1] { work(t, round); });
    }
    start_.notify_all();
    finished_.wait(lock, [this] { return running_ == 0; });
  }

  bool wait(Group group, bool says_yes = false) {
    std::unique_lock<std::mutex> lock(mutex_);
    Gate& gate = group == Group::block ? block_ : warps_[threadIdx.x / kLanes];
    if (running_ != count_ && group == Group::block) fail("a thread returned ahead of a __syncthreads");
    gate.said |= says_yes;
    if (++gate.arrived == gate.size) {
      gate.arrived = 0;
      gate.any = std::exchange(gate.said, false);
      ++gate.round;
      passed_.notify_all();
      return gate.any;
    }
    const unsigned round = gate.round;
    passed_.wait(lock, [&] { return gate.round != round; });
    return gate.any;
  }

  Exchange& exchange() { return exchange_[threadIdx.x / kLanes]; }
  unsigned next_generation() { return generation_++ & 1u; }

 private:
  struct Gate {
    unsigned size = 0, arrived = 0, round = 0;
    bool said = false, any = false;
  };

  void work(unsigned t, unsigned seen) {
    threadIdx = dim3(t);
    for (;;) {
      {
        std::unique_lock<std::mutex> lock(mutex_);
        start_.wait(lock, [&] { return quit_ || (round_ != seen && t < count_); });
        if (quit_) return;
        seen = round_;
        blockIdx = block_index_;
        blockDim = block_size_;
      }
      generation_ = 0;
      (*body_)();
      const std::lock_guard<std::mutex> lock(mutex_);
      if (block_.arrived > 0 || warps_[t / kLanes].arrived > 0) fail("a thread returned while others wait for it");
      if (--running_ == 0) finished_.notify_all();
    }
  }

  std::mutex mutex_;
  std::condition_variable start_, finished_, passed_;
  std::vector<std::thread> pool_;
  const std::function<void()>* body_ = nullptr;
  dim3 block_index_, block_size_;
  unsigned count_ = 0, running_ = 0, round_ = 0;
  bool quit_ = false;
  Gate block_;
  std::vector<Gate> warps_;
  std::vector<Exchange> exchange_;
  inline static thread_local unsigned generation_ = 0;
};

#endif

inline Block& block() {
  static Block one;
  return one;
}

// Every lane shows a value; returns what lane `from` of the warp showed.
struct Shown {
  const Exchange::Slot* slots;
};

template <typename T>
Shown show(const char* operation, unsigned mask, T value) {
  static_assert(sizeof(T) <= sizeof(std::uint64_t));
  if (mask != 0xffffffffu) fail("warp operations of part of a warp are not emulated");
  Exchange::Slot* slots = block().exchange().slots[block().next_generation()];
  Exchange::Slot& own = slots[threadIdx.x % kLanes];
  own.operation = operation;
  std::memcpy(&own.value, &value, sizeof(T));
  block().wait(Group::warp);
  if (slots[(threadIdx.x + 1) % kLanes].operation != operation) fail("lanes of a warp are at different operations");
  return {slots};
}

template <typename T>
T seen(const Shown& shown, unsigned lane) {
  T value;
  std::memcpy(&value, &shown.slots[lane].value, sizeof(T));
  return value;
}

}  // namespace emulated
