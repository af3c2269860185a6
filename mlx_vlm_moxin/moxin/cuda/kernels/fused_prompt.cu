// A short prompt (up to 64 tokens) of one sequence through LAYERS decoder layers, in one launch.
//
// Cost: as in fused_step.cu every weight is read once, which is the limit: 64 tokens of Moxin take
// 0.9 TFLOPs in tensor cores.
//
// A layer is eight steps of the whole grid. While a thread block waits for the others, the first
// weights of its next product are in flight.
//
// Constants that fused_prompt.py defines in namespace config: T; HIDDEN, INTERMEDIATE, HEAD_DIM, HEADS,
// KV_HEADS; WINDOW (0: none); LAYERS; QKV, OUTPUT, GATE_UP, DOWN (moxin::Format); EPS, LOG2_THETA,
// SCALE; ROWS (16, 32 or 64, at least the number of tokens); TILE_K, STAGES, PRODUCT_WARPS, TILES,
// GATED_TILES, UNROLL, KEYS, ATTENTION_WARPS, THREADS.

#include "decoder_layer.cuh"
#include "narrow_matmul.cuh"
#include "partial_products.cuh"
#include "prompt_attention.cuh"
#include "scratch_memory.cuh"

namespace moxin {

using config::T;

// One product by the whole grid: x [rows, K] times the transpose of the matrices, in `splits` parts.
template <typename F, bool GATED, int K, typename O>
__device__ void multiply(
    GridBarrier& barrier, const T* x, const Matrices<T>& matrices, int rows, int splits, O* out) {
  constexpr int TILES = GATED ? config::GATED_TILES : config::TILES;
  constexpr int COLUMNS = WARP_COLUMNS<GATED, TILES>;
  int N = GATED ? matrices.ends[0] : matrices.ends[2];
  int split = blockIdx.x % splits, block = blockIdx.x / splits, blocks = gridDim.x / splits;
  int warp = thread_of_step() / LANES;
  auto ready = [&] { barrier.wait(); };
  // Consecutive columns are in different thread blocks, so that a last round of work with fewer
  // items than warps still occupies all multiprocessors.
  for (int i = block; block < blocks && i * COLUMNS < N; i += blocks * PRODUCT_WARPS) {
    multiply_columns<T, F::BITS, F::GROUP, config::ROWS, GATED, TILES>(
        x, matrices, RowRange{0, rows, rows}, K, split, splits, (i + warp * blocks) * COLUMNS, out,
        ready);
    __syncthreads();
  }
  barrier.wait();
  barrier.arrive();
}

}  // namespace moxin

// As in fused_step.cu, LAYER_PARAMETERS declares the layers' arrays and FILL_LAYERS(layers) stores
// them in a table in shared memory.
extern "C" __global__ void __launch_bounds__(config::THREADS, 1) fused_prompt(
    const config::T* x,      // [tokens, HIDDEN]
    const int* filled,       // filled[0]: tokens in the cache, before these
    unsigned int* arrivals,  // [4] zeros, the barrier's counter
    LAYER_PARAMETERS,
    config::T* out,          // [tokens, HIDDEN]
    unsigned int* scratch,   // see below
    int capacity,            // positions of the cache
    int tokens, int qkv_splits, int output_splits, int down_splits) {
  using namespace moxin;
  constexpr int ATTENDED = config::HEADS * config::HEAD_DIM;
  constexpr int KEYS_WIDTH = config::KV_HEADS * config::HEAD_DIM;
  constexpr int PROJECTED = ATTENDED + 2 * KEYS_WIDTH;
  constexpr int QUERIES = 16;  // packed rows of a tile of attention, with KEY_WARPS 4
  __shared__ Layer<T> layers[config::LAYERS];
  FILL_LAYERS(layers)
  GridBarrier barrier{arrivals};
  barrier.arrive();
  int before = *filled;
  ScratchMemory memory(scratch);
  T* normed = memory.take<T>(config::ROWS * config::HIDDEN);
  T* queries = memory.take<T>(config::ROWS * ATTENDED);  // [tokens, HEADS, HEAD_DIM]
  T* attended = memory.take<T>(config::ROWS * ATTENDED);
  T* gated = memory.take<T>(config::ROWS * config::INTERMEDIATE);
  float* products = memory.take<float>(0);  // the largest [splits, tokens, columns] of the three

  auto norm = [&](const T* residual, const float* product, int splits, const T* weight) {
    barrier.wait();
    for (int row = blockIdx.x; row < tokens; row += gridDim.x) {
      add_and_norm<T, config::HIDDEN, config::THREADS>(
          product, residual, weight, splits, tokens, config::EPS, out, normed, row);
      __syncthreads();
    }
    barrier.arrive();
  };
#pragma unroll 1
  for (int i = 0; i < config::LAYERS; ++i) {
    const Layer<T>& layer = layers[i];
    T* new_keys = layer.keys + before * config::HEAD_DIM;
    T* new_values = layer.values + before * config::HEAD_DIM;
    const T* residual = i ? out : x;
    norm(residual, i ? products : nullptr, down_splits, layer.input_norm);
    Matrices<T> qkv{{layer.q_proj, layer.k_proj, layer.v_proj},
                    {ATTENDED, ATTENDED + KEYS_WIDTH, PROJECTED}};
    multiply<config::QKV, false, config::HIDDEN>(
        barrier, normed, qkv, tokens, qkv_splits, products);

    barrier.wait();
    ProjectedHeads<float> projected{products, products + ATTENDED,
                                    products + ATTENDED + KEYS_WIDTH, PROJECTED, PROJECTED};
    RotatedHeads<T> rotated{queries, new_keys, new_values, capacity};
    using Part = HeadPart<T, config::HEAD_DIM, config::HEADS, config::KV_HEADS>;
    for (int unit = blockIdx.x * config::THREADS + thread_of_step(); unit < tokens * Part::COUNT;
         unit += gridDim.x * config::THREADS) {
      Part part(unit / Part::COUNT, unit % Part::COUNT);
      part.read(projected, qkv_splits, tokens);
      part.rotate([&](int dim) {
        return rotation<config::HEAD_DIM / 2>(before + part.row, dim, config::LOG2_THETA);
      });
      part.write(rotated, tokens);
    }
    barrier.arrive();

    barrier.wait();
    if (thread_of_step() < ATTENTION_WARPS * LANES) {
      int tiles = (tokens * (config::HEADS / config::KV_HEADS) + QUERIES - 1) / QUERIES;
      CachedKeys<T> cache{layer.keys, layer.values, new_keys, new_values, before, nullptr,
                          capacity, tokens, capacity};
      for (int part = blockIdx.x; part < config::KV_HEADS * tiles; part += gridDim.x) {
        auto prepare = [&](unsigned int query_tile) {
          copy_queries<T, config::HEAD_DIM, config::HEADS, config::KV_HEADS, ATTENTION_WARPS>(
              queries, tokens, tiles, part, query_tile);
        };
        attend_tile<T, config::HEAD_DIM, config::HEADS, config::KV_HEADS, config::WINDOW,
                    ATTENTION_WARPS>(prepare, cache, tiles, config::SCALE, attended, part);
        sync_team<ATTENTION_WARPS * LANES>(0);
      }
    }
    barrier.arrive();

    Matrices<T> output{{layer.o_proj}, {config::HIDDEN, config::HIDDEN, config::HIDDEN}};
    multiply<config::OUTPUT, false, ATTENDED>(
        barrier, attended, output, tokens, output_splits, products);
    norm(residual, products, output_splits, layer.post_norm);
    Matrices<T> gate_up{
        {layer.gate_proj, layer.up_proj},
        {config::INTERMEDIATE, 2 * config::INTERMEDIATE, 2 * config::INTERMEDIATE}};
    multiply<config::GATE_UP, true, config::HIDDEN>(barrier, normed, gate_up, tokens, 1, gated);
    Matrices<T> down{{layer.down_proj}, {config::HIDDEN, config::HIDDEN, config::HIDDEN}};
    multiply<config::DOWN, false, config::INTERMEDIATE>(
        barrier, gated, down, tokens, down_splits, products);
  }
  norm(out, products, down_splits, nullptr);
}
