// Attention of one new token of each sequence of a batch; appends its key and value to the cache.
// Rotary embedding and attention in one launch, a tile of query rows per thread block.
//
// Cost: reads the products' parts (`splits` values for each one) and every key and value once: 147 KB
// per position and sequence for Moxin's 36 layers.
//
// Constants that step_attention.py defines in namespace config: T, Product (T or float),
// HEADS, KV_HEADS, HEAD_DIM, LOG2_THETA, WINDOW (0: none), SCALE, TILE_QUERIES,
// KEY_WARPS, THREADS; KEYS, ATTENTION_WARPS.

#include "partial_products.cuh"
#include "prompt_attention.cuh"

extern "C" __global__ void __launch_bounds__(config::THREADS, 1) step_attention(
    // As in rotate.cu: if splits > 0, q has all columns, and k and v are not read.
    const config::Product* q, const config::Product* k, const config::Product* v,
    const int* filled,   // filled[0]: positions of the cache that are used
    const int* padding,  // [B], masked tokens at the start of each sequence
    config::T* keys,     // the cache, [B, KV_HEADS, capacity, HEAD_DIM]; written at filled[0]
    config::T* values,   // as keys
    config::T* out,      // [B, HEADS, HEAD_DIM]
    int batch, int capacity, int splits,
    int tiles) {         // of the query rows of a key-value head
  using namespace moxin;
  using config::HEAD_DIM, config::HEADS, config::KV_HEADS;
  constexpr int QUERIES = HEADS * HEAD_DIM, KEYS_WIDTH = KV_HEADS * HEAD_DIM;
  constexpr int PROJECTED = QUERIES + 2 * KEYS_WIDTH;
  constexpr int GROUP = HEADS / KV_HEADS, HALF = HEAD_DIM / 2, UNITS = HALF / 4;
  int before = *filled, thread = threadIdx.x;
  config::T* new_keys = keys + static_cast<long long>(before) * HEAD_DIM;
  config::T* new_values = values + static_cast<long long>(before) * HEAD_DIM;
  // The heads of this thread block: its tile of queries, their key and their value.
  int kv_head = blockIdx.x / tiles % KV_HEADS, sequence = blockIdx.x / tiles / KV_HEADS;
  int first = blockIdx.x % tiles * config::TILE_QUERIES;
  int count = min(config::TILE_QUERIES, GROUP - first);

  // Rotates queries and key, four dimensions of each half at a time, into the tile of queries, with which
  // shared memory begins, and into the cache.
  auto prepare = [&](unsigned int) {
    __shared__ float2 rotations[HALF];
    for (int dim = thread; dim < HALF; dim += config::THREADS) {
      rotations[dim] = rotation<HALF>(before - padding[sequence], dim, config::LOG2_THETA);
    }
    __syncthreads();
    for (int i = thread; i < (config::TILE_QUERIES + 2) * UNITS; i += config::THREADS) {
      int index = i / UNITS - 2, dim = i % UNITS * 4;  // -2: the key, -1: the value
      unsigned int low[2] = {}, high[2] = {};
      if (index < count) {
        const config::Product* from = index < 0 ? (index == -2 ? k : v) : q;
        int stride = index < 0 ? KEYS_WIDTH : QUERIES;
        int head = index < 0 ? kv_head : kv_head * GROUP + first + index;
        if (splits) {
          from = q;
          stride = PROJECTED;
          if (index < 0) head += HEADS + (index == -2 ? 0 : KV_HEADS);
        }
        from += static_cast<long long>(sequence) * stride + head * HEAD_DIM + dim;
        float halves[2][4];
        sum_parts<config::T, 8>(from, static_cast<long long>(batch) * stride, splits, HALF, halves);
        if (index != -1) {
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            float2 r = rotations[dim + j];
            float rotated = halves[0][j] * r.x - halves[1][j] * r.y;
            halves[1][j] = halves[0][j] * r.y + halves[1][j] * r.x;
            halves[0][j] = rotated;
          }
        }
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          low[j] = pack<config::T>(halves[0][2 * j], halves[0][2 * j + 1]);
          high[j] = pack<config::T>(halves[1][2 * j], halves[1][2 * j + 1]);
        }
      }
      if (index >= 0) {
        unsigned char* to = shared + index * ATTENTION_PITCH<HEAD_DIM> + dim * 2;
        *reinterpret_cast<uint2*>(to) = uint2{low[0], low[1]};
        *reinterpret_cast<uint2*>(to + HALF * 2) = uint2{high[0], high[1]};
      } else {
        config::T* to = (index == -2 ? new_keys : new_values) + dim +
            (static_cast<long long>(sequence) * KV_HEADS + kv_head) * capacity * HEAD_DIM;
        *reinterpret_cast<uint2*>(to) = uint2{low[0], low[1]};
        *reinterpret_cast<uint2*>(to + HALF) = uint2{high[0], high[1]};
      }
    }
    __syncthreads();
  };
  CachedKeys<config::T> cache{keys, values, new_keys, new_values, before, padding,
                              capacity, 1, capacity};
  attend_tile<config::T, HEAD_DIM, HEADS, KV_HEADS, config::WINDOW, config::KEY_WARPS>(
      prepare, cache, tiles, config::SCALE, out, blockIdx.x);
}
