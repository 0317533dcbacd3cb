// Runs the C++ attention on every line of standard input, "N K H page_size window softcap wide_q page isa B" and for
// each sequence "new total", with each operand in memory of its own that ends where the operand does, at an address
// that no vector is aligned to.

#include <cstdio>
#include <cstdlib>
#include <vector>

#include "ragged_paged_attention/cpu_attention.h"

namespace {

// `count` elements of random bits, one past an aligned address, so that the sanitizer sees the first byte read or
// written beyond. Bits below 0x3f40 a half are finite numbers of every type.
template <typename E>
struct Elements {
  uint8_t* whole;
  explicit Elements(int64_t count) : whole((uint8_t*)malloc(count * sizeof(E) + 4)) {
    for (int64_t i = 0; i < (int64_t)(count * sizeof(E)); ++i) whole[4 + i] = (uint8_t)(rand() & 0x3f);
  }
  ~Elements() { free(whole); }
  E* data() { return (E*)(whole + 4); }
};

struct Sequence {
  int rows, total;
};

template <typename Q, typename Page>
std::string Run(Problem p, int64_t isa, const std::vector<Sequence>& sequences) {
  p.B = (int64_t)sequences.size(), p.T = 2;  // Two rows of padding.
  for (const Sequence& s : sequences) {
    p.T += s.rows, p.num_pages += (s.total + p.page_size - 1) / p.page_size;
    p.P = std::max(p.P, (s.total + p.page_size - 1) / p.page_size);
  }
  Elements<int32_t> starts(p.B + 1), lengths(p.B), table(p.B * p.P);
  starts.data()[0] = 0;
  int64_t last = p.num_pages;  // The first sequence has the last pages of the pool.
  for (int64_t b = 0; b < p.B; ++b) {
    starts.data()[b + 1] = starts.data()[b] + sequences[b].rows, lengths.data()[b] = sequences[b].total;
    for (int64_t i = 0; i < p.P; ++i)
      table.data()[b * p.P + i] = i * p.page_size < sequences[b].total ? (int32_t)--last : -1;
  }
  Elements<Q> q(p.T * p.N * p.H), k(p.T * p.K * p.H), v(p.T * p.K * p.H), out(p.T * p.N * p.H);
  constexpr bool int4 = std::is_same_v<Page, Int4>;
  Elements<Page> pages(p.num_pages * p.page_size * p.K * (int4 ? 1 : 2) * p.H);
  Elements<Bf16> scales(int4 ? p.num_pages * p.K * 2 * p.page_size : 0);
  constexpr bool units = kHasUnits<Page>;
  Elements<float> scales_of_channels(units ? p.K * 2 * p.H : 0);
  Elements<uint32_t> clipped(units ? p.K * 2 : 0);
  for (int64_t i = 0; i < (units ? p.K * 2 * p.H : 0); ++i) scales_of_channels.data()[i] = 0.03125f;
  p.units = scales_of_channels.data(), p.clipped = clipped.data();
  p.q = q.data(), p.k = k.data(), p.v = v.data(), p.pages = pages.data(), p.scales = scales.data(), p.out = out.data();
  p.query_starts = starts.data(), p.kv_lengths = lengths.data(), p.page_table = table.data();
  return Serve<Q, Page>(p, isa, 3, [](int64_t, int64_t n, const auto& f) {
    for (int64_t i = n; i-- > 0;) f(i);  // In another order than threads would take.
  });
}

template <typename Q>
std::string RunPages(const Problem& p, int64_t isa, long page, const std::vector<Sequence>& sequences) {
  if (page == 0) return Run<Q, float>(p, isa, sequences);
  if (page == 1) return Run<Q, Bf16>(p, isa, sequences);
  if (page == 2) return Run<Q, Int8>(p, isa, sequences);
  if (page == 3) return Run<Q, Float8>(p, isa, sequences);
  return Run<Q, Int4>(p, isa, sequences);
}

}  // namespace

int main() {
  long N, K, H, page_size, window, wide_q, page, isa, B, count = 0;
  double softcap;
  while (scanf("%ld %ld %ld %ld %ld %lf %ld %ld %ld %ld", &N, &K, &H, &page_size, &window, &softcap, &wide_q, &page, &isa,
               &B) == 10) {
    Problem p{};
    p.N = N, p.K = K, p.H = H, p.page_size = page_size, p.window = (int)window, p.softcap = (float)softcap;
    p.scale = 0.1f;
    std::vector<Sequence> sequences(B);
    for (Sequence& s : sequences)
      if (scanf("%d %d", &s.rows, &s.total) != 2) return 1;
    const std::string wrong = wide_q ? RunPages<float>(p, isa, page, sequences) : RunPages<Bf16>(p, isa, page, sequences);
    if (!wrong.empty()) return fprintf(stderr, "%s\n", wrong.c_str()), 1;
    ++count;
  }
  printf("%ld calls\n", count);
}
