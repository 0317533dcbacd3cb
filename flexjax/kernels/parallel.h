// Parallel loop over XLA's own thread pool, for the CPU bodies.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>

#include "xla/ffi/api/ffi.h"

#if defined(__x86_64__)
#define FLEXJAX_PAUSE() __builtin_ia32_pause()
#elif defined(__aarch64__)
#define FLEXJAX_PAUSE() asm volatile("yield")
#else
#define FLEXJAX_PAUSE() ((void)0)
#endif

namespace flexjax {

// Calls f(i) for every i in [0, n), on the caller and on at most `threads - 1` threads of the pool.
//
// The caller may itself be one of the pool's threads, so it never waits for a helper to *start*:
// it takes indices like the others and then waits only for those that a helper has taken. A
// helper that comes too late finds none left and touches nothing but the shared counters.
template <typename F>
void ParallelFor(xla::ffi::ThreadPool& pool, int64_t threads, int64_t n, const F& f) {
  const int64_t helpers = std::min(threads, n) - 1;
  if (helpers <= 0) {
    for (int64_t i = 0; i < n; ++i) f(i);
    return;
  }
  struct Counters {
    std::atomic<int64_t> next{0}, done{0};
  };
  auto counters = std::make_shared<Counters>();
  auto work = [counters, n, body = &f] {
    for (int64_t i; (i = counters->next.fetch_add(1, std::memory_order_relaxed)) < n;) {
      (*body)(i);
      counters->done.fetch_add(1, std::memory_order_release);
    }
  };
  for (int64_t h = 0; h < helpers; ++h) pool.Schedule(decltype(work)(work));  // It takes rvalues: a copy each.
  work();
  while (counters->done.load(std::memory_order_acquire) < n) FLEXJAX_PAUSE();
}

}  // namespace flexjax
