// Queries, keys and values cut out of one float32 product, and turned by their positions.
#pragma once

#include <algorithm>
#include <cstdint>

#include "vectors.h"

namespace {

struct Problem {
  const float *x, *cos, *sin;  // [T, N + 2 K, H]; [T, H / 2]
  void *q, *k, *v;             // [T, N, H], [T, K, H], [T, K, H]
  int64_t T, N, K, H;
};

constexpr int64_t kRowsOfTask = 16;
constexpr int64_t kShareElements = 32'768;  // Below it another thread costs more than it saves.

// Dimensions i and i + H / 2 of each head of a row, turned by its angle.
template <typename To>
INLINE void Turn(const float* x, const float* cos, const float* sin, int64_t heads, int64_t H, To* to) {
  const int64_t half = H / 2;
  for (int64_t head = 0; head < heads; ++head, x += H, to += H)
    for (int64_t i = 0; i < half; ++i) {
      const float first = x[i], second = x[i + half];
      Narrow(first * cos[i] - second * sin[i], to + i);
      Narrow(second * cos[i] + first * sin[i], to + i + half);
    }
}

template <typename To>
INLINE void CutRows(const Problem& p, int64_t first, int64_t end) {
  const int64_t queries = p.N * p.H, keys = p.K * p.H;
  for (int64_t t = first; t < end; ++t) {
    const float *x = p.x + t * (queries + 2 * keys), *cos = p.cos + t * (p.H / 2), *sin = p.sin + t * (p.H / 2);
    Turn(x, cos, sin, p.N, p.H, (To*)p.q + t * queries);
    Turn(x + queries, cos, sin, p.K, p.H, (To*)p.k + t * keys);
    for (int64_t i = 0; i < keys; ++i) Narrow(x[queries + keys + i], (To*)p.v + t * keys + i);
  }
}

template <typename To>
void Baseline(const Problem& p, int64_t first, int64_t end) {
  CutRows<To>(p, first, end);
}

#if defined(__x86_64__)
FLEXJAX_TARGET_BEGIN("avx2,fma")
template <typename To>
void Avx2(const Problem& p, int64_t first, int64_t end) {
  CutRows<To>(p, first, end);
}
FLEXJAX_TARGET_END

FLEXJAX_TARGET_BEGIN("avx2,fma,avx512f,avx512vl,avx512bw,avx512dq")
template <typename To>
void Avx512(const Problem& p, int64_t first, int64_t end) {
  CutRows<To>(p, first, end);
}
FLEXJAX_TARGET_END
#endif

enum InstructionSet { kBaseline, kAvx2, kAvx512 };

// The best that the processor has, up to the one wanted.
template <typename To>
auto Pick(int64_t wanted) {
#if defined(__x86_64__)
  if (wanted >= kAvx512 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq"))
    return Avx512<To>;
  if (wanted >= kAvx2 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return Avx2<To>;
#endif
  return Baseline<To>;
}

// All rows, with `parallel(threads, n, f)` to call f(0) … f(n - 1) on at most so many threads.
template <typename To, typename Parallel>
void Cut(const Problem& p, int64_t isa, int64_t most_threads, const Parallel& parallel) {
  const auto rows = Pick<To>(isa);
  const int64_t threads = p.T * (p.N + 2 * p.K) * p.H < kShareElements ? 1 : most_threads;
  parallel(threads, (p.T + kRowsOfTask - 1) / kRowsOfTask, [&](int64_t i) {
    rows(p, i * kRowsOfTask, std::min((i + 1) * kRowsOfTask, p.T));
  });
}

}  // namespace
