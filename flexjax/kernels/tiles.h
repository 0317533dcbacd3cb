// The tile registers of AMX, for the CPU bodies.
//
// The instructions are written out, with memory clobbered: GCC's intrinsics let stores to what a tile is loaded
// from pass the load (GCC 12 does so to the configuration).
#pragma once

#include <cstdint>

#if defined(FLEXJAX_CHECK_TILES)
#include <sanitizer/asan_interface.h>

#include <cstdio>
#include <cstdlib>
#endif

#if defined(__x86_64__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#define TILE_LOAD(tile, from, stride)                                                                      \
  do {                                                                                                     \
    CheckTile(tile, from, stride);                                                                         \
    asm volatile("tileloadd (%0,%1,1), %%tmm" #tile : : "r"(from), "r"((int64_t)(stride)) : "memory");     \
  } while (0)
// What is not needed again soon leaves the first cache to the rest.
#define TILE_LOAD_FOR(again, tile, from, stride)                                                           \
  do {                                                                                                     \
    CheckTile(tile, from, stride);                                                                         \
    if constexpr (again)                                                                                   \
      asm volatile("tileloadd (%0,%1,1), %%tmm" #tile : : "r"(from), "r"((int64_t)(stride)) : "memory");   \
    else                                                                                                   \
      asm volatile("tileloaddt1 (%0,%1,1), %%tmm" #tile : : "r"(from), "r"((int64_t)(stride)) : "memory"); \
  } while (0)
#define TILE_STORE(tile, to, stride)                                                                       \
  do {                                                                                                     \
    CheckTile(tile, to, stride);                                                                           \
    asm volatile("tilestored %%tmm" #tile ", (%0,%1,1)" : : "r"(to), "r"((int64_t)(stride)) : "memory");   \
  } while (0)
#define TILE_ZERO(tile) asm volatile("tilezero %%tmm" #tile : : : "memory")
#define TILE_DOT(integers, sum, x, w)                                            \
  if constexpr (integers)                                                        \
    asm volatile("tdpbssd %%tmm" #w ", %%tmm" #x ", %%tmm" #sum : : : "memory"); \
  else                                                                           \
    asm volatile("tdpbf16ps %%tmm" #w ", %%tmm" #x ", %%tmm" #sum : : : "memory")
#define TILE_RELEASE() asm volatile("tilerelease" : : : "memory")

namespace {

constexpr int64_t kTileBytes = 1024;  // 16 rows of 64 bytes

// The shapes of the eight tiles.
struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};

  void Use() const;
};

// Sanitizers do not see what a tile touches: under theirs, each row of it is asked about.
#if defined(FLEXJAX_CHECK_TILES)
inline TileConfig& TilesInUse() {
  static TileConfig config;
  return config;
}
inline void CheckTile(int tile, const void* at, int64_t stride) {
  const TileConfig& config = TilesInUse();
  for (int row = 0; row < config.rows[tile]; ++row)
    if (__asan_region_is_poisoned((char*)at + row * stride, config.row_bytes[tile])) {
      fprintf(stderr, "tile %d touches what is not ours in row %d\n", tile, row);
      abort();
    }
}
#else
inline void CheckTile(int, const void*, int64_t) {}
#endif

inline void TileConfig::Use() const {
#if defined(FLEXJAX_CHECK_TILES)
  TilesInUse() = *this;
#endif
  asm volatile("ldtilecfg %0" : : "m"(*this) : "memory");
}

// The kernel gives a process the tiles' registers when it asks for them.
inline bool AmxAllowed() {
#if defined(__x86_64__) && defined(__linux__)
  static const bool allowed = [] {
    unsigned a = 7, b, c = 0, d;
    asm volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
    const bool bf16 = d >> 22 & 1, tile = d >> 24 & 1, int8 = d >> 25 & 1;
    constexpr int kRequest = 0x1023, kTileData = 18;
    return bf16 && tile && int8 && syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
  }();
  return allowed;
#else
  return false;
#endif
}

}  // namespace
