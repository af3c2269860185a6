// Attention of all tokens of a picture to each other.
//
// A team of four warps has 64 queries of one head and processes the keys 64 at a time. HEAD, a
// multiple of 16, is at least the width of the heads; the difference is filled with zeros.

#pragma once

#include "flash_tile.cuh"
#include "grid.cuh"

namespace moxin {

constexpr int QUERIES = 64;
constexpr int KEYS = 64;
constexpr int ATTENTION_THREADS = 128;

// qkv is [batch * tokens, 3, heads, width], out [batch * tokens, heads, width].
template <typename T>
struct TowerAttention {
  const T* qkv;
  T* out;
  int batch, tokens, heads, width;
  float scale;
};

template <typename T>
__device__ int count_tiles(const TowerAttention<T>& attention) {
  return (attention.tokens + QUERIES - 1) / QUERIES * attention.heads * attention.batch;
}

// A team computes tile `tile` of count_tiles().
template <typename T, int HEAD>
__device__ void attend_head(const TowerAttention<T>& attention, int tile, int team) {
  constexpr int PITCH = HEAD * 2 + 16;  // bytes; shifts neighbouring rows by four banks at least
  unsigned int queries = static_cast<unsigned int>(
      __cvta_generic_to_shared(shared + team * (QUERIES + 2 * KEYS) * PITCH));
  unsigned int keys = queries + QUERIES * PITCH, values = keys + KEYS * PITCH;
  int query_tiles = (attention.tokens + QUERIES - 1) / QUERIES;
  int first_query = tile % query_tiles * QUERIES;
  int head = tile / query_tiles % attention.heads;
  int first_token = tile / query_tiles / attention.heads * attention.tokens;
  int thread = thread_of_step() % ATTENTION_THREADS, lane = thread % LANES, warp = thread / LANES;

  // Copies 64 rows from token `first` on; part 0 is queries, 1 keys, 2 values.
  auto copy = [&](unsigned int to, int part, int first) {
#pragma unroll 2
    for (int i = thread; i < 64 * (HEAD / 8); i += ATTENTION_THREADS) {
      int row = i / (HEAD / 8), column = i % (HEAD / 8) * 8, token = first + row;
      bool inside = token < attention.tokens && column < attention.width;
      long long at = static_cast<long long>(first_token + token) * 3 + part;
      const T* from = inside ? attention.qkv + (at * attention.heads + head) * attention.width + column : attention.qkv;
      copy_async(to + row * PITCH + column * 2, from, inside);
    }
  };
  auto wait = [&] {
    asm volatile("cp.async.commit_group;\n cp.async.wait_group 0;");
    sync_team<ATTENTION_THREADS>(team);
  };

  sync_team<ATTENTION_THREADS>(team);
  copy(queries, 0, first_query);
  FlashTile<T, HEAD, KEYS, PITCH> flash;
  for (int first = 0; first < attention.tokens; first += KEYS) {
    sync_team<ATTENTION_THREADS>(team);
    copy(keys, 1, first);
    copy(values, 2, first);
    wait();
    auto is_valid = [&](int, int key) { return first + key < attention.tokens; };
    flash.add(queries + warp * 16 * PITCH, keys, values, attention.scale, is_valid);
  }
  flash.finish();
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    int token = first_query + warp * 16 + lane / 4 + 8 * half;
    if (token >= attention.tokens) continue;
    T* out = attention.out + (static_cast<long long>(first_token + token) * attention.heads + head) * attention.width;
#pragma unroll
    for (int j = 0; j < HEAD / 8; ++j) {
      int column = j * 8 + lane % 4 * 2;
      if (column < attention.width) {
        const float* sums = flash.outputs[j] + 2 * half;
        *reinterpret_cast<unsigned int*>(out + column) =
            pack<T>(sums[0] / flash.weight[half], sums[1] / flash.weight[half]);
      }
    }
  }
}

}  // namespace moxin
