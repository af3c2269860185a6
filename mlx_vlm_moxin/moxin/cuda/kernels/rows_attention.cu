// Attention of new tokens of each sequence to its key-value cache and to one another.
//
// The heads that share keys are rows of one product: packed row r stands for token r / GROUP and
// head r % GROUP of its group. A block goes through the keys 64 at a time. Its four warps have 16
// rows each (KEY_WARPS 1), or share 16 rows and divide the keys between them (KEY_WARPS 4, where
// there would be few blocks otherwise).

#pragma once

#include "flash.cu"
#include "grid.cu"

namespace moxin {

constexpr int ATTENTION_WARPS = 4;
constexpr int KEYS = 64;

// The cache is [B, KV_HEADS, capacity, HEAD_DIM], of which `filled` positions count; the first
// padding[b] keys are hidden (null: none). The keys and values of `tokens` new ones are
// [B, KV_HEADS, length, HEAD_DIM].
template <typename T>
struct Cache {
  const T* keys;
  const T* values;
  const T* new_keys;
  const T* new_values;
  int filled;
  const int* padding;
  int capacity, tokens, length;
};

// queries and out are [B, tokens, HEADS, HEAD_DIM]. Of longer sequences the last WINDOW keys count
// (0: all). Four warps take number `part` of the parts: tile part % tiles of the rows of key-value
// head part / tiles % KV_HEADS.
template <typename T, int HEAD_DIM, int HEADS, int KV_HEADS, int WINDOW, int KEY_WARPS>
__device__ void attend(
    const T* queries, const Cache<T>& cache, int tiles, float scale, T* out, int part) {
  constexpr int GROUP = HEADS / KV_HEADS, WARPS = ATTENTION_WARPS, THREADS = WARPS * LANES;
  constexpr int QUERIES = 16 * WARPS / KEY_WARPS, OWN_KEYS = KEYS / KEY_WARPS;
  constexpr int PITCH = HEAD_DIM * 2 + 16;  // bytes; shifts neighbouring rows by four banks
  constexpr int STAGE_BYTES = 2 * KEYS * PITCH;
  unsigned int query_tile = static_cast<unsigned int>(__cvta_generic_to_shared(shared));
  unsigned int stages = query_tile + QUERIES * PITCH;
  int kv_head = part / tiles % KV_HEADS, batch = part / tiles / KV_HEADS;
  int first_row = part % tiles * QUERIES;
  int thread = thread_of_step(), lane = thread % LANES, warp = thread / LANES;
  int own_row = KEY_WARPS == 1 ? warp * 16 : 0, own_key = KEY_WARPS == 1 ? 0 : warp * OWN_KEYS;
  int rows = cache.tokens * GROUP, filled = cache.filled;
  int last_token = min(first_row + QUERIES - 1, rows - 1) / GROUP;
  int start = cache.padding ? cache.padding[batch] : 0, end = filled + last_token + 1;
  if constexpr (WINDOW > 0) start = max(start, filled + first_row / GROUP + 1 - WINDOW);

  auto copy_row = [&](unsigned int to, const T* from, bool inside, int column) {
    copy_async(to + column * 2, inside ? from + column : queries, inside);
  };
#pragma unroll 1
  for (int i = thread; i < QUERIES * (HEAD_DIM / 8); i += THREADS) {
    int row = i / (HEAD_DIM / 8), packed = first_row + row;
    long long token = static_cast<long long>(batch) * cache.tokens + packed / GROUP;
    const T* from = queries + (token * HEADS + kv_head * GROUP + packed % GROUP) * HEAD_DIM;
    copy_row(query_tile + row * PITCH, from, packed < rows, i % (HEAD_DIM / 8) * 8);
  }
  long long head = static_cast<long long>(batch) * KV_HEADS + kv_head;
  auto copy_keys = [&](int stage, int first) {
    if (first < end) {
      unsigned int to = stages + stage * STAGE_BYTES;
#pragma unroll 2
      for (int i = thread; i < KEYS * (HEAD_DIM / 8); i += THREADS) {
        int row = i / (HEAD_DIM / 8), column = i % (HEAD_DIM / 8) * 8, key = first + row;
        bool is_new = key >= filled;
        long long at = is_new ? head * cache.length + key - filled : head * cache.capacity + key;
        const T* from_key = (is_new ? cache.new_keys : cache.keys) + at * HEAD_DIM;
        const T* from_value = (is_new ? cache.new_values : cache.values) + at * HEAD_DIM;
        copy_row(to + row * PITCH, from_key, key < end, column);
        copy_row(to + (KEYS + row) * PITCH, from_value, key < end, column);
      }
    }
    asm volatile("cp.async.commit_group;");
  };
  copy_keys(0, start);

  Flash<T, HEAD_DIM, OWN_KEYS, PITCH> flash;
  int stage = 0;
#pragma unroll 1
  for (int first = start; first < end; first += KEYS, stage ^= 1) {
    copy_keys(stage ^ 1, first + KEYS);
    asm volatile("cp.async.wait_group 1;");
    sync_team<THREADS>(0);
    unsigned int keys = stages + stage * STAGE_BYTES + own_key * PITCH;
    auto is_valid = [&](int half, int own) {
      int at = filled + (first_row + own_row + lane / 4 + 8 * half) / GROUP;
      int key = first + own_key + own;
      return key <= at && key < end && (WINDOW == 0 || key > at - WINDOW);
    };
    flash.add(query_tile + own_row * PITCH, keys, keys + KEYS * PITCH, scale, is_valid);
    sync_team<THREADS>(0);
  }
  flash.finish();
  if constexpr (KEY_WARPS > 1) {
    // The other warps hand theirs to the first one through shared memory.
    float* handed = reinterpret_cast<float*>(shared);
    constexpr int COUNT = HEAD_DIM / 2 + 4;
    asm volatile("cp.async.wait_group 0;");
    sync_team<THREADS>(0);
    float* own = handed + thread;
    if (warp > 0) {
#pragma unroll
      for (int i = 0; i < HEAD_DIM / 2; ++i) own[i * THREADS] = flash.outputs[i / 4][i % 4];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        own[(HEAD_DIM / 2 + half) * THREADS] = flash.highest[half];
        own[(HEAD_DIM / 2 + 2 + half) * THREADS] = flash.weight[half];
      }
    }
    static_assert(COUNT * THREADS * 4 <= QUERIES * PITCH + 2 * STAGE_BYTES, "they fit");
    sync_team<THREADS>(0);
    if (warp > 0) return;
    for (int other = 1; other < WARPS; ++other) {
      const float* from = handed + other * LANES + lane;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float their_highest = from[(HEAD_DIM / 2 + half) * THREADS];
        float top = fmaxf(flash.highest[half], their_highest);
        float factor = exp2f(flash.highest[half] - top), their_factor = exp2f(their_highest - top);
        flash.highest[half] = top;
        flash.weight[half] = flash.weight[half] * factor
            + from[(HEAD_DIM / 2 + 2 + half) * THREADS] * their_factor;
#pragma unroll
        for (int j = 0; j < HEAD_DIM / 8; ++j) {
#pragma unroll
          for (int i = 2 * half; i < 2 * half + 2; ++i) {
            float theirs = from[(j * 4 + i) * THREADS] * their_factor;
            flash.outputs[j][i] = flash.outputs[j][i] * factor + theirs;
          }
        }
      }
    }
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    int packed = first_row + own_row + lane / 4 + 8 * half;
    if (packed >= rows) continue;
    long long token = static_cast<long long>(batch) * cache.tokens + packed / GROUP;
    T* to = out + (token * HEADS + kv_head * GROUP + packed % GROUP) * HEAD_DIM;
    float factor = flash.weight[half] > 0 ? 1 / flash.weight[half] : 0;  // 0: all keys are padding
#pragma unroll
    for (int j = 0; j < HEAD_DIM / 8; ++j) {
      *reinterpret_cast<unsigned int*>(to + j * 8 + lane % 4 * 2) =
          pack<T>(flash.outputs[j][2 * half] * factor, flash.outputs[j][2 * half + 1] * factor);
    }
  }
}

}  // namespace moxin
