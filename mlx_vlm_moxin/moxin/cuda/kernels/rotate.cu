// Queries and keys, rotated, and values, from the products of q_proj, k_proj and v_proj; a token per
// thread block, whose heads share the rotations.
//
// Cost: reads the products' parts (`splits` values for each one) and writes each value once.
// Keys and values have zeros after the tokens, since mlx-vlm's caches may move what is there.
//
// Constants that layerwise_kernels.py defines in namespace config: T, Product (T or float),
// HEADS, KV_HEADS, HEAD_DIM, LOG2_THETA, THREADS.

#include "partial_products.cuh"

extern "C" __global__ void __launch_bounds__(
    config::THREADS, moxin::MIN_BLOCKS<config::Product>) rotate(
    // If splits > 0, q has all columns, [splits, rows, (HEADS + 2 * KV_HEADS) * HEAD_DIM], and k and v
    // are not read. If splits is 0, these are three products [rows, columns].
    const config::Product* q, const config::Product* k, const config::Product* v,
    const int* filled,   // filled[0]: tokens in the cache
    const int* padding,  // [B], masked tokens at the start of each sequence
    config::T* queries,  // [B, tokens, HEADS, HEAD_DIM]
    config::T* keys,     // [B, KV_HEADS, capacity, HEAD_DIM], zeros after the tokens
    config::T* values,   // as keys
    int rows, int tokens, int splits, int capacity) {
  using Part = moxin::HeadPart<config::T, config::HEAD_DIM, config::HEADS, config::KV_HEADS>;
  constexpr int QUERIES = config::HEADS * config::HEAD_DIM;
  constexpr int KEYS = config::KV_HEADS * config::HEAD_DIM;
  // The first threads compute the rotations while the others read products.
  constexpr int FINDERS = (Part::HALF + moxin::LANES - 1) / moxin::LANES * moxin::LANES;
  __shared__ float2 rotations[8][Part::OF_HEAD];  // [dim % 8][dim / 8]
  moxin::ProjectedHeads<config::Product> projected{q, k, v, QUERIES, KEYS};
  if (splits) projected = {q, q + QUERIES, q + QUERIES + KEYS, QUERIES + 2 * KEYS,
                                   QUERIES + 2 * KEYS};
  int row = blockIdx.x, thread = static_cast<int>(threadIdx.x) - FINDERS;
  if (thread < 0 && threadIdx.x < Part::HALF) {
    int position = *filled + row % tokens - padding[row / tokens];
    rotations[threadIdx.x % 8][threadIdx.x / 8] =
        moxin::rotation<Part::HALF>(position, threadIdx.x, config::LOG2_THETA);
  }
#pragma unroll 1
  for (int first = 0; first < Part::COUNT; first += config::THREADS - FINDERS) {
    bool is_inside = thread >= 0 && first + thread < Part::COUNT;
    Part part(row, first + thread);
    if (is_inside) part.read(projected, splits, rows);
    if (first == 0) __syncthreads();
    if (!is_inside) continue;
    part.rotate([&](int dim) { return rotations[dim % 8][dim / 8]; });
    part.write({queries, keys, values, capacity}, tokens);
  }
  int room = (capacity - tokens) * (config::HEAD_DIM / 8);  // vectors of a head after its tokens
  for (int i = blockIdx.x * config::THREADS + threadIdx.x; i < rows / tokens * config::KV_HEADS * room;
       i += gridDim.x * config::THREADS) {
    int at = (i / room * capacity + tokens) * (config::HEAD_DIM / 8) + i % room;
    reinterpret_cast<uint4*>(keys)[at] = uint4{0, 0, 0, 0};
    reinterpret_cast<uint4*>(values)[at] = uint4{0, 0, 0, 0};
  }
}
