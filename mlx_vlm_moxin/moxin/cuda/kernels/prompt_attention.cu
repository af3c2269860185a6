// Attention of the new tokens of prompts and batches (prompt_attention.cuh), a tile per thread block.
//
// Cost: reads each key and value once per tile of query rows. For one sequence, 4 * HEAD_DIM * HEADS
// FLOPs per new token and visible key.
//
// Constants that layerwise_kernels.py defines in namespace config: T, HEADS, KV_HEADS, HEAD_DIM,
// WINDOW (0: none), SCALE, KEY_WARPS, CAUSAL, Order (arranged.cuh); KEYS, ATTENTION_WARPS.

#include "prompt_attention.cuh"

extern "C" __global__ void __launch_bounds__(config::ATTENTION_WARPS * 32, 1) prompt_attention(
    const config::T* queries,     // [B, tokens, HEADS, HEAD_DIM]
    const config::T* keys,        // the cache, [B, KV_HEADS, capacity, HEAD_DIM]
    const config::T* values,      // as keys
    const config::T* new_keys,    // [B, KV_HEADS, new_capacity, HEAD_DIM], of which the first are used
    const config::T* new_values,  // as new_keys
    const int* filled,            // filled[0]: positions of the cache that are used
    const int* padding,           // [B], masked tokens at the start of each sequence
    config::T* out,               // [B, tokens, HEADS, HEAD_DIM] in `Order`
    int capacity, int tokens, int new_capacity,
    int tiles) {                  // of the packed rows of a key-value head
  moxin::CachedKeys<config::T> cache{keys, values, new_keys, new_values, *filled, padding,
                                     capacity, tokens, new_capacity, config::CAUSAL};
  // The last tokens' tiles, which have the most keys, begin first.
  int heads = gridDim.x / tiles, part = blockIdx.x % heads * tiles + tiles - 1 - blockIdx.x / heads;
  auto prepare = [&](unsigned int query_tile) {
    moxin::copy_queries<config::T, config::HEAD_DIM, config::HEADS, config::KV_HEADS,
                        config::KEY_WARPS>(queries, tokens, tiles, part, query_tile);
  };
  moxin::attend_tile<config::T, config::HEAD_DIM, config::HEADS, config::KV_HEADS, config::WINDOW,
                     config::KEY_WARPS, config::Order>(
      prepare, cache, tiles, config::SCALE, out, part);
}
