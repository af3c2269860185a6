// Attention of new tokens of each sequence to its key-value cache and to one another.
//
// The heads that share keys are rows of one product: packed row r stands for token r / GROUP and
// head r % GROUP of its group. A block goes through the keys 64 at a time, with a running softmax.
// Its four warps have 16 rows each (KEY_WARPS 1), or share 16 rows and divide the keys between
// them (KEY_WARPS 4, for single tokens).

#include "tensor_cores.cu"

namespace moxin {

constexpr int WARPS = 4;
constexpr int KEYS = 64;
// In place of -infinity, which would give NaN where all keys are hidden.
constexpr float LOWEST = -1e30f;

// The cache is [B, KV_HEADS, capacity, HEAD_DIM], filled up to *filled; the first padding[b] keys
// are hidden. The new keys and values are [B, KV_HEADS, tokens, HEAD_DIM].
template <typename T>
struct Cache {
  const T* keys;
  const T* values;
  const T* new_keys;
  const T* new_values;
  const int* filled;
  const int* padding;
  int capacity, tokens;
};

// queries and out are [B, tokens, HEADS, HEAD_DIM]. Of longer sequences the last WINDOW keys count
// (0: all). Block b has tile b % tiles of the rows of key-value head b / tiles % KV_HEADS.
template <typename T, int HEAD_DIM, int HEADS, int KV_HEADS, int WINDOW, int KEY_WARPS>
__device__ void attend(const T* queries, const Cache<T>& cache, int tiles, float scale, T* out) {
  constexpr int GROUP = HEADS / KV_HEADS, THREADS = WARPS * LANES;
  constexpr int QUERIES = 16 * WARPS / KEY_WARPS, OWN_KEYS = KEYS / KEY_WARPS;
  constexpr int PITCH = HEAD_DIM * 2 + 16;  // bytes; shifts neighbouring rows by four banks
  constexpr int STAGE_BYTES = 2 * KEYS * PITCH;
  constexpr float LOG2_E = 1.4426950408889634f;
  extern __shared__ __align__(128) unsigned char shared[];
  unsigned int query_tile = static_cast<unsigned int>(__cvta_generic_to_shared(shared));
  unsigned int stages = query_tile + QUERIES * PITCH;
  int kv_head = blockIdx.x / tiles % KV_HEADS, batch = blockIdx.x / tiles / KV_HEADS;
  int first_row = blockIdx.x % tiles * QUERIES;
  int lane = threadIdx.x % LANES, warp = threadIdx.x / LANES;
  int own_row = KEY_WARPS == 1 ? warp * 16 : 0, own_key = KEY_WARPS == 1 ? 0 : warp * OWN_KEYS;
  int rows = cache.tokens * GROUP, filled = *cache.filled;
  int last_token = min(first_row + QUERIES - 1, rows - 1) / GROUP;
  int start = cache.padding[batch], end = filled + last_token + 1;
  if constexpr (WINDOW > 0) start = max(start, filled + first_row / GROUP + 1 - WINDOW);

  auto copy_row = [&](unsigned int to, const T* from, bool inside, int column) {
    copy_async(to + column * 2, inside ? from + column : queries, inside);
  };
#pragma unroll 1
  for (int i = threadIdx.x; i < QUERIES * (HEAD_DIM / 8); i += THREADS) {
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
      for (int i = threadIdx.x; i < KEYS * (HEAD_DIM / 8); i += THREADS) {
        int row = i / (HEAD_DIM / 8), column = i % (HEAD_DIM / 8) * 8, key = first + row;
        bool is_new = key >= filled;
        long long at = is_new ? head * cache.tokens + key - filled : head * cache.capacity + key;
        const T* from_key = (is_new ? cache.new_keys : cache.keys) + at * HEAD_DIM;
        const T* from_value = (is_new ? cache.new_values : cache.values) + at * HEAD_DIM;
        copy_row(to + row * PITCH, from_key, key < end, column);
        copy_row(to + (KEYS + row) * PITCH, from_value, key < end, column);
      }
    }
    asm volatile("cp.async.commit_group;");
  };
  copy_keys(0, start);

  float outputs[HEAD_DIM / 8][4] = {};
  float highest[2] = {LOWEST, LOWEST}, weight[2] = {};
  int stage = 0;
#pragma unroll 1
  for (int first = start; first < end; first += KEYS, stage ^= 1) {
    copy_keys(stage ^ 1, first + KEYS);
    asm volatile("cp.async.wait_group 1;");
    __syncthreads();
    unsigned int keys = stages + stage * STAGE_BYTES + own_key * PITCH;
    unsigned int values = keys + KEYS * PITCH;
    float scores[OWN_KEYS / 8][4] = {};
#pragma unroll 2
    for (int k = 0; k < HEAD_DIM / 16; ++k) {
      unsigned int a[4];
      int row = own_row + lane % 16;
      load_matrices(a, query_tile + row * PITCH + (k * 16 + lane / 16 * 8) * 2);
#pragma unroll
      for (int j = 0; j < OWN_KEYS / 16; ++j) {
        unsigned int b[4];
        int key = j * 16 + lane % 8 + lane / 16 * 8;
        load_matrices(b, keys + key * PITCH + (k * 16 + lane / 8 % 2 * 8) * 2);
        multiply_add<T>(scores[2 * j], a, b);
        multiply_add<T>(scores[2 * j + 1], a, b + 2);
      }
    }
    // Registers 0 and 1 belong to row lane / 4, 2 and 3 to the row eight further on.
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      int at = filled + (first_row + own_row + lane / 4 + 8 * half) / GROUP;
      float top = highest[half];
#pragma unroll
      for (int j = 0; j < OWN_KEYS / 8; ++j) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          float& score = scores[j][2 * half + i];
          int key = first + own_key + j * 8 + lane % 4 * 2 + i;
          bool valid = key <= at && key < end && (WINDOW == 0 || key > at - WINDOW);
          score = valid ? score * scale * LOG2_E : LOWEST;
          top = fmaxf(top, score);
        }
      }
      top = fmaxf(top, __shfl_xor_sync(ALL_LANES, top, 1));
      top = fmaxf(top, __shfl_xor_sync(ALL_LANES, top, 2));
      float factor = exp2f(highest[half] - top), sum = 0;
      highest[half] = top;
#pragma unroll
      for (int j = 0; j < OWN_KEYS / 8; ++j) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          float& score = scores[j][2 * half + i];
          score = exp2f(score - top);
          sum += score;
        }
      }
      weight[half] = weight[half] * factor + sum;
#pragma unroll
      for (int j = 0; j < HEAD_DIM / 8; ++j) {
        outputs[j][2 * half] *= factor;
        outputs[j][2 * half + 1] *= factor;
      }
    }
#pragma unroll
    for (int k = 0; k < OWN_KEYS / 16; ++k) {
      unsigned int a[4] = {
          pack<T>(scores[2 * k][0], scores[2 * k][1]), pack<T>(scores[2 * k][2], scores[2 * k][3]),
          pack<T>(scores[2 * k + 1][0], scores[2 * k + 1][1]),
          pack<T>(scores[2 * k + 1][2], scores[2 * k + 1][3])};
#pragma unroll
      for (int j = 0; j < HEAD_DIM / 16; ++j) {
        unsigned int b[4];
        load_matrices_transposed(
            b, values + (k * 16 + lane % 16) * PITCH + (j * 16 + lane / 16 * 8) * 2);
        multiply_add<T>(outputs[2 * j], a, b);
        multiply_add<T>(outputs[2 * j + 1], a, b + 2);
      }
    }
    __syncthreads();
  }

#pragma unroll
  for (int half = 0; half < 2; ++half) {
    weight[half] += __shfl_xor_sync(ALL_LANES, weight[half], 1);
    weight[half] += __shfl_xor_sync(ALL_LANES, weight[half], 2);
  }
  if constexpr (KEY_WARPS > 1) {
    // The other warps hand theirs to the first one through shared memory.
    float* handed = reinterpret_cast<float*>(shared);
    constexpr int COUNT = HEAD_DIM / 2 + 4;
    asm volatile("cp.async.wait_group 0;");
    __syncthreads();
    float* own = handed + threadIdx.x;
    if (warp > 0) {
#pragma unroll
      for (int i = 0; i < HEAD_DIM / 2; ++i) own[i * THREADS] = outputs[i / 4][i % 4];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        own[(HEAD_DIM / 2 + half) * THREADS] = highest[half];
        own[(HEAD_DIM / 2 + 2 + half) * THREADS] = weight[half];
      }
    }
    static_assert(COUNT * THREADS * 4 <= QUERIES * PITCH + 2 * STAGE_BYTES, "they fit");
    __syncthreads();
    if (warp > 0) return;
    for (int other = 1; other < WARPS; ++other) {
      const float* from = handed + other * LANES + lane;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float their_highest = from[(HEAD_DIM / 2 + half) * THREADS];
        float top = fmaxf(highest[half], their_highest);
        float factor = exp2f(highest[half] - top), their_factor = exp2f(their_highest - top);
        highest[half] = top;
        weight[half] = weight[half] * factor
            + from[(HEAD_DIM / 2 + 2 + half) * THREADS] * their_factor;
#pragma unroll
        for (int j = 0; j < HEAD_DIM / 8; ++j) {
#pragma unroll
          for (int i = 2 * half; i < 2 * half + 2; ++i) {
            outputs[j][i] = outputs[j][i] * factor + from[(j * 4 + i) * THREADS] * their_factor;
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
    float factor = weight[half] > 0 ? 1 / weight[half] : 0;  // 0: all keys are padding
#pragma unroll
    for (int j = 0; j < HEAD_DIM / 8; ++j) {
      *reinterpret_cast<unsigned int*>(to + j * 8 + lane % 4 * 2) =
          pack<T>(outputs[j][2 * half] * factor, outputs[j][2 * half + 1] * factor);
    }
  }
}

}  // namespace moxin
