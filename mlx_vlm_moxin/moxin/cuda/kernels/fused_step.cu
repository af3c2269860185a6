// One token of one sequence through LAYERS decoder layers, in one launch.
//
// Cost: every weight is read once and takes part in one multiply-add, so the memory's bandwidth is
// the limit. Moxin's 32 layers are 6.98e9 weights: 13.96 GB at 16 bits, 7.42 GB at 8 bits and
// 3.93 GB at 4 bits in groups of 64, plus 131 KB of cache per token of context.
//
// A layer is five steps of the whole grid: qkv, attention, o_proj, gate_up and down_proj. While a
// thread block waits for the others, the first weights of its next step are already in flight.
//
// Constants that fused_step.py defines in namespace config: T; HIDDEN, INTERMEDIATE, HEAD_DIM, HEADS,
// KV_HEADS; WINDOW (0: none); LAYERS; QKV, OUTPUT, GATE_UP, DOWN (moxin::Format); EPS, LOG2_THETA,
// SCALE; SPLITS (thread blocks per head in attention) and THREADS.

#include "decode_attention.cuh"
#include "decoder_layer.cuh"
#include "matvec.cuh"
#include "rope.cuh"

namespace moxin {

using config::T;
constexpr int ATTENDED = config::HEADS * config::HEAD_DIM;
using Attended = AttendedHeads<T, config::HEAD_DIM, config::HEADS, config::SPLITS>;

// Reads eight values at a time from memory.
struct Vector {
  const T* values;

  __device__ uint4 operator()(int i) const { return reinterpret_cast<const uint4*>(values)[i]; }
};

// Queries, keys and values of the RMS norm of x, with queries and keys rotated; keys and values are
// written into the cache.
__device__ void qkv(
    GridBarrier& barrier, const Layer<T>& layer, const T* x, int position, int capacity,
    T* queries) {
  constexpr int HALF = config::HEAD_DIM / 2;
  using L = RowLayout<config::QKV, config::HIDDEN>;
  auto& input = *reinterpret_cast<StagedInput<L>*>(shared);
  int thread = thread_of_step();
  // A set is two rows of a projection that are rotated together: `row` and the one HALF after it.
  struct Place {
    bool is_query, is_key;
    int row;
  };
  auto place = [](int set) {
    int head = set / HALF;
    bool is_query = head < config::HEADS;
    bool is_key = !is_query && head < config::HEADS + config::KV_HEADS;
    if (!is_query) head -= is_key ? config::HEADS : config::HEADS + config::KV_HEADS;
    return Place{is_query, is_key, head * config::HEAD_DIM + set % HALF};
  };
  using Rows = WarpRows<T, config::QKV, config::HIDDEN, 2, config::THREADS>;
  auto locate = [&](int set, Rows& rows) {
    Place at = place(set);
    const Matrix<T>& matrix = at.is_query ? layer.q_proj
        : at.is_key                       ? layer.k_proj
                                          : layer.v_proj;
    rows.select(0, matrix, at.row);
    rows.select(1, matrix, at.row + HALF);
  };
  auto finish = [&](int set, float* totals) {
    if (thread % LANES) return;
    Place at = place(set);
    T* out = queries + at.row;
    if (!at.is_query) {
      int row = at.row / config::HEAD_DIM * capacity + position;
      out = (at.is_key ? layer.keys : layer.values)
          + static_cast<long long>(row) * config::HEAD_DIM + set % HALF;
    }
    float2 r = at.is_query || at.is_key
        ? rotation<HALF>(position, set % HALF, config::LOG2_THETA)
        : float2{1, 0};
    out[0] = round_to<T>(totals[0] * r.x - totals[1] * r.y);
    out[HALF] = round_to<T>(totals[0] * r.y + totals[1] * r.x);
  };
  auto prepare = [&] {
    barrier.wait();
    stage_input<T, L, config::HIDDEN, config::THREADS, true>(
        input, thread, Vector{x}, layer.input_norm, config::EPS);
  };
  constexpr int TOTAL = (config::HEADS + 2 * config::KV_HEADS) * HALF;
  multiply_rows<T, config::QKV, config::HIDDEN, 2, config::THREADS>(
      input, thread, TOTAL, prepare, locate, [](int) {}, finish);
  barrier.arrive();
}

// silu(gate_proj(n)) * up_proj(n) with n = RMS norm of x.
__device__ void gate_up(GridBarrier& barrier, const Layer<T>& layer, const T* x, T* out) {
  using L = RowLayout<config::GATE_UP, config::HIDDEN>;
  auto& input = *reinterpret_cast<StagedInput<L>*>(shared);
  int thread = thread_of_step();
  using Rows = WarpRows<T, config::GATE_UP, config::HIDDEN, 2, config::THREADS>;
  auto locate = [&](int set, Rows& rows) {
    rows.select(0, layer.gate_proj, set);
    rows.select(1, layer.up_proj, set);
  };
  auto finish = [&](int set, float* totals) {
    if (thread % LANES == 0) {
      out[set] = round_to<T>(totals[0] / (1 + __expf(-totals[0])) * totals[1]);
    }
  };
  auto prepare = [&] {
    barrier.wait();
    stage_input<T, L, config::HIDDEN, config::THREADS, true>(
        input, thread, Vector{x}, layer.post_norm, config::EPS);
  };
  multiply_rows<T, config::GATE_UP, config::HIDDEN, 2, config::THREADS>(
      input, thread, config::INTERMEDIATE, prepare, locate, [](int) {}, finish);
  barrier.arrive();
}

// out = residual + proj(source), with K inputs and HIDDEN outputs. `residual` may be `out`.
template <typename F, int K, typename Source>
__device__ void project(
    GridBarrier& barrier, const Matrix<T>& proj, Source source, const T* residual, T* out) {
  using L = RowLayout<F, K>;
  auto& input = *reinterpret_cast<StagedInput<L>*>(shared);
  int thread = thread_of_step();
  using Rows = WarpRows<T, F, K, 1, config::THREADS>;
  auto locate = [&](int set, Rows& rows) { rows.select(0, proj, set); };
  T added;
  auto begin = [&](int set) { added = load_early(residual + set); };
  auto finish = [&](int set, float* totals) {
    if (thread % LANES == 0) out[set] = round_to<T>(to_float(added) + totals[0]);
  };
  auto prepare = [&] {
    barrier.wait();
    stage_input<T, L, K, config::THREADS, false>(
        input, thread, source, static_cast<const T*>(nullptr), 0);
  };
  multiply_rows<T, F, K, 1, config::THREADS>(
      input, thread, config::HIDDEN, prepare, locate, begin, finish);
  barrier.arrive();
}

}  // namespace moxin

// The layers' arrays are separate parameters, since MLX passes arrays one by one: LAYER_PARAMETERS
// declares them, in the order of moxin::Layer, and FILL_LAYERS(layers) stores them in a table. The
// table is in shared memory: dynamically indexed kernel parameters would be copied to local memory
// by every thread.
extern "C" __global__ void __launch_bounds__(config::THREADS, 1) fused_step(
    const config::T* x,      // [HIDDEN]
    const int* position,     // position[0]: tokens in the cache, which is where this one goes
    unsigned int* arrivals,  // [4] zeros, the barrier's counter
    LAYER_PARAMETERS,
    config::T* out,          // [HIDDEN]
    config::T* queries,      // scratch [HEADS, HEAD_DIM]
    float* sums,             // scratch [HEADS * SPLITS * (HEAD_DIM + 2)]
    config::T* gated,        // scratch [INTERMEDIATE]
    int capacity) {          // positions of the cache
  using namespace moxin;
  __shared__ Layer<T> layers[config::LAYERS];
  FILL_LAYERS(layers)
  GridBarrier barrier{arrivals};
  barrier.arrive();
  int last = *position;
  Attended attended{sums};
#pragma unroll 1
  for (int i = 0; i < config::LAYERS; ++i) {
    const Layer<T>& layer = layers[i];
    const T* residual = i ? out : x;
    qkv(barrier, layer, residual, last, capacity, queries);
    barrier.wait();
    for (int part = blockIdx.x; part < config::HEADS * config::SPLITS; part += gridDim.x) {
      attend_one_token<T, config::HEAD_DIM, config::HEADS, config::KV_HEADS, config::SPLITS,
                       config::WINDOW, config::THREADS>(
          *reinterpret_cast<WarpSoftmaxes<config::HEAD_DIM, config::THREADS / LANES>*>(shared),
          part, queries, layer.keys, layer.values, last, capacity, config::SCALE, attended);
      __syncthreads();
    }
    barrier.arrive();
    project<config::OUTPUT, ATTENDED>(barrier, layer.o_proj, attended, residual, out);
    gate_up(barrier, layer, out, gated);
    project<config::DOWN, config::INTERMEDIATE>(
        barrier, layer.down_proj, Vector{gated}, out, out);
  }
}
