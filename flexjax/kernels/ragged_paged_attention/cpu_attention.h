// Ragged paged attention on the CPU.
//
// A task is some kv heads of some rows of one sequence over some of its positions; tasks run on as many threads as there
// are, or on the calling thread alone where the whole is too small to share. Which tasks there are changes no result:
// see cpu_attend.inc and cpu_tiles.inc.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "tiles.h"
#include "vectors.h"

namespace {

constexpr int kTile = 32;         // tokens whose scores are held at once
constexpr int kSpan = 512;        // tokens of one online softmax; spans are merged in order
constexpr int kMaxQueries = 64;   // query vectors (rows * G) that share a tile of cpu_attend.inc …
constexpr int kTileQueries = 384; // … and a packed span of cpu_tiles.inc,
constexpr int kBlockQueries = 32; // of which so many are multiplied at once
constexpr int kFewQueries = 4;    // up to so many read the tokens in place
constexpr float kNoScore = -1e30f;

struct Int4 {  // A channel of a token: the key in the lower four bits, the value in the upper four.
  int8_t both;
};

struct Problem {
  const void *q, *k, *v;  // [T, N, H], [T, K, H], [T, K, H]
  void *pages, *out;      // [num_pages, page_size, K, 2, H] or of int4 [num_pages, K, page_size, H]; [T, N, H]
  Bf16* scales;           // Of int4 pages: [num_pages, K, 2, page_size].
  const float* units;     // Of int8 and float8 pages, powers of two: [K, 2, H].
  uint32_t* clipped;      // Numbers beyond the largest of these pages: [K, 2].
  const int32_t *query_starts, *kv_lengths, *page_table;  // [B + 1], [B], [B, P]
  int64_t T, N, K, H, B, P, page_size, num_pages;
  float scale, softcap;  // softcap 0: none
  int window;            // 0: none
  float* parts;          // Unfinished softmaxes of tasks that share rows.
};

// Pages whose channels have units of their own. The bodies know nothing of them: queries come to them times the units of
// keys, and what they write is multiplied by those of values, in the place of both, `out`.
template <typename Page>
constexpr bool kHasUnits = std::is_same_v<Page, Int8> || std::is_same_v<Page, Float8>;

struct Task {  // Attention of some heads of consecutive rows of one sequence to some of its positions.
  int sequence;
  int row, rows, position;  // First row, how many, position of the first.
  int head, heads;          // Of the kv heads.
  int begin, end;           // Positions to attend to.
  int64_t part;             // Where several tasks share the positions of these rows: this one's place in
                            // `parts`; else -1.
};

int64_t PaddedH(const Problem& p) { return (p.H + 31) / 32 * 32; }

// Floats of an unfinished softmax: values, sixteen partial totals, and the highest score.
int64_t SoftmaxFloats(const Problem& p, int64_t queries) { return queries * (PaddedH(p) + 17); }

int64_t ScratchFloats(const Problem& p, const Task& t) {
  const int64_t queries = t.rows * (p.N / p.K), all = queries * t.heads;
  return all * PaddedH(p) + 2 * SoftmaxFloats(p, all) + queries * kTile + kTile * 2 * PaddedH(p) + 5 * 16;
}

bool SameRows(const Task& a, const Task& b) { return a.row == b.row && a.head == b.head; }

// Tokens of a task's longest span, in whole tiles.
int64_t SpanTokens(const Task& t) {
  const int begin = t.begin / kTile * kTile, tokens = (t.end - begin + kTile - 1) / kTile * kTile;
  return std::min(tokens, kSpan);
}

int64_t TileScratchFloats(const Problem& p, const Task& t) {
  const int64_t queries = t.rows * (p.N / p.K), H = PaddedH(p), block = std::min<int64_t>(queries, kBlockQueries);
  const int64_t tokens = SpanTokens(t) * H + kTile * H + H / 2;
  const int64_t scores = (queries > kBlockQueries ? 2 : 1) * block * (kSpan + 16);
  return std::max<int64_t>(queries, kFewQueries) * H / 2 + scores + tokens + SoftmaxFloats(p, queries) +
         2 * SoftmaxFloats(p, block) + 2 * kSpan + 11 * 16;
}

struct Body {
  void (*attend)(const Problem&, const Task&, float* scratch);
  void (*join)(const Problem&, const Task* parts, int count);
  int64_t (*scratch)(const Problem&, const Task&);  // Floats.
  int64_t queries;                                  // Of a head's rows in one task, at most.
};

struct Units {
  void (*into)(const Problem&, int64_t row, void* to) = nullptr;  // A row's query to `out`, its keys and values to `to`.
  void (*out_of)(const Problem&, const Task&) = nullptr;          // What a task wrote.
};

namespace baseline {
typedef float Four __attribute__((vector_size(16)));
constexpr int W = 4;
INLINE bool AnyAbove(Four a, Four b) { return a[0] > b[0] || a[1] > b[1] || a[2] > b[2] || a[3] > b[3]; }
#include "vectors.inc"
#include "cpu_attend.inc"
}  // namespace baseline

#if defined(__x86_64__)
FLEXJAX_TARGET_BEGIN("avx2,fma")
namespace avx2 {
constexpr int W = 8;
INLINE bool AnyAbove(__m256 a, __m256 b) { return _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GT_OQ)) != 0; }
#define FLEXJAX_FMA _mm256_fmadd_ps
#include "vectors.inc"
#include "cpu_attend.inc"
#undef FLEXJAX_FMA
}  // namespace avx2
FLEXJAX_TARGET_END

FLEXJAX_TARGET_BEGIN("avx2,fma,avx512f,avx512vl,avx512bw,avx512dq")
namespace avx512 {
constexpr int W = 16;
INLINE bool AnyAbove(__m512 a, __m512 b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ) != 0; }
#define FLEXJAX_FMA _mm512_fmadd_ps
#include "vectors.inc"
#include "cpu_attend.inc"
#undef FLEXJAX_FMA
}  // namespace avx512
FLEXJAX_TARGET_END

FLEXJAX_TARGET_BEGIN("avx2,fma,avx512f,avx512vl,avx512bw,avx512dq,avx512bf16")
namespace avx512 {
#include "cpu_pack.inc"
#include "cpu_tiles.inc"
}  // namespace avx512
FLEXJAX_TARGET_END
#endif

enum InstructionSet { kBaseline, kAvx2, kAvx512, kAmx };

inline InstructionSet Best(int64_t wanted) {
#if defined(__x86_64__)
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq");
  if (wanted >= kAmx && avx512 && __builtin_cpu_supports("avx512bf16") && AmxAllowed()) return kAmx;
  if (wanted >= kAvx512 && avx512) return kAvx512;
  if (wanted >= kAvx2 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return kAvx2;
#endif
  return kBaseline;
}

template <typename Q, typename Page>
Body Pick(int64_t wanted) {
#if defined(__x86_64__)
  const InstructionSet isa = Best(wanted);
  if constexpr (std::is_same_v<Q, Bf16> && !std::is_same_v<Page, float>)
    if (isa == kAmx) return {avx512::AttendTiles<Page>, avx512::JoinTiles, TileScratchFloats, kTileQueries};
  if (isa >= kAvx512) return {avx512::Attend<Q, Page>, avx512::Join<Q, Page>, ScratchFloats, kMaxQueries};
  if (isa == kAvx2) return {avx2::Attend<Q, Page>, avx2::Join<Q, Page>, ScratchFloats, kMaxQueries};
#endif
  return {baseline::Attend<Q, Page>, baseline::Join<Q, Page>, ScratchFloats, kMaxQueries};
}

template <typename Q, typename Page>
Units PickUnits(int64_t wanted) {
  if constexpr (kHasUnits<Page>) {
#if defined(__x86_64__)
    const InstructionSet isa = Best(wanted);
    if (isa >= kAvx512) return {avx512::IntoUnits<Q, Page>, avx512::OutOfUnits<Q>};
    if (isa == kAvx2) return {avx2::IntoUnits<Q, Page>, avx2::OutOfUnits<Q>};
#endif
    return {baseline::IntoUnits<Q, Page>, baseline::OutOfUnits<Q>};
  }
  return {};
}

// Costs are counted in products: rows * query heads * positions * head dim.
constexpr double kShareCost = 30'000;  // Below it another thread costs more than it saves, even one that waits.
constexpr double kTaskCost = 10'000;   // No task is made smaller than this.

struct Rows {  // Consecutive rows of one sequence.
  int sequence, row, rows, position;
};

// A token's key and value of one head, each as its nearest multiples of a seventh of its largest element.
template <typename Q>
void WriteInt4(const Q* key, const Q* value, int64_t H, Int4* to, Bf16* key_scale, Bf16* value_scale) {
  float inverse[2] = {0, 0};
  for (int part = 0; part < 2; ++part) {
    const Q* x = part ? value : key;
    Bf16* scale = part ? value_scale : key_scale;
    float largest = 0;
    for (int64_t c = 0; c < H; ++c) largest = std::max(largest, std::fabs(ToFloat(x[c])));
    Narrow(largest * (float)(1.0 / 7), scale);
    if (ToFloat(*scale) > 0) inverse[part] = 1 / ToFloat(*scale);
  }
  const auto whole = [](float x) { return (int)std::nearbyintf(std::clamp(x, -7.0f, 7.0f)); };
  for (int64_t c = 0; c < H; ++c) {
    const int low = whole(ToFloat(key[c]) * inverse[0]), high = whole(ToFloat(value[c]) * inverse[1]);
    to[c].both = (int8_t)(high * 16 + (low & 15));
  }
}

template <typename Q, typename Page>
void WriteNew(const Problem& p, const Units& units, const Rows& r) {
  for (int i = 0; i < r.rows; ++i) {
    const int64_t position = r.position + i, from = (int64_t)(r.row + i) * p.K * p.H;
    const int64_t page = p.page_table[r.sequence * p.P + position / p.page_size];
    if constexpr (std::is_same_v<Page, Int4>) {
      for (int64_t head = 0; head < p.K; ++head) {
        const int64_t at = (page * p.K + head) * p.page_size, x = from + head * p.H, slot = position % p.page_size;
        Bf16* scale = p.scales + 2 * at + slot;
        WriteInt4((const Q*)p.k + x, (const Q*)p.v + x, p.H, (Int4*)p.pages + (at + slot) * p.H, scale,
                  scale + p.page_size);
      }
      continue;
    }
    Page* to = (Page*)p.pages + (page * p.page_size + position % p.page_size) * p.K * 2 * p.H;
    if constexpr (kHasUnits<Page>) {
      units.into(p, r.row + i, to);
      continue;
    }
    for (int64_t head = 0; head < p.K; ++head)
      for (const void* source : {p.k, p.v}) {
        const Q* x = (const Q*)source + from + head * p.H;
        if constexpr (std::is_same_v<Q, Page>) {
          memcpy(to, x, p.H * sizeof(Q));
        } else if constexpr (!kHasUnits<Page> && !std::is_same_v<Page, Int4>) {
          for (int64_t c = 0; c < p.H; ++c) Narrow(ToFloat(x[c]), to + c);
        }
        to += p.H;
      }
  }
}

std::string Wrong(const char* rule, int64_t sequence, int64_t value, int64_t bound) {
  return "ragged_paged_attention: " + std::string(rule) + "; sequence " + std::to_string(sequence) + " has " +
         std::to_string(value) + ", the bound is " + std::to_string(bound) + ".";
}

// The live rows in blocks of at most `limit`, after a check of all that could lead out of a buffer. Returns what is
// wrong, or nothing.
inline std::string FindRows(const Problem& p, int64_t limit, std::vector<Rows>& blocks) {
  blocks.clear();
  if (p.query_starts[0] != 0) return Wrong("query_starts must begin at 0", 0, p.query_starts[0], 0);
  for (int64_t b = 0; b < p.B; ++b) {
    const int64_t row = p.query_starts[b], rows = p.query_starts[b + 1] - row, length = p.kv_lengths[b];
    if (rows < 0 || row + rows > p.T)
      return Wrong("query_starts must not fall, nor pass the number of rows", b, row + rows, p.T);
    if (rows == 0) continue;
    if (length < rows) return Wrong("kv_lengths counts the new tokens too", b, length, rows);
    if (length > p.P * p.page_size)
      return Wrong("kv_lengths must fit the pages of the table", b, length, p.P * p.page_size);
    const int64_t oldest = p.window > 0 ? std::max<int64_t>(length - rows + 1 - p.window, 0) : 0;
    for (int64_t i = oldest / p.page_size; i * p.page_size < length; ++i) {
      const int64_t page = p.page_table[b * p.P + i];
      if (page < 0 || page >= p.num_pages) return Wrong("page_table must name existing pages", b, page, p.num_pages);
    }
    for (int64_t i = 0; i < rows; i += limit)
      blocks.push_back({(int)b, (int)(row + i), (int)std::min(limit, rows - i), (int)(length - rows + i)});
  }
  return {};
}

int Oldest(const Problem& p, const Rows& r) { return p.window > 0 ? std::max(r.position + 1 - p.window, 0) : 0; }

double CostOfHead(const Problem& p, const Rows& r) {
  return (double)r.rows * (p.N / p.K) * p.H * (r.position + r.rows - Oldest(p, r));
}

// Tasks of about `target` cost each: several heads together where they are cheap, one head's positions
// span by span where they are dear. Tasks that share rows stand together; returns the floats of their parts.
inline int64_t PlanTasks(const Problem& p, const std::vector<Rows>& blocks, int64_t limit, double target,
                         std::vector<Task>& tasks) {
  tasks.clear();
  int64_t floats = 0;
  for (const Rows& r : blocks) {
    const double cost = CostOfHead(p, r);
    const int64_t queries = r.rows * (p.N / p.K), most = std::clamp<int64_t>(2 * limit / queries, 1, p.K);
    const int64_t heads = std::clamp<int64_t>((int64_t)(target / cost), 1, most);
    const int begin = Oldest(p, r), end = r.position + r.rows;
    const bool split = cost > 2 * target && begin / kSpan != (end - 1) / kSpan;
    for (int64_t head = 0; head < p.K; head += heads) {
      Task task{r.sequence, r.row, r.rows, r.position, (int)head, (int)std::min(heads, p.K - head), begin, end, -1};
      if (!split) {
        tasks.push_back(task);
        continue;
      }
      for (task.end = begin; task.end < end; floats += SoftmaxFloats(p, queries)) {
        task.begin = task.end;
        task.end = std::min((task.begin / kSpan + 1) * kSpan, end);
        task.part = floats;
        tasks.push_back(task);
      }
    }
  }
  return floats;
}

// A thread's own memory, kept from call to call, on a cache line.
float* Scratch(std::vector<float>& buffer, int64_t floats) {
  if ((int64_t)buffer.size() < floats + 16) buffer.resize(floats + 16);
  return (float*)(((uintptr_t)buffer.data() + 63) / 64 * 64);
}

// Attends, with `parallel(threads, n, f)` to call f(0) … f(n - 1) on at most so many threads. Returns what is wrong with
// the batch, or nothing.
template <typename Q, typename Page, typename Parallel>
std::string Serve(Problem p, int64_t isa, int64_t most_threads, const Parallel& parallel) {
  thread_local std::vector<Rows> own_blocks;
  thread_local std::vector<Task> own_tasks;
  thread_local std::vector<float> own_parts;
  std::vector<Rows>& blocks = own_blocks;  // A thread_local's name would mean another one in the helpers.
  std::vector<Task>& tasks = own_tasks;

  const Body body = Pick<Q, Page>(isa);
  const Units units = PickUnits<Q, Page>(isa);
  std::string wrong = FindRows(p, std::max<int64_t>(body.queries / (p.N / p.K), 1), blocks);
  if (!wrong.empty()) return wrong;
  double cost = 0;
  for (const Rows& r : blocks) cost += CostOfHead(p, r) * p.K;
  const int64_t threads = cost < kShareCost ? 1 : most_threads;
  const double target = threads > 1 ? std::max(cost / (4.0 * threads), kTaskCost) : cost;
  p.parts = Scratch(own_parts, PlanTasks(p, blocks, body.queries, target, tasks));

  // Every new key must be in place before any row looks. Shared even where it is little: the other
  // threads are then awake when the tasks come.
  parallel(threads, (int64_t)blocks.size(), [&](int64_t i) { WriteNew<Q, Page>(p, units, blocks[i]); });
  if constexpr (kHasUnits<Page>) p.q = p.out;
  // The last rows of a prompt see most: from them on, so that threads end together.
  parallel(threads, (int64_t)tasks.size(), [&](int64_t i) {
    thread_local std::vector<float> own_scratch;
    const Task& task = tasks[tasks.size() - 1 - i];
    body.attend(p, task, Scratch(own_scratch, body.scratch(p, task)));
    if constexpr (kHasUnits<Page>)
      if (task.part < 0) units.out_of(p, task);
  });
  for (size_t i = 0, end; i < tasks.size(); i = end) {
    for (end = i + 1; tasks[i].part >= 0 && end < tasks.size() && SameRows(tasks[i], tasks[end]);) ++end;
    if (tasks[i].part < 0) continue;
    body.join(p, &tasks[i], (int)(end - i));
    if constexpr (kHasUnits<Page>) units.out_of(p, tasks[i]);
  }
  const int64_t live = p.query_starts[p.B], row = p.N * p.H * sizeof(Q);
  memset((char*)p.out + live * row, 0, (p.T - live) * row);
  return {};
}

}  // namespace
