// The way of a sequence's next few tokens through layers of the decoder, in one launch.
//
// A layer is eight steps of all blocks. While a block waits for the others, the first weights of
// its next product are on their way.

#include "layer.cu"
#include "rows_attention.cu"
#include "rows_product.cu"
#include "rows_steps.cu"

namespace moxin {

constexpr int ROWS_THREADS = PRODUCT_WARPS * LANES;

// Into how many parts K is divided, of the products that are not gated.
struct Splits {
  int qkv, output, down;
};

template <typename T, typename P, int ROWS, bool GATED, int K, typename O>
__device__ void product(
    GridBarrier& barrier, const T* x, const Stack<T>& stack, int rows, int splits, O* out) {
  // Gated, all columns of the real model are taken in one round.
  constexpr int TILES = GATED ? 4 : 2, COLUMNS = OWN_COLUMNS<GATED, TILES>;
  int N = GATED ? stack.ends[0] : stack.ends[2];
  int split = blockIdx.x % splits, own = blockIdx.x / splits, blocks = gridDim.x / splits;
  int warp = thread_of_step() / LANES;
  auto ready = [&] { barrier.wait(); };
  // Neighbours are in different blocks, so that a last round of work, which not all warps take part
  // in, still occupies all multiprocessors.
  for (int i = own; own < blocks && i * COLUMNS < N; i += blocks * PRODUCT_WARPS) {
    multiply<T, P::BITS, P::GROUP, ROWS, GATED, TILES>(
        x, stack, rows, K, split, splits, (i + warp * blocks) * COLUMNS, out, ready);
    __syncthreads();
  }
  barrier.wait();
  barrier.arrive();
}

// x [tokens, HIDDEN] of the tokens that follow *filled others through COUNT layers, to `out`; at
// most ROWS tokens. What follows `out` is for the steps to leave their results to each other.
// `caches` are those of all layers; the layers' begin with number `first`. fill(layers) puts the
// layers into shared memory: of parameters that are indexed every thread would make a copy.
template <typename T, typename S, typename QKV, typename O, typename GATE_UP, typename DOWN,
          int COUNT, int ROWS, typename L>
__device__ void rows(
    L fill, const T* x, const int* filled, unsigned int* arrivals, T* caches, int first,
    Numbers numbers, int tokens, Splits splits, T* out, T* normed, float* products, T* queries,
    T* attended, T* gated) {
  constexpr int ATTENDED = S::HEADS * S::HEAD_DIM, KEYS_WIDTH = S::KV_HEADS * S::HEAD_DIM;
  constexpr int ALL = ATTENDED + 2 * KEYS_WIDTH, QUERIES = 16;
  __shared__ Layer<T> layers[COUNT];
  fill(layers);
  GridBarrier barrier{arrivals};
  barrier.arrive();
  int before = *filled;

  auto norm = [&](const T* residual, const float* product, int parts, const T* weight) {
    barrier.wait();
    for (int row = blockIdx.x; row < tokens; row += gridDim.x) {
      add_norm<T, S::HIDDEN, ROWS_THREADS>(
          product, residual, weight, parts, tokens, numbers.eps, out, normed, row);
      __syncthreads();
    }
    barrier.arrive();
  };
#pragma unroll 1
  for (int i = 0; i < COUNT; ++i) {
    const Layer<T>& layer = layers[i];
    LayerCache<T> cache = layer_cache<S>(caches, first + i, numbers.capacity);
    T* new_keys = cache.keys + before * S::HEAD_DIM;
    T* new_values = cache.values + before * S::HEAD_DIM;
    const T* residual = i ? out : x;
    norm(residual, i ? products : nullptr, splits.down, layer.input_norm);
    Stack<T> qkv{{layer.q_proj, layer.k_proj, layer.v_proj},
                 {ATTENDED, ATTENDED + KEYS_WIDTH, ALL}};
    product<T, QKV, ROWS, false, S::HIDDEN>(barrier, normed, qkv, tokens, splits.qkv, products);

    barrier.wait();
    Projected<float> projected{products, products + ATTENDED, products + ATTENDED + KEYS_WIDTH,
                               ALL, ALL};
    Rotated<T> rotated{queries, new_keys, new_values, numbers.capacity};
    for (int unit = blockIdx.x * ROWS_THREADS + thread_of_step(); unit < tokens * ALL / 16;
         unit += gridDim.x * ROWS_THREADS) {
      rotate<T, S::HEAD_DIM, S::HEADS, S::KV_HEADS>(
          projected, before, nullptr, splits.qkv, tokens, tokens, numbers.log2_theta, rotated,
          unit);
    }
    barrier.arrive();

    barrier.wait();
    if (thread_of_step() < ATTENTION_WARPS * LANES) {
      int tiles = (tokens * (S::HEADS / S::KV_HEADS) + QUERIES - 1) / QUERIES;
      Cache<T> all{cache.keys, cache.values, new_keys, new_values, before, nullptr,
                   numbers.capacity, tokens, numbers.capacity};
      for (int part = blockIdx.x; part < S::KV_HEADS * tiles; part += gridDim.x) {
        attend<T, S::HEAD_DIM, S::HEADS, S::KV_HEADS, S::WINDOW, ATTENTION_WARPS>(
            queries, all, tiles, numbers.scale, attended, part);
        sync_team<ATTENTION_WARPS * LANES>(0);
      }
    }
    barrier.arrive();

    Stack<T> output{{layer.o_proj}, {S::HIDDEN, S::HIDDEN, S::HIDDEN}};
    product<T, O, ROWS, false, ATTENDED>(
        barrier, attended, output, tokens, splits.output, products);
    norm(residual, products, splits.output, layer.post_norm);
    Stack<T> gate_up{{layer.gate_proj, layer.up_proj},
                     {S::INTERMEDIATE, 2 * S::INTERMEDIATE, 2 * S::INTERMEDIATE}};
    product<T, GATE_UP, ROWS, true, S::HIDDEN>(barrier, normed, gate_up, tokens, 1, gated);
    Stack<T> down{{layer.down_proj}, {S::HIDDEN, S::HIDDEN, S::HIDDEN}};
    product<T, DOWN, ROWS, false, S::INTERMEDIATE>(
        barrier, gated, down, tokens, splits.down, products);
  }
  norm(out, products, splits.down, nullptr);
}

}  // namespace moxin
