// Attention of all tokens of a picture to each other.
//
// A team of four warps has QUERIES queries of one head and processes KEYS keys at a time. HEAD, a
// multiple of 16, is at least the width of the heads; the difference is filled with zeros.

#pragma once

#include "flash_tile.cuh"
#include "grid.cuh"

namespace moxin {

constexpr int QUERIES = 64;
constexpr int KEYS = 64;
constexpr int ATTENTION_THREADS = 128;
constexpr int MAX_STAGES = 4;
constexpr int TEAMS = config::THREADS / ATTENTION_THREADS;

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

// A team computes tile `tile` of count_tiles(). The last tiles are those of the heads' last queries, which
// may be few. As many tiles of keys as fit in shared memory are in flight.
template <typename T, int HEAD>
__device__ void attend_head(const TowerAttention<T>& attention, int tile, int team) {
  constexpr int PITCH = HEAD * 2 + 16;  // bytes; shifts neighbouring rows by four banks at least
  constexpr int ROOM = (config::SHARED_MEMORY / TEAMS / PITCH - QUERIES) / (2 * KEYS);
  constexpr int STAGES = ROOM < MAX_STAGES ? ROOM : MAX_STAGES;
  static_assert(STAGES > 0, "there is room for queries, keys and values");
  unsigned int queries = static_cast<unsigned int>(
      __cvta_generic_to_shared(shared + team * (QUERIES + STAGES * 2 * KEYS) * PITCH));
  int head = tile % attention.heads;
  int first_token = tile / attention.heads % attention.batch * attention.tokens;
  int first_query = tile / attention.heads / attention.batch * QUERIES;
  int thread = thread_of_step() % ATTENTION_THREADS, lane = thread % LANES, warp = thread / LANES;

  // Copies `rows` rows from token `first` on; part 0 is queries, 1 keys, 2 values.
  auto copy = [&](unsigned int to, int part, int first, int rows) {
    constexpr int CHUNKS = HEAD / 8;
    int row = thread / CHUNKS, chunk = thread % CHUNKS, stride = 3 * attention.heads * attention.width;
    long long at = static_cast<long long>(first_token + first) * 3 + part;
    const T* from = attention.qkv + (at * attention.heads + head) * attention.width;
#pragma unroll 2
    for (int i = thread; i < rows * CHUNKS; i += ATTENTION_THREADS) {
      bool inside = first + row < attention.tokens && chunk * 8 < attention.width;
      copy_async(to + row * PITCH + chunk * 16, from + row * stride + chunk * 8, inside);
      // ATTENTION_THREADS chunks on, without a division.
      row += ATTENTION_THREADS / CHUNKS;
      chunk += ATTENTION_THREADS % CHUNKS;
      if (chunk >= CHUNKS) chunk -= CHUNKS, ++row;
    }
  };
  auto copy_stage = [&](int step) {
    unsigned int keys = queries + (QUERIES + step % STAGES * 2 * KEYS) * PITCH;
    if (step * KEYS < attention.tokens) {
      copy(keys, 1, step * KEYS, KEYS);
      copy(keys + KEYS * PITCH, 2, step * KEYS, KEYS);
    }
    commit_copies();
  };

  sync_team<ATTENTION_THREADS>(team);
  copy(queries, 0, first_query, QUERIES);
#pragma unroll 1
  for (int step = 0; step < STAGES; ++step) copy_stage(step);
  FlashTile<T, HEAD, KEYS, PITCH> flash;
#pragma unroll 1
  for (int step = 0; step * KEYS < attention.tokens; ++step) {
    wait_copies<STAGES - 1>();
    sync_team<ATTENTION_THREADS>(team);
    auto is_valid = [&](int, int key) { return step * KEYS + key < attention.tokens; };
    unsigned int keys = queries + (QUERIES + step % STAGES * 2 * KEYS) * PITCH;
    if (first_query + warp * 16 < attention.tokens) {
      flash.add(queries + warp * 16 * PITCH, keys, keys + KEYS * PITCH, attention.scale, is_valid);
    }
    sync_team<ATTENTION_THREADS>(team);
    copy_stage(step + STAGES);
  }
  wait_copies<0>();
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
