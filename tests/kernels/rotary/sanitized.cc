// Runs the rotary cut on every line of standard input, "T N K H wide isa", with each operand in memory of its own that
// ends where the operand does, at an address that no vector is aligned to.

#include <cstdio>
#include <cstdlib>

#include "rotary/cpu_rotary.h"

namespace {

// `count` elements, one past an aligned address, so that the sanitizer sees the first byte read or written beyond.
template <typename E>
struct Elements {
  uint8_t* whole;
  explicit Elements(int64_t count) : whole((uint8_t*)malloc(count * sizeof(E) + 4)) {
    for (int64_t i = 0; i < (int64_t)(count * sizeof(E)); ++i) whole[4 + i] = (uint8_t)(rand() & 0x3f);
  }
  ~Elements() { free(whole); }
  E* data() { return (E*)(whole + 4); }
};

template <typename To>
void Run(Problem p, int64_t isa) {
  Elements<float> x(p.T * (p.N + 2 * p.K) * p.H), cos(p.T * p.H / 2), sin(p.T * p.H / 2);
  Elements<To> q(p.T * p.N * p.H), k(p.T * p.K * p.H), v(p.T * p.K * p.H);
  p.x = x.data(), p.cos = cos.data(), p.sin = sin.data(), p.q = q.data(), p.k = k.data(), p.v = v.data();
  Cut<To>(p, isa, 1, [](int64_t, int64_t n, const auto& f) {
    for (int64_t i = 0; i < n; ++i) f(i);
  });
}

}  // namespace

int main() {
  Problem p{};
  int wide, isa, done = 0;
  while (scanf("%ld %ld %ld %ld %d %d", &p.T, &p.N, &p.K, &p.H, &wide, &isa) == 6) {
    wide ? Run<float>(p, isa) : Run<Bf16>(p, isa);
    ++done;
  }
  printf("%d cuts\n", done);
}
