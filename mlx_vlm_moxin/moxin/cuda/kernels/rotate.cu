// Queries and keys, rotated, and values, from the products of q_proj, k_proj and v_proj.
//
// Cost: reads the partial products (`splits` floats per value) and writes each value once.
// Keys and values have zeros after the tokens, since mlx-vlm's caches may move what is there.
//
// Constants that layerwise_kernels.py defines in namespace config: T, Product (float, or T for
// products of MLX), HEADS, KV_HEADS, HEAD_DIM, LOG2_THETA, THREADS.

#include "partial_products.cuh"

extern "C" __global__ void __launch_bounds__(config::THREADS, 1) rotate(
    // If splits > 0, q has all columns, [splits, rows, (HEADS + 2 * KV_HEADS) * HEAD_DIM], and k and v
    // are not read. If splits is 0, these are three products [rows, columns].
    const config::Product* q, const config::Product* k, const config::Product* v,
    const int* filled,   // filled[0]: tokens in the cache
    const int* padding,  // [B], masked tokens at the start of each sequence
    config::T* queries,  // [B, tokens, HEADS, HEAD_DIM]
    config::T* keys,     // [B, KV_HEADS, capacity, HEAD_DIM], zeros after the tokens
    config::T* values,   // as keys
    int rows, int tokens, int splits, int capacity) {
  constexpr int QUERIES = config::HEADS * config::HEAD_DIM;
  constexpr int KEYS = config::KV_HEADS * config::HEAD_DIM;
  moxin::ProjectedHeads<config::Product> projected{q, k, v, QUERIES, KEYS};
  if (splits) projected = {q, q + QUERIES, q + QUERIES + KEYS, QUERIES + 2 * KEYS,
                                   QUERIES + 2 * KEYS};
  moxin::rotate_heads<config::T, config::HEAD_DIM, config::HEADS, config::KV_HEADS>(
      projected, *filled, padding, splits, rows, tokens, config::LOG2_THETA,
      moxin::RotatedHeads<config::T>{queries, keys, values, capacity},
      blockIdx.x * config::THREADS + threadIdx.x);
  int room = (capacity - tokens) * (config::HEAD_DIM / 8);  // vectors of a head after its tokens
  for (int i = blockIdx.x * config::THREADS + threadIdx.x; i < rows / tokens * config::KV_HEADS * room;
       i += gridDim.x * config::THREADS) {
    int at = (i / room * capacity + tokens) * (config::HEAD_DIM / 8) + i % room;
    reinterpret_cast<uint4*>(keys)[at] = uint4{0, 0, 0, 0};
    reinterpret_cast<uint4*>(values)[at] = uint4{0, 0, 0, 0};
  }
}
