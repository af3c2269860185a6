// The steps of a layer for one token of each of up to eight sequences. Each waits at the barrier
// `before` for its input and arrives at the barrier `after`; both may be the same one.
//
// x(at) gives eight values of the hidden states [batch, HIDDEN] from number `at` on.
//
// Constants in namespace config: see fused_batch.cu.

#pragma once

#include "batch_attention.cuh"
#include "batch_products.cuh"

namespace moxin {

// A product of inputs [batch, K] that fit into registers, after the barrier `before`.
template <int PRODUCT, typename Before, typename After, typename X, typename Load, typename Out>
__device__ inline void multiply_rows(
    WeightStream& stream, int& finished, Before& before, After& after, X x, const T* norm,
    int batch, Load load, Out out) {
  constexpr int K = width_of(PRODUCT);
  StepInputs inputs[MOST_STEPS<K>];
  auto read = [&] {
    before.wait();
#pragma unroll
    for (int step = 0; step < MOST_STEPS<K>; ++step) load_inputs<K>(x, batch, step, inputs[step]);
  };
  if constexpr (PRODUCT == QKV || PRODUCT == GATE_UP) {
    NormWeight<K> weight(norm);
    read();
    normalise<K>(inputs, weight);
  } else {
    read();
  }
#pragma unroll
  for (StepInputs& step : inputs) step.finish();
  multiply_tiles<PRODUCT>(stream, finished, inputs, load, out);
  after.arrive();
}

// Queries, keys and values of the RMS norm of x, to products [batch, PROJECTED].
template <typename Before, typename X>
__device__ inline void qkv(
    WeightStream& stream, int& finished, Before& before, GridBarrier& after, const Layer<T>& layer,
    X x, int batch, float* products) {
  auto nothing = [](int, int, int) { return T{}; };
  auto store = [&](int tile, int row, int row_of_x, float value, T) {
    int at = row_of_x * PROJECTED + tile * TILE + row;
    if (row_of_x < batch) products[at] = value;
  };
  multiply_rows<QKV>(
      stream, finished, before, after, x, layer.input_norm, batch, nothing, store);
}

// Attention of the new tokens to [batch, HEADS, HEAD_DIM]; their keys and values go to the cache.
__device__ inline void attend(
    GridBarrier& barrier, const BatchCache<T>& cache, int batch, const float* products,
    T* attended) {
  using config::HEADS, config::KV_HEADS, config::HEAD_DIM, config::HEADS_AT_ONCE;
  prefetch_cache<T, HEAD_DIM, KV_HEADS, config::WINDOW, config::THREADS>(cache, batch);
  barrier.wait();
  auto& memory = *reinterpret_cast<BatchAttention<T, HEAD_DIM, HEADS_AT_ONCE, WARPS>*>(scratch());
  for (int item = blockIdx.x; item < batch * HEADS / HEADS_AT_ONCE; item += gridDim.x) {
    attend_heads<T, HEAD_DIM, HEADS, KV_HEADS, HEADS_AT_ONCE, config::KEY_BATCHES, config::WINDOW,
                 config::THREADS>(
        memory, item, products, cache, config::LOG2_THETA, config::SCALE, attended);
    __syncthreads();
  }
  barrier.arrive();
}

// o_proj of what attention gave; load and out are those of finish_tiles.
template <typename After, typename Load, typename Out>
__device__ inline void output(
    WeightStream& stream, int& finished, GridBarrier& before, After& after, const T* attended,
    int batch, Load load, Out out) {
  Vectors x{attended};
  multiply_rows<OUTPUT>(stream, finished, before, after, x, nullptr, batch, load, out);
}

// silu(gate_proj(n)) * up_proj(n) with n = RMS norm of x, to gated [batch, INTERMEDIATE].
template <typename Before, typename X>
__device__ inline void gate_up(
    WeightStream& stream, int& finished, Before& before, GridBarrier& after, const Layer<T>& layer,
    X x, int batch, T* gated) {
  auto nothing = [](int, int, int) { return T{}; };
  auto store = [&](int tile, int row, int row_of_x, float value, T) {
    int at = row_of_x * config::INTERMEDIATE + tile * (TILE / 2) + row;
    if (row_of_x < batch) gated[at] = round_to<T>(value);
  };
  multiply_rows<GATE_UP>(
      stream, finished, before, after, x, layer.post_norm, batch, nothing, store);
}

// down_proj of gated; load and out are those of finish_tiles.
template <typename After, typename Load, typename Out>
__device__ inline void down(
    WeightStream& stream, int& finished, GridBarrier& before, After& after, const T* gated,
    int batch, Load load, Out out) {
  before.wait();
  multiply_pairs<DOWN>(stream, finished, gated, batch, load, out);
  after.arrive();
}

}  // namespace moxin
