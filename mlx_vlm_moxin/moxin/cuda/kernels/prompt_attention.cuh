// Attention of the new tokens of each sequence to its key-value cache and to each other.
//
// Query heads that share keys are rows of one product: packed row r is token r / GROUP and head
// r % GROUP of its group. A team of four warps processes KEYS keys at a time: KEY_WARPS warps share 16
// rows, and each has as large a part of the keys. More than one, if there would otherwise be too few
// thread blocks.

#pragma once

#include "arranged.cuh"
#include "flash_tile.cuh"
#include "grid.cuh"

namespace moxin {

constexpr int ATTENTION_WARPS = config::ATTENTION_WARPS;
constexpr int KEYS = config::KEYS;  // per tile; two tiles are in shared memory

// keys and values are [B, KV_HEADS, capacity, HEAD_DIM], of which `filled` positions are used; the
// first padding[b] keys of sequence b are masked (null: none). Those of the `tokens` new tokens are
// [B, KV_HEADS, length, HEAD_DIM].
template <typename T>
struct CachedKeys {
  const T* keys;
  const T* values;
  const T* new_keys;
  const T* new_values;
  int filled;
  const int* padding;
  int capacity, tokens, length;
  bool is_causal = true;  // whether a new token sees only those before it and itself
};

// Bytes between rows in shared memory; shifts neighbouring rows by four banks.
template <int HEAD_DIM>
constexpr int ATTENTION_PITCH = HEAD_DIM * 2 + 16;

// Stores a row of a head, from column `column` on, if it is inside: of every eight columns, lane i of
// four has the pair at 2 * i.
template <typename Order, int HEAD_DIM>
__device__ inline void store_head(
    void* out, int row, bool is_inside, int column, int width,
    const unsigned int (&pairs)[HEAD_DIM / 8]) {
  // In the order of the steps a lane has whole chunks: pairs that are NEXT apart.
  constexpr int NEXT = Order::HAS_STEPS ? 16 / Order::BITS : 1;
  int lane = threadIdx.x % 4;
  if constexpr (HEAD_DIM % (32 * NEXT) == 0) {
#pragma unroll
    for (int i = 0; i < HEAD_DIM / 32; ++i) {
      int first = i / NEXT * (4 * NEXT) + i % NEXT;
      unsigned int words[4] = {
          pairs[first], pairs[first + NEXT], pairs[first + 2 * NEXT], pairs[first + 3 * NEXT]};
      if constexpr (!Order::HAS_STEPS) transpose_words<1>(words);
      if (is_inside) store_chunk<Order>(out, row, column + (4 * i + lane) * 8, width, words);
    }
  } else if (is_inside) {
#pragma unroll
    for (int j = 0; j < HEAD_DIM / 8; ++j) {
      store_pair<Order>(out, row, column + j * 8 + lane * 2, width, pairs[j]);
    }
  }
}

// A team computes tile part % tiles of the packed rows of key-value head part / tiles % KV_HEADS of
// sequence part / tiles / KV_HEADS; out is [B, tokens, HEADS, HEAD_DIM], in `Order`. Only the last
// WINDOW keys are visible to a token (0: all). prepare(address) brings the queries into shared memory,
// by stores or asynchronous copies, rows ATTENTION_PITCH bytes apart; it may also write the new keys
// and values.
template <typename T, int HEAD_DIM, int HEADS, int KV_HEADS, int WINDOW, int KEY_WARPS,
          typename Order = RowMajor, typename P>
__device__ void attend_tile(
    P prepare, const CachedKeys<T>& cache, int tiles, float scale, T* out, int part) {
  constexpr int GROUP = HEADS / KV_HEADS, WARPS = ATTENTION_WARPS, THREADS = WARPS * LANES;
  constexpr int QUERIES = 16 * WARPS / KEY_WARPS, WARP_KEYS = KEYS / KEY_WARPS;
  constexpr int PITCH = ATTENTION_PITCH<HEAD_DIM>;
  constexpr int STAGE_BYTES = 2 * KEYS * PITCH;
  unsigned int query_tile = static_cast<unsigned int>(__cvta_generic_to_shared(shared));
  unsigned int stages = query_tile + QUERIES * PITCH;
  int kv_head = part / tiles % KV_HEADS, batch = part / tiles / KV_HEADS;
  int first_row = part % tiles * QUERIES;
  int thread = thread_of_step(), lane = thread % LANES, warp = thread / LANES;
  int warp_row = warp / KEY_WARPS * 16, key_part = warp % KEY_WARPS, warp_key = key_part * WARP_KEYS;
  int rows = cache.tokens * GROUP, filled = cache.filled;
  int last_token = min(first_row + QUERIES - 1, rows - 1) / GROUP;
  int start = cache.padding ? cache.padding[batch] : 0;
  int end = filled + (cache.is_causal ? last_token + 1 : cache.tokens);
  if constexpr (WINDOW > 0) start = max(start, filled + first_row / GROUP + 1 - WINDOW);

  // Of the key at position 0 of the cache, and of the new keys, if they were at their positions.
  long long head = static_cast<long long>(batch) * KV_HEADS + kv_head;
  long long cached_at = head * cache.capacity * HEAD_DIM;
  long long new_at = (head * cache.length - filled) * HEAD_DIM;
  const T *cached_keys = cache.keys + cached_at, *cached_values = cache.values + cached_at;
  const T *new_keys = cache.new_keys + new_at, *new_values = cache.new_values + new_at;
  auto copy_keys = [&](int stage, int first) {
    if (first < end) {
      unsigned int to = stages + stage * STAGE_BYTES;
#pragma unroll 2
      for (int i = thread; i < KEYS * (HEAD_DIM / 8); i += THREADS) {
        int row = i / (HEAD_DIM / 8), column = i % (HEAD_DIM / 8) * 8, key = first + row;
        bool is_new = key >= filled;
        int at = key * HEAD_DIM + column;
        unsigned int to_row = to + row * PITCH + column * 2;
        copy_async(to_row, (is_new ? new_keys : cached_keys) + at, key < end);
        copy_async(to_row + KEYS * PITCH, (is_new ? new_values : cached_values) + at, key < end);
      }
    }
  };
  // Cached keys are on their way while the queries and the new keys are prepared.
  bool is_cached = start + KEYS <= filled;
  if (is_cached) copy_keys(0, start);
  prepare(query_tile);
  if (!is_cached) copy_keys(0, start);
  commit_copies();

  FlashTile<T, HEAD_DIM, WARP_KEYS, PITCH> flash;
  int stage = 0;
#pragma unroll 1
  for (int first = start; first < end; first += KEYS, stage ^= 1) {
    copy_keys(stage ^ 1, first + KEYS);
    commit_copies();
    wait_copies<1>();
    sync_team<THREADS>(0);
    unsigned int keys = stages + stage * STAGE_BYTES + warp_key * PITCH;
    auto is_valid = [&](int half, int index) {
      int at = filled + (first_row + warp_row + lane / 4 + 8 * half) / GROUP;
      int key = first + warp_key + index;
      bool is_visible = key <= at || !cache.is_causal;
      return is_visible && key < end && (WINDOW == 0 || key > at - WINDOW);
    };
    int seen = cache.is_causal ? filled + first_row / GROUP + 1 : end;  // keys that all rows see
    bool sees_all = first + KEYS <= seen && (WINDOW == 0 || first + WINDOW > filled + last_token);
    flash.add(query_tile + warp_row * PITCH, keys, keys + KEYS * PITCH, scale, is_valid, sees_all);
    sync_team<THREADS>(0);
  }
  flash.finish();
  if constexpr (KEY_WARPS > 1) {
    // The first warp of those with the same rows merges their results, through shared memory.
    float* results = reinterpret_cast<float*>(shared);
    constexpr int COUNT = HEAD_DIM / 2 + 4;
    wait_copies<0>();
    sync_team<THREADS>(0);
    float* result = results + thread;
    if (key_part > 0) {
#pragma unroll
      for (int i = 0; i < HEAD_DIM / 2; ++i) result[i * THREADS] = flash.outputs[i / 4][i % 4];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        result[(HEAD_DIM / 2 + half) * THREADS] = flash.highest[half];
        result[(HEAD_DIM / 2 + 2 + half) * THREADS] = flash.weight[half];
      }
    }
    static_assert(COUNT * THREADS * 4 <= QUERIES * PITCH + 2 * STAGE_BYTES, "the results fit");
    sync_team<THREADS>(0);
    if (key_part > 0) return;
    for (int other = 1; other < KEY_WARPS; ++other) {
      const float* from = result + other * LANES;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float other_highest = from[(HEAD_DIM / 2 + half) * THREADS];
        float top = fmaxf(flash.highest[half], other_highest);
        float factor = exp2f(flash.highest[half] - top), other_factor = exp2f(other_highest - top);
        flash.highest[half] = top;
        flash.weight[half] = flash.weight[half] * factor
            + from[(HEAD_DIM / 2 + 2 + half) * THREADS] * other_factor;
#pragma unroll
        for (int j = 0; j < HEAD_DIM / 8; ++j) {
#pragma unroll
          for (int i = 2 * half; i < 2 * half + 2; ++i) {
            float value = from[(j * 4 + i) * THREADS] * other_factor;
            flash.outputs[j][i] = flash.outputs[j][i] * factor + value;
          }
        }
      }
    }
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    int packed = first_row + warp_row + lane / 4 + 8 * half;
    int token = batch * cache.tokens + packed / GROUP;
    int column = (kv_head * GROUP + packed % GROUP) * HEAD_DIM;
    float factor = flash.weight[half] > 0 ? 1 / flash.weight[half] : 0;  // 0: all keys are masked
    unsigned int pairs[HEAD_DIM / 8];  // a lane's of every eight columns
#pragma unroll
    for (int j = 0; j < HEAD_DIM / 8; ++j) {
      pairs[j] =
          pack<T>(flash.outputs[j][2 * half] * factor, flash.outputs[j][2 * half + 1] * factor);
    }
    store_head<Order, HEAD_DIM>(out, token, packed < rows, column, HEADS * HEAD_DIM, pairs);
  }
}

// Copies tile part % tiles of queries [B, tokens, HEADS, HEAD_DIM] to shared memory (attend_tile).
template <typename T, int HEAD_DIM, int HEADS, int KV_HEADS, int KEY_WARPS>
__device__ void copy_queries(
    const T* queries, int tokens, int tiles, int part, unsigned int query_tile) {
  constexpr int GROUP = HEADS / KV_HEADS, QUERIES = 16 * ATTENTION_WARPS / KEY_WARPS;
  int kv_head = part / tiles % KV_HEADS, first_row = part % tiles * QUERIES;
  long long first_token = static_cast<long long>(part / tiles / KV_HEADS) * tokens;
#pragma unroll 1
  for (int i = thread_of_step(); i < QUERIES * (HEAD_DIM / 8); i += ATTENTION_WARPS * LANES) {
    int row = i / (HEAD_DIM / 8), column = i % (HEAD_DIM / 8) * 8, packed = first_row + row;
    bool inside = packed < tokens * GROUP;
    long long head = (first_token + packed / GROUP) * HEADS + kv_head * GROUP + packed % GROUP;
    copy_async(query_tile + row * ATTENTION_PITCH<HEAD_DIM> + column * 2,
               inside ? queries + head * HEAD_DIM + column : queries, inside);
  }
}

}  // namespace moxin
