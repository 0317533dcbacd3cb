// Parallel loop over XLA's own thread pool, for the CPU bodies.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <mutex>

#include "shares.h"
#include "xla/ffi/api/ffi.h"

namespace flexjax {

// Threads of the pool that have finished a loop and wait a moment for the next one. Waking a sleeping thread takes
// longer than many a product of a decoding step, and the next call is a few microseconds away.
class Crew {
 public:
  // One for the process: the linker and the loader keep a single copy for all libraries of kernels.
  static Crew& Get() {
    static Crew crew;
    return crew;
  }

  // Calls f(i) for every i in [0, n), on the caller and on at most `threads - 1` threads of the pool.
  //
  // The caller may itself be one of the pool's threads, so it never waits for a helper to *start*:
  // it takes indices like the others and then waits only for those that a helper has taken. A
  // helper that comes too late finds none left and touches nothing but the shared counters.
  template <typename F>
  void For(xla::ffi::ThreadPool& pool, int64_t threads, int64_t n, bool linger, const F& f) {
    const int64_t helpers = std::min(threads, n) - 1;
    if (helpers <= 0) {
      for (int64_t i = 0; i < n; ++i) f(i);
      return;
    }
    auto job = std::make_shared<Job>();
    job->n = n, job->linger = linger, job->body = &f;
    job->call = [](const void* body, int64_t i) { (*(const F*)body)(i); };
    int64_t missing;
    {
      const std::lock_guard<Spin> hold(lock_);
      job_ = job;
      job->number = number_.fetch_add(1, std::memory_order_release) + 1;
      missing = helpers - waiting_;
    }
    auto help = [job] { Get().Help(job); };
    for (; missing > 0; --missing) pool.Schedule(decltype(help)(help));  // It takes rvalues: a copy each.
    job->Work();
    while (job->done.load(std::memory_order_acquire) < n) FLEXJAX_PAUSE();
  }

 private:
  static constexpr std::chrono::microseconds kLinger{50};

  struct Spin {  // Held for a few instructions.
    std::atomic_flag flag = ATOMIC_FLAG_INIT;
    void lock() {
      while (flag.test_and_set(std::memory_order_acquire)) FLEXJAX_PAUSE();
    }
    void unlock() { flag.clear(std::memory_order_release); }
  };

  struct Job {
    std::atomic<int64_t> next{0}, done{0};
    int64_t n;
    uint64_t number;
    bool linger;
    const void* body;  // On the caller's stack: gone when all is done, and then no index is left.
    void (*call)(const void*, int64_t);

    void Work() {
      for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < n;) {
        call(body, i);
        done.fetch_add(1, std::memory_order_release);
      }
    }
  };

  void Help(std::shared_ptr<Job> job) {
    do job->Work();
    while (job->linger && (job = Next(job->number)));
  }

  // The job after `seen`, or null when none came in time.
  std::shared_ptr<Job> Next(uint64_t seen) {
    {
      const std::lock_guard<Spin> hold(lock_);
      ++waiting_;
    }
    const auto end = std::chrono::steady_clock::now() + kLinger;
    while (number_.load(std::memory_order_acquire) == seen && std::chrono::steady_clock::now() < end)
      for (int i = 0; i < 4 && number_.load(std::memory_order_acquire) == seen; ++i) FLEXJAX_PAUSE();
    const std::lock_guard<Spin> hold(lock_);
    --waiting_;
    return number_.load(std::memory_order_relaxed) == seen ? nullptr : job_;
  }

  Spin lock_;
  std::atomic<uint64_t> number_{0};  // Of the newest job.
  std::shared_ptr<Job> job_;
  int64_t waiting_ = 0;
};

template <typename F>
void ParallelFor(xla::ffi::ThreadPool& pool, int64_t threads, int64_t n, const F& f, bool linger = true) {
  Crew::Get().For(pool, threads, n, linger, f);
}

}  // namespace flexjax
