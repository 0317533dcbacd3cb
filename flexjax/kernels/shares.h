// Work divided among threads, for the CPU bodies that read much memory once.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <vector>

#if defined(__x86_64__)
#define FLEXJAX_PAUSE() __builtin_ia32_pause()
#elif defined(__aarch64__)
#define FLEXJAX_PAUSE() asm volatile("yield")
#else
#define FLEXJAX_PAUSE() ((void)0)
#endif

namespace flexjax {

struct Range {
  int64_t first, count;
};

// Units 0 … n - 1 in contiguous shares. A thread takes those of its own share from the front, so that it reads memory
// in one long run and what it asks for ahead is its own; then, so that all end together, those of others from the back.
class Shares {
 public:
  Shares(int64_t units, int64_t shares) : shares_(shares) {
    for (int64_t i = 0; i < shares; ++i)
      shares_[i].left.store(Bits(units * i / shares, units * (i + 1) / shares), std::memory_order_relaxed);
  }

  // Up to `most` units; none when nothing is left. The caller sees to it that results reach whoever waits for all.
  Range Take(int64_t own, int64_t most) {
    Range taken = shares_[own].Take(most, true);
    while (taken.count == 0) {
      Share& other = *std::max_element(shares_.begin(), shares_.end(),
                                       [](const Share& a, const Share& b) { return a.Left() < b.Left(); });
      if (other.Left() == 0) break;
      taken = other.Take(most, false);
    }
    return taken;
  }

 private:
  static uint64_t Bits(int64_t first, int64_t end) { return (uint64_t)first | (uint64_t)end << 32; }

  struct alignas(64) Share {
    std::atomic<uint64_t> left{0};  // First unit in the lower half, end in the upper.

    int64_t Left() const {
      const uint64_t bits = left.load(std::memory_order_relaxed);
      return (int64_t)(bits >> 32) - (int64_t)(uint32_t)bits;
    }
    Range Take(int64_t most, bool front) {
      uint64_t bits = left.load(std::memory_order_relaxed);
      for (;;) {
        const int64_t first = (uint32_t)bits, end = (int64_t)(bits >> 32), count = std::min(most, end - first);
        if (left.compare_exchange_weak(bits, front ? Bits(first + count, end) : Bits(first, end - count),
                                       std::memory_order_relaxed))
          return {front ? first : end - count, count};
      }
    }
  };

  std::vector<Share> shares_;
};

// Units 0 … n - 1, each made once, by whichever thread needs it first.
class Once {
 public:
  explicit Once(int64_t units) : state_(units) {
    for (auto& state : state_) state.store(kMissing, std::memory_order_relaxed);
  }

  // Calls make(i) for those of [first, end) that no thread has begun, and waits for the others.
  template <typename F>
  void Need(int64_t first, int64_t end, const F& make) {
    for (int64_t i = first; i < end; ++i) {
      char missing = kMissing;
      if (state_[i].load(std::memory_order_relaxed) != kMissing ||
          !state_[i].compare_exchange_strong(missing, kBegun, std::memory_order_relaxed))
        continue;
      make(i);
      state_[i].store(kMade, std::memory_order_release);
    }
    for (int64_t i = first; i < end; ++i)
      while (state_[i].load(std::memory_order_acquire) != kMade) FLEXJAX_PAUSE();
  }

 private:
  static constexpr char kMissing = 0, kBegun = 1, kMade = 2;
  std::vector<std::atomic<char>> state_;
};

}  // namespace flexjax
