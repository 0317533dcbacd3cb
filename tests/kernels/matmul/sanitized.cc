// Runs the C++ product on every line of standard input, "T D F format int8_rows x_wide gated isa", with each operand in
// memory of its own that ends where the operand does, at an address that no vector is aligned to.

#include <cstdio>
#include <cstdlib>
#include <vector>

#include "matmul/cpu_product.h"

namespace {

// `bytes` of random bits, one past an aligned address, so that the sanitizer sees the first byte read or written beyond.
struct Bytes {
  uint8_t *whole, *data;
  explicit Bytes(int64_t bytes, bool wide = false) : whole((uint8_t*)malloc(bytes + 4)), data(whole + 4) {
    for (int64_t i = 0; i < bytes; ++i) data[i] = (uint8_t)(rand() & (wide ? 0x3f : 0xff));
  }
  ~Bytes() { free(whole); }
};

}  // namespace

int main() {
  long T, D, F, format, int8_rows, x_wide, gated, isa, count = 0;
  while (scanf("%ld %ld %ld %ld %ld %ld %ld %ld", &T, &D, &F, &format, &int8_rows, &x_wide, &gated, &isa) == 8) {
    Product p{};
    p.T = T, p.D = D, p.F = F, p.format = (Format)format, p.int8_rows = int8_rows, p.x_wide = p.out_wide = x_wide;
    p.gated = gated, p.activation = gated ? kSilu : kNone, p.eps = 1e-5f;
    const int64_t panels = (F + kPanel - 1) / kPanel;
    const int64_t chunks = (D + ElementsOfChunk(p.format) - 1) / ElementsOfChunk(p.format);
    const int64_t scales = p.format == kInt4 ? panels * chunks * kPanel : panels * kPanel, size = x_wide ? 4 : 2;
    // Bits below 0x3f40 a half: finite numbers of every format.
    Bytes x(T * D * size, true), norm(4 * D, true), scale(4 * scales, true), bias(4 * panels * kPanel, true);
    Bytes weight(panels * chunks * BytesOfChunk(p.format), p.format <= kBfloat16);
    Bytes residual(T * p.columns() * size, true), out(T * p.columns() * size);
    p.x = x.data, p.norm = (const float*)norm.data, p.weight = weight.data;
    p.scale = (const float*)scale.data, p.bias = (const float*)bias.data;
    p.residual = residual.data, p.out = out.data;
    Run(p, isa, 3, [](int64_t, int64_t n, const auto& f) {
      for (int64_t i = n; i-- > 0;) f(i);  // In another order than threads would take.
    });
    ++count;
  }
  printf("%ld products\n", count);
}
