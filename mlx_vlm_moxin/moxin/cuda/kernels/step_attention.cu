// Attention of one new token of each sequence of a batch; appends its key and value to the cache.
// Rotary embedding and attention in one launch, a tile of query rows per thread block.
//
// Cost: reads the partial products (`splits` floats per value) and every key and value once: 147 KB
// per position and sequence for Moxin's 36 layers.
//
// Constants that step_attention.py defines in namespace config: T, Product (float, or T for products
// of MLX), HEADS, KV_HEADS, HEAD_DIM, LOG2_THETA, WINDOW (0: none), SCALE, TILE_QUERIES,
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
    config::T* out,      // [B, HEADS, HEAD_DIM]; holds the rotated queries in between
    int batch, int capacity, int splits,
    int tiles) {         // of the query rows of a key-value head
  using namespace moxin;
  using config::HEAD_DIM, config::HEADS, config::KV_HEADS;
  constexpr int QUERIES = HEADS * HEAD_DIM, KEYS_WIDTH = KV_HEADS * HEAD_DIM;
  constexpr int PROJECTED = QUERIES + 2 * KEYS_WIDTH;
  constexpr int GROUP = HEADS / KV_HEADS, UNITS = HEAD_DIM / 16;
  ProjectedHeads<config::Product> projected{q, k, v, QUERIES, KEYS_WIDTH};
  if (splits) projected = {q, q + QUERIES, q + QUERIES + KEYS_WIDTH, PROJECTED, PROJECTED};
  config::T* new_keys = keys + static_cast<long long>(*filled) * HEAD_DIM;
  config::T* new_values = values + static_cast<long long>(*filled) * HEAD_DIM;
  RotatedHeads<config::T> rotated{out, new_keys, new_values, capacity};
  // The heads of this thread block: its tile of queries, their key and their value.
  int kv_head = blockIdx.x / tiles % KV_HEADS, sequence = blockIdx.x / tiles / KV_HEADS;
  int first = blockIdx.x % tiles * config::TILE_QUERIES;
  int count = min(config::TILE_QUERIES, GROUP - first);
  for (int i = threadIdx.x; i < (count + 2) * UNITS; i += config::THREADS) {
    int index = i / UNITS;
    int head = index < count ? kv_head * GROUP + first + index
                             : HEADS + (index - count) * KV_HEADS + kv_head;
    rotate_heads<config::T, HEAD_DIM, HEADS, KV_HEADS>(
        projected, *filled, padding, splits, batch, 1, config::LOG2_THETA, rotated,
        (sequence * (HEADS + 2 * KV_HEADS) + head) * UNITS + i % UNITS);
  }
  __syncthreads();
  CachedKeys<config::T> cache{keys, values, new_keys, new_values, *filled, padding,
                              capacity, 1, capacity};
  attend_tile<config::T, HEAD_DIM, HEADS, KV_HEADS, config::WINDOW, config::KEY_WARPS>(
      out, cache, tiles, config::SCALE, out, blockIdx.x);
}
