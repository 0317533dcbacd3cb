// Rows times a packed weight, with what stands before it (RMSNorm) and after it (bias, activation, residual).
//
// A weight is packed in panels of 32 output columns. A panel is a list of chunks along the summed axis, a chunk two
// tiles of 16 columns, a tile 16 lines (4 for int4) of 64 bytes, and a line has 32 bits a column: 1 float32,
// 2 bfloat16, 4 int8 or 8 int4 elements that follow each other along the summed axis. That is the form in which AMX
// multiplies bfloat16 and int8; int4 lies in the order in which one shift and one table turn it into bfloat16.
//
// Each row is computed by itself, in one order of its sums, whatever stands beside it: alone and in company its
// result is the same to the bit.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

#include "shares.h"
#include "tiles.h"
#include "vectors.h"

namespace {

enum Format { kFloat32, kBfloat16, kInt8, kInt4 };
enum Activation { kNone, kSilu, kGeluTanh };
enum InstructionSet { kBaseline, kAvx2, kAvx512, kAvx512Bf16, kAmx };

constexpr int kPanel = 32;         // output columns
constexpr int kLine = 64;          // bytes
constexpr int kBlock = 32;         // rows that are multiplied with a panel at once, at most
constexpr int64_t kSumBytes = 6 * kBlock * kPanel * 4;  // The sums of two blocks, and of four groups apart.
constexpr int kManyRows = 256;     // rows of a task, at most, …
constexpr int64_t kRowBytes = 768 << 10;  // … and their bytes: they stay in the second cache, panels pass through it
constexpr int64_t kAhead = 8192;   // bytes of a weight that are asked for ahead of their use …
constexpr int64_t kSoon = 2048;    // … and once more
constexpr int kTogether = 16;      // rows that are prepared together
// Up to so many rows are quicker without AMX: its tiles are slow to load from memory, unless they are widened first.
constexpr int FewRows(Format f, bool int8_rows) { return int8_rows || f == kBfloat16 ? 4 : 2; }

constexpr int ElementsOfLine(Format f) { return 1 << f; }
constexpr int LinesOfTile(Format f) { return f == kInt4 ? 4 : 16; }
constexpr int ElementsOfChunk(Format f) { return ElementsOfLine(f) * LinesOfTile(f); }
constexpr int64_t BytesOfChunk(Format f) { return 2 * kLine * LinesOfTile(f); }

struct Product {
  const void* x;  // [T, D], float32 or bfloat16
  bool x_wide;
  int64_t T, D, F;         // F: columns of the product, gates included
  const float* norm;       // [D]: rows are RMS-normalised and multiplied with it first; or null
  float eps;
  Format format;
  bool int8_rows;          // Rows are rounded to int8 for the product.
  const uint8_t* weight;   // [panels, chunks, …]
  const float* scale;      // int8: [panels, 32]; int4: [panels, chunks, 32]
  const float* bias;       // [panels, 32] or null
  const void* residual;    // [T, columns], of the result's type, or null
  void* out;               // [T, columns]
  bool out_wide;
  Activation activation;
  bool gated;              // A panel is 16 gates and the 16 values that they multiply: half the columns.

  int64_t panels, chunks;  // What follows is made by `Run`.
  float* floats;           // [T, inputs]: the rows, padded, where they are multiplied as such
  uint8_t* lines;          // The rows in lines of 64 bytes: [blocks of 16 rows, lines of a row, 16, 64]
  int64_t lines_of_row;
  float* row_scale;        // [T], of int8 rows
  int32_t* row_sum;        // [T, sums_of_row], of int8 rows

  int64_t inputs() const { return chunks * ElementsOfChunk(format); }
  int64_t sums_of_row() const { return format == kInt4 ? chunks : 1; }
  int64_t columns() const { return gated ? F / 2 : F; }
  int64_t panel_bytes() const { return chunks * BytesOfChunk(format); }
};

struct Task {
  int64_t panel, panels, row, rows;
};

// How rows are handed to the multiplication.
enum RowForm { kFloats, kBf16Lines, kInt8Lines };

struct Body {
  RowForm form;
  void (*prepare)(const Product&, RowForm, int64_t row, float* scratch);
  void (*multiply)(const Product&, const Task&, uint8_t* scratch);
};

INLINE uint8_t* LineOfRow(const Product& p, int64_t row, int64_t line) {
  return p.lines + ((row / 16 * p.lines_of_row + line) * 16 + row % 16) * kLine;
}

namespace baseline {
constexpr int W = 4, kRows = 1;
#include "vectors.inc"
#include "cpu_rows.inc"
}  // namespace baseline

#if defined(__x86_64__)
FLEXJAX_TARGET_BEGIN("avx2,fma")
namespace avx2 {
constexpr int W = 8, kRows = 2;
#define FLEXJAX_FMA _mm256_fmadd_ps
#include "vectors.inc"
#include "cpu_rows.inc"
#undef FLEXJAX_FMA
}  // namespace avx2
FLEXJAX_TARGET_END

FLEXJAX_TARGET_BEGIN("avx2,fma,avx512f,avx512vl,avx512bw,avx512dq,avx512vnni")
namespace avx512 {
constexpr int W = 16, kRows = 4;
#define FLEXJAX_FMA _mm512_fmadd_ps
#define FLEXJAX_VNNI
#include "vectors.inc"
#include "cpu_rows.inc"
#undef FLEXJAX_VNNI
#undef FLEXJAX_FMA
#include "cpu_widen.inc"
#include "cpu_amx.inc"
}  // namespace avx512
FLEXJAX_TARGET_END

FLEXJAX_TARGET_BEGIN("avx2,fma,avx512f,avx512vl,avx512bw,avx512dq,avx512vnni,avx512bf16")
namespace avx512 {
#include "cpu_dots.inc"
}  // namespace avx512
FLEXJAX_TARGET_END
#endif

inline InstructionSet Best(int64_t wanted) {
#if defined(__x86_64__)
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vnni");
  if (wanted >= kAmx && avx512 && AmxAllowed()) return kAmx;
  if (wanted >= kAvx512Bf16 && avx512 && __builtin_cpu_supports("avx512bf16")) return kAvx512Bf16;
  if (wanted >= kAvx512 && avx512) return kAvx512;
  if (wanted >= kAvx2 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return kAvx2;
#endif
  return kBaseline;
}

inline Body Pick(const Product& p, int64_t wanted) {
  const InstructionSet isa = Best(wanted);
  const RowForm form = p.int8_rows ? kInt8Lines : kFloats;
#if defined(__x86_64__)
  const bool halves = !p.int8_rows && !p.x_wide && p.format != kFloat32;
  if (isa == kAmx && p.T > FewRows(p.format, p.int8_rows) && (p.int8_rows || halves))
    return {p.int8_rows ? kInt8Lines : kBf16Lines, avx512::Prepare, avx512::MultiplyTiles};
  if (isa == kAvx512Bf16 && halves) return {kBf16Lines, avx512::Prepare, avx512::MultiplyPairs};
  if (isa >= kAvx512) return {form, avx512::Prepare, avx512::Multiply};
  if (isa == kAvx2) return {form, avx2::Prepare, avx2::Multiply};
#endif
  return {form, baseline::Prepare, baseline::Multiply};
}

inline uint32_t ReadBytes(const uint8_t* from, int64_t bytes) {
#if defined(__x86_64__)
  if (Best(kAmx) >= kAvx512) return avx512::Read(from, bytes);
  if (Best(kAmx) >= kAvx2) return avx2::Read(from, bytes);
#endif
  return baseline::Read(from, bytes);
}

// Memory of one thread, kept from call to call, from a cache line on.
inline uint8_t* Aligned(std::vector<uint8_t>& buffer, int64_t bytes) {
  if ((int64_t)buffer.size() < bytes + kLine) buffer.resize(bytes + kLine);
  return (uint8_t*)(((uintptr_t)buffer.data() + kLine - 1) / kLine * kLine);
}

// A task's memory: sums of blocks of rows, and a panel widened to bfloat16 or, before that, a row widened to float32.
inline int64_t ScratchBytes(const Product& p) { return kSumBytes + p.inputs() * kPanel * 2; }

constexpr int64_t kShareBytes = 96 << 10;  // A call that reads less is not worth another thread's wake-up …
constexpr int64_t kShareProducts = 4 << 20;  // … unless it multiplies more.
constexpr int64_t kStepBytes = 32 << 10;     // Weight bytes that a thread takes at once, about …
constexpr int64_t kStepPanels = 4;           // … or panels, of many rows: between tasks nothing goes on beside products.

// Computes `p.out`. `parallel(threads, n, f)` calls f(0) … f(n - 1), on at most so many threads.
template <typename Parallel>
void Run(Product p, int64_t isa, int64_t threads, const Parallel& parallel) {
  thread_local std::vector<uint8_t> own_rows;
  p.panels = (p.F + kPanel - 1) / kPanel;
  p.chunks = (p.D + ElementsOfChunk(p.format) - 1) / ElementsOfChunk(p.format);
  const Body body = Pick(p, isa);
  const int64_t padded = (p.T + 15) / 16 * 16, inputs = p.inputs();
  p.lines_of_row = body.form == kFloats ? 0 : (inputs * (body.form == kBf16Lines ? 2 : 1) + kLine - 1) / kLine;
  const int64_t float_bytes = body.form == kFloats ? p.T * inputs * 4 : 0, line_bytes = padded * p.lines_of_row * kLine;
  const int64_t sum_bytes = p.int8_rows ? padded * p.sums_of_row() * 4 : 0;
  uint8_t* memory = Aligned(own_rows, line_bytes + padded * 4 + sum_bytes + float_bytes);
  p.lines = memory, p.row_scale = (float*)(memory + line_bytes), p.row_sum = (int32_t*)p.row_scale + padded;
  p.floats = (float*)((uint8_t*)p.row_sum + sum_bytes);

  const int64_t bytes = p.panels * p.panel_bytes();
  if (bytes < kShareBytes && bytes * p.T < kShareProducts) threads = 1;
  // A unit of work is a panel for up to `many` rows. Whoever needs rows first prepares them, into a cache of its own.
  const int64_t fitting = p.lines_of_row ? kRowBytes / (p.lines_of_row * kLine) / kBlock * kBlock : kManyRows;
  const int64_t many = std::clamp<int64_t>(fitting, kBlock, kManyRows), blocks = (p.T + many - 1) / many;
  const int64_t step = std::max(kStepBytes / p.panel_bytes(), p.T > kBlock ? kStepPanels : 1);
  const int64_t shares = std::min(threads, blocks * p.panels);
  flexjax::Shares work(blocks * p.panels, shares);
  flexjax::Once prepared((p.T + kTogether - 1) / kTogether);
  parallel(threads, shares, [&](int64_t own) {
    thread_local std::vector<uint8_t> own_scratch;
    uint8_t* scratch = Aligned(own_scratch, ScratchBytes(p));
    for (flexjax::Range run; (run = work.Take(own, step)).count > 0;)
      for (int64_t unit = run.first, end = run.first + run.count, count; unit < end; unit += count) {
        const int64_t row = unit / p.panels * many, panel = unit % p.panels;
        const int64_t rows = std::min(many, p.T - row);
        count = std::min(end - unit, p.panels - panel);
        prepared.Need(row / kTogether, (row + rows + kTogether - 1) / kTogether, [&](int64_t i) {
          for (int64_t r = kTogether * i; r < std::min(p.T, kTogether * (i + 1)); ++r)
            body.prepare(p, body.form, r, (float*)(scratch + kSumBytes));
        });
        body.multiply(p, {panel, count, row, rows}, scratch);
      }
  });
}

}  // namespace
