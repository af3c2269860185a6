// A token's way through layers of the decoder, in one launch.
//
// A layer is five steps of all blocks, each with what stands in front of and behind its product.
// While a block waits for the others, the first weights of its next step are on their way.

#include "attention.cu"
#include "layer.cu"
#include "matvec.cu"
#include "rotary.cu"

namespace moxin {

extern __shared__ __align__(16) unsigned char shared[];

template <typename T>
struct Vector {
  const T* values;

  __device__ uint4 operator()(int i) const { return reinterpret_cast<const uint4*>(values)[i]; }
};

// Queries, keys and values of RMS norm(x), queries and keys rotated; keys and values go to their
// place in the cache.
template <typename T, typename S, typename P, int THREADS>
__device__ void qkv(
    GridBarrier& barrier, const Layer<T>& layer, const T* x, int position, Numbers numbers,
    T* queries, LayerCache<T> cache) {
  constexpr int HALF = S::HEAD_DIM / 2;
  using F = Format<P, S::HIDDEN>;
  auto& input = *reinterpret_cast<Input<F>*>(shared);
  int thread = thread_of_step();
  // A set is dimension `row` and the one HALF further on, of a projection.
  struct Place {
    bool is_query, is_key;
    int row;
  };
  auto place = [](int set) {
    int head = set / HALF;
    bool is_query = head < S::HEADS, is_key = !is_query && head < S::HEADS + S::KV_HEADS;
    int own = is_query ? head : is_key ? head - S::HEADS : head - S::HEADS - S::KV_HEADS;
    return Place{is_query, is_key, own * S::HEAD_DIM + set % HALF};
  };
  auto locate = [&](int set, Rows<T, P, S::HIDDEN, 2, THREADS>& loaded) {
    Place own = place(set);
    const Matrix<T>& matrix = own.is_query ? layer.q_proj
        : own.is_key                       ? layer.k_proj
                                           : layer.v_proj;
    loaded.take(0, matrix, own.row);
    loaded.take(1, matrix, own.row + HALF);
  };
  auto finish = [&](int set, float* totals) {
    if (thread % LANES) return;
    Place own = place(set);
    T* out = queries + own.row;
    if (!own.is_query) {
      int row = own.row / S::HEAD_DIM * numbers.capacity + position;
      out = (own.is_key ? cache.keys : cache.values)
          + static_cast<long long>(row) * S::HEAD_DIM + set % HALF;
    }
    float2 r = own.is_query || own.is_key ? rotation<HALF>(position, set % HALF, numbers.log2_theta)
                                          : float2{1, 0};
    out[0] = round_to<T>(totals[0] * r.x - totals[1] * r.y);
    out[HALF] = round_to<T>(totals[0] * r.y + totals[1] * r.x);
  };
  auto prepare = [&] {
    barrier.wait();
    stage<T, F, S::HIDDEN, THREADS, true>(
        input, thread, Vector<T>{x}, layer.input_norm, numbers.eps);
  };
  constexpr int TOTAL = (S::HEADS + 2 * S::KV_HEADS) * HALF;
  multiply_rows<T, P, S::HIDDEN, 2, THREADS>(
      input, thread, TOTAL, prepare, locate, [](int) {}, finish);
  barrier.arrive();
}

// silu(gate_proj(n)) * up_proj(n) with n = RMS norm(x).
template <typename T, typename S, typename P, int THREADS>
__device__ void gate_up(
    GridBarrier& barrier, const Layer<T>& layer, const T* x, Numbers numbers, T* out) {
  using F = Format<P, S::HIDDEN>;
  auto& input = *reinterpret_cast<Input<F>*>(shared);
  int thread = thread_of_step();
  auto locate = [&](int set, Rows<T, P, S::HIDDEN, 2, THREADS>& loaded) {
    loaded.take(0, layer.gate_proj, set);
    loaded.take(1, layer.up_proj, set);
  };
  auto finish = [&](int set, float* totals) {
    if (thread % LANES == 0) {
      out[set] = round_to<T>(totals[0] / (1 + __expf(-totals[0])) * totals[1]);
    }
  };
  auto prepare = [&] {
    barrier.wait();
    stage<T, F, S::HIDDEN, THREADS, true>(
        input, thread, Vector<T>{x}, layer.post_norm, numbers.eps);
  };
  multiply_rows<T, P, S::HIDDEN, 2, THREADS>(
      input, thread, S::INTERMEDIATE, prepare, locate, [](int) {}, finish);
  barrier.arrive();
}

// residual + proj(source), of K values N.
template <typename T, typename P, int K, int N, int THREADS, typename V>
__device__ void project(
    GridBarrier& barrier, const Matrix<T>& proj, V source, const T* residual, T* out) {
  using F = Format<P, K>;
  auto& input = *reinterpret_cast<Input<F>*>(shared);
  int thread = thread_of_step();
  auto locate = [&](int set, Rows<T, P, K, 1, THREADS>& loaded) { loaded.take(0, proj, set); };
  T added;
  auto begin = [&](int set) { added = load_early(residual + set); };
  auto finish = [&](int set, float* totals) {
    if (thread % LANES == 0) out[set] = round_to<T>(to_float(added) + totals[0]);
  };
  auto prepare = [&] {
    barrier.wait();
    stage<T, F, K, THREADS, false>(input, thread, source, static_cast<const T*>(nullptr), 0);
  };
  multiply_rows<T, P, K, 1, THREADS>(input, thread, N, prepare, locate, begin, finish);
  barrier.arrive();
}

// x [HIDDEN] of the token at *position through COUNT layers, to `out`. What follows `out` is for
// the steps to leave their results to each other. `caches` are those of all layers; the layers'
// begin with number `first`. fill(layers) puts the layers into shared memory: of parameters that
// are indexed every thread would make a copy.
template <typename T, typename S, typename QKV, typename O, typename GATE_UP, typename DOWN,
          int COUNT, int SPLITS, int THREADS, typename L>
__device__ void decode(
    L fill, const T* x, const int* position, unsigned int* arrivals, T* caches, int first,
    Numbers numbers, T* out, T* queries, float* sums, T* gated) {
  __shared__ Layer<T> layers[COUNT];
  fill(layers);
  GridBarrier barrier{arrivals};
  barrier.arrive();
  int last = *position;
  Attended<T, S::HEAD_DIM, S::HEADS, SPLITS> attended{sums};
#pragma unroll 1
  for (int i = 0; i < COUNT; ++i) {
    const Layer<T>& layer = layers[i];
    const T* residual = i ? out : x;
    LayerCache<T> cache = layer_cache<S>(caches, first + i, numbers.capacity);
    qkv<T, S, QKV, THREADS>(barrier, layer, residual, last, numbers, queries, cache);
    barrier.wait();
    for (int part = blockIdx.x; part < S::HEADS * SPLITS; part += gridDim.x) {
      attend<T, S::HEAD_DIM, S::HEADS, S::KV_HEADS, SPLITS, S::WINDOW, THREADS>(
          *reinterpret_cast<Gathered<S::HEAD_DIM, THREADS / LANES>*>(shared), part, queries,
          cache.keys, cache.values, last, numbers.capacity, numbers.scale, attended);
      __syncthreads();
    }
    barrier.arrive();
    project<T, O, S::HEADS * S::HEAD_DIM, S::HIDDEN, THREADS>(
        barrier, layer.o_proj, attended, residual, out);
    gate_up<T, S, GATE_UP, THREADS>(barrier, layer, out, numbers, gated);
    project<T, DOWN, S::INTERMEDIATE, S::HIDDEN, THREADS>(
        barrier, layer.down_proj, Vector<T>{gated}, out, out);
  }
}

}  // namespace moxin
