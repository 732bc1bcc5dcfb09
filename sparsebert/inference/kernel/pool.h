// Threads that share one call, and the memory that calls work in.
//
// Workers are made on demand and kept. An idle worker spins for at most SPIN, then sleeps: an idle
// server burns no core. One call at a time has the workers; a call that finds them taken works alone
// on its own thread. After a fork the child begins with no workers.
#pragma once
#include <pthread.h>
#include <sched.h>
#include <sys/mman.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace sparsebert {

constexpr std::chrono::microseconds SPIN{50};

static inline void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Spins until `done()`; true if it came within SPIN.
template <typename F>
static bool spin(F&& done) {
  const auto end = std::chrono::steady_clock::now() + SPIN;
  for (;;) {
    for (int i = 0; i < 64; i++) {
      if (done()) return true;
      relax();
    }
    if (std::chrono::steady_clock::now() > end) return done();
  }
}

class Barrier {
 public:
  explicit Barrier(int parties) : parties_(parties) {}

  void wait() {
    if (parties_ == 1) return;
    const int round = round_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == parties_) {
      arrived_.store(0, std::memory_order_relaxed);
      round_.fetch_add(1, std::memory_order_release);
      return;
    }
    const auto passed = [&] { return round_.load(std::memory_order_acquire) != round; };
    while (!spin(passed)) sched_yield();  // another process may need the core to let us pass
  }

 private:
  const int parties_;
  std::atomic<int> arrived_{0}, round_{0};
};

// A growing block of memory on large pages.
class Scratch {
 public:
  Scratch() = default;
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() { std::free(data_); }

  // At least `floats` of it, not initialised; null without memory.
  float* get(uint64_t floats) {
    if (floats * 4 > bytes_) {
      std::free(data_);
      bytes_ = 0;
      const uint64_t wanted = (floats * 4 + PAGE - 1) / PAGE * PAGE;
      data_ = static_cast<float*>(std::aligned_alloc(PAGE, wanted));
      if (data_ == nullptr) return nullptr;
#ifdef MADV_HUGEPAGE
      madvise(data_, wanted, MADV_HUGEPAGE);
#endif
      bytes_ = wanted;
    }
    return data_;
  }

  uint64_t bytes() const { return bytes_; }

 private:
  static constexpr uint64_t PAGE = 2 << 20;
  float* data_ = nullptr;
  uint64_t bytes_ = 0;
};

// All that outlives a call. It is never destroyed: workers may still sleep in it at exit.
class State {
 public:
  static State& get() {
    static std::once_flag once;
    std::call_once(once, [] {
      current() = new State;
      pthread_atfork(nullptr, nullptr, [] { current() = new State; });
    });
    return *current();
  }

  // Runs work(index) for each index below `threads`, on as many threads at once.
  // False if the workers are taken: nothing ran.
  bool run(int threads, const std::function<void(int)>& work) {
    std::unique_lock<std::mutex> mine(busy_, std::try_to_lock);
    if (!mine.owns_lock() || !grow(threads - 1)) return false;
    remaining_.store(threads - 1, std::memory_order_relaxed);
    {
      std::lock_guard<std::mutex> lock(wake_mutex_);
      work_ = &work;
      wanted_ = threads - 1;
      generation_.fetch_add(1, std::memory_order_release);
    }
    wake_.notify_all();
    work(0);
    const auto finished = [&] { return remaining_.load(std::memory_order_acquire) == 0; };
    while (!spin(finished)) sched_yield();
    return true;
  }

  Scratch* borrow() {
    std::lock_guard<std::mutex> lock(scratch_mutex_);
    if (free_.empty()) return new Scratch;
    // The largest, so that few of them grow.
    auto best = free_.begin();
    for (auto i = free_.begin(); i != free_.end(); ++i)
      if ((*i)->bytes() > (*best)->bytes()) best = i;
    Scratch* found = *best;
    free_.erase(best);
    return found;
  }

  void give_back(Scratch* scratch) {
    std::lock_guard<std::mutex> lock(scratch_mutex_);
    free_.push_back(scratch);
  }

  // Bytes that were kept for later calls, now released.
  uint64_t release() {
    std::lock_guard<std::mutex> lock(scratch_mutex_);
    uint64_t bytes = 0;
    for (Scratch* scratch : free_) {
      bytes += scratch->bytes();
      delete scratch;
    }
    free_.clear();
    return bytes;
  }

 private:
  static State*& current() {
    static State* state = nullptr;
    return state;
  }

  bool grow(int workers) {
    try {
      while (static_cast<int>(workers_) < workers) {
        const int index = static_cast<int>(workers_);
        const uint64_t seen = generation_.load();
        std::thread([this, index, seen] { serve(index, seen); }).detach();
        workers_++;
      }
    } catch (const std::system_error&) {
      return false;
    }
    return true;
  }

  void serve(int index, uint64_t seen) {
    for (;;) {
      const auto called = [&] { return generation_.load(std::memory_order_acquire) != seen; };
      const std::function<void(int)>* work = nullptr;
      if (!spin(called)) {
        std::unique_lock<std::mutex> lock(wake_mutex_);
        wake_.wait(lock, called);
      }
      {
        std::lock_guard<std::mutex> lock(wake_mutex_);
        seen = generation_.load();
        if (index < wanted_) work = work_;
      }
      if (work == nullptr) continue;
      (*work)(index + 1);
      remaining_.fetch_sub(1, std::memory_order_release);
    }
  }

  std::mutex busy_, wake_mutex_, scratch_mutex_;
  std::condition_variable wake_;
  std::atomic<uint64_t> generation_{0};
  std::atomic<int> remaining_{0};
  const std::function<void(int)>* work_ = nullptr;
  int wanted_ = 0;
  size_t workers_ = 0;
  std::vector<Scratch*> free_;
};

class Borrowed {
 public:
  Borrowed() : scratch_(State::get().borrow()) {}
  Borrowed(const Borrowed&) = delete;
  Borrowed& operator=(const Borrowed&) = delete;
  ~Borrowed() { State::get().give_back(scratch_); }
  float* get(uint64_t floats) { return scratch_->get(floats); }

 private:
  Scratch* scratch_;
};

}  // namespace sparsebert
