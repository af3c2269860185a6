// The products of a decoding step: one token of one sequence. Each waits at the barrier `before` for
// its input and arrives at the barrier `after`; both may be the same one.
//
// Constants in namespace config: see fused_step.cu.

#pragma once

#include "decode_attention.cuh"
#include "decoder_layer.cuh"
#include "matvec.cuh"
#include "rope.cuh"

namespace moxin {

using config::T;
constexpr int ATTENDED = config::HEADS * config::HEAD_DIM;
using Attended = AttendedHeads<T, config::HEAD_DIM, config::HEADS, config::SPLITS>;
using Softmaxes = WarpSoftmaxes<config::HEAD_DIM, config::THREADS / LANES>;

// Lets the caches of all layers begin after their first `padding` positions, which are masked. Each
// thread changes what it has stored itself (FILL_LAYERS).
__device__ inline void skip_padding(Layer<T>* layers, int padding) {
  if (threadIdx.x < config::LAYERS) {
    layers[threadIdx.x].keys += padding * config::HEAD_DIM;
    layers[threadIdx.x].values += padding * config::HEAD_DIM;
  }
}

// Reads eight values at a time from memory.
struct Vector {
  const T* values;

  __device__ uint4 operator()(int i) const { return reinterpret_cast<const uint4*>(values)[i]; }
};

// Queries, keys and values of the RMS norm of x, with queries and keys rotated; keys and values are
// written into the cache.
template <typename Before, typename X>
__device__ void qkv(
    Before& before, GridBarrier& after, const Layer<T>& layer, X x, int position, int capacity,
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
    before.wait();
    stage_input<T, L, config::HIDDEN, config::THREADS, true>(
        input, thread, x, layer.input_norm, config::EPS);
  };
  constexpr int TOTAL = (config::HEADS + 2 * config::KV_HEADS) * HALF;
  multiply_rows<T, config::QKV, config::HIDDEN, 2, config::THREADS>(
      input, thread, TOTAL, prepare, locate, [](int) {}, finish);
  after.arrive();
}

// Attention of the token at `position` to all tokens up to it.
__device__ void attend(
    GridBarrier& barrier, const Layer<T>& layer, int position, int capacity, const T* queries,
    Attended& attended) {
  barrier.wait();
  for (int part = blockIdx.x; part < config::HEADS * config::SPLITS; part += gridDim.x) {
    attend_one_token<T, config::HEAD_DIM, config::HEADS, config::KV_HEADS, config::SPLITS,
                     config::WINDOW, config::THREADS>(
        *reinterpret_cast<Softmaxes*>(shared), part, queries, layer.keys, layer.values, position,
        capacity, config::SCALE, attended);
    __syncthreads();
  }
  barrier.arrive();
}

// silu(gate_proj(n)) * up_proj(n) with n = RMS norm of x.
template <typename Before, typename X>
__device__ void gate_up(Before& before, GridBarrier& after, const Layer<T>& layer, X x, T* out) {
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
    before.wait();
    stage_input<T, L, config::HIDDEN, config::THREADS, true>(
        input, thread, x, layer.post_norm, config::EPS);
  };
  multiply_rows<T, config::GATE_UP, config::HIDDEN, 2, config::THREADS>(
      input, thread, config::INTERMEDIATE, prepare, locate, [](int) {}, finish);
  after.arrive();
}

// residual + proj(source), with K inputs and HIDDEN outputs. residual(i) loads a value that to_float
// converts; a warp gives each result to out(i, lane, value) once, in all lanes.
template <typename F, int K, typename After, typename Source, typename Residual, typename Out>
__device__ void project(
    GridBarrier& before, After& after, const Matrix<T>& proj, Source source, Residual residual,
    Out out) {
  using L = RowLayout<F, K>;
  auto& input = *reinterpret_cast<StagedInput<L>*>(shared);
  int thread = thread_of_step();
  using Rows = WarpRows<T, F, K, 1, config::THREADS>;
  auto locate = [&](int set, Rows& rows) { rows.select(0, proj, set); };
  decltype(residual(0)) added;
  auto begin = [&](int set) { added = residual(set); };
  auto finish = [&](int set, float* totals) {
    out(set, thread % LANES, to_float(added) + totals[0]);
  };
  auto prepare = [&] {
    before.wait();
    stage_input<T, L, K, config::THREADS, false>(
        input, thread, source, static_cast<const T*>(nullptr), 0);
  };
  multiply_rows<T, F, K, 1, config::THREADS>(
      input, thread, config::HIDDEN, prepare, locate, begin, finish);
  after.arrive();
}

}  // namespace moxin
