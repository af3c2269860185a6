// The products of a decoding step: one token of one sequence. Each waits at the barrier `before` for
// its input and arrives at the barrier `after`; both may be the same one.
//
// Constants in namespace config: see fused_step.cu.

#pragma once

#include "decode_attention.cuh"
#include "packed_stream.cuh"
#include "rope.cuh"

namespace moxin {

using Attended = AttendedHeads<T, config::HEAD_DIM, config::HEADS, config::SPLITS>;
using Softmaxes = WarpSoftmaxes<config::HEAD_DIM, config::THREADS / LANES>;

// Weights that each product loads itself (matvec.cuh).
struct LoadedWeights {
  template <int PRODUCT>
  using Layout = RowLayout<typename FormatOf<PRODUCT>::Type, WIDTH<PRODUCT>>;
  template <int PRODUCT>
  static constexpr int ROWS = PRODUCT == QKV || PRODUCT == GATE_UP ? 2 : 1;

  __device__ LoadedWeights(const Layer<T>*, unsigned char*) {}

  __device__ void fill() {}
  template <typename Barrier>
  __device__ void wait(Barrier& barrier) {
    barrier.wait();
  }

  template <int PRODUCT, typename Prepare, typename Begin, typename Finish>
  __device__ void multiply(
      const StagedInput<Layout<PRODUCT>>& input, const Layer<T>& layer, Prepare prepare, Begin begin,
      Finish finish) {
    constexpr int COUNT = ROWS<PRODUCT>;
    using Format = typename FormatOf<PRODUCT>::Type;
    using Rows = WarpRows<T, Format, WIDTH<PRODUCT>, COUNT, config::THREADS>;
    auto locate = [&](int set, Rows& rows) {
#pragma unroll
      for (int r = 0; r < COUNT; ++r) {
        Row row = row_of<PRODUCT, COUNT>(layer, set, r);
        rows.select(r, *row.matrix, row.index);
      }
    };
    multiply_rows<T, Format, WIDTH<PRODUCT>, COUNT, config::THREADS>(
        input, thread_of_step(), SETS<PRODUCT, COUNT>, prepare, locate, begin, finish);
  }
};

template <bool IS_STREAMED>
struct StepWeightsOf {
  using Type = LoadedWeights;
};

template <>
struct StepWeightsOf<true> {
  using Type = PackedStream<config::SLOTS>;
};

using StepWeights = typename StepWeightsOf<(config::SLOTS > 0)>::Type;

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

// Stages the input of a product in shared memory, after the barrier `before`.
template <int PRODUCT, typename Before, typename X>
__device__ void stage(
    StagedInput<StepWeights::Layout<PRODUCT>>& input, StepWeights& weights, Before& before, X x,
    const T* norm, float eps) {
  constexpr bool HAS_NORM = PRODUCT == QKV || PRODUCT == GATE_UP;
  stage_input<T, StepWeights::Layout<PRODUCT>, WIDTH<PRODUCT>, config::THREADS, HAS_NORM>(
      input, thread_of_step(), [&] { weights.wait(before); }, x, norm, eps);
}

// Queries, keys and values of the RMS norm of x, with queries and keys rotated; keys and values are
// written into the cache.
template <typename Before, typename X>
__device__ void qkv(
    StepWeights& weights, Before& before, GridBarrier& after, const Layer<T>& layer, X x,
    int position, int capacity, T* queries) {
  auto& input = *reinterpret_cast<StagedInput<StepWeights::Layout<QKV>>*>(shared);
  int thread = thread_of_step();
  auto finish = [&](int set, float* totals) {
    if (thread % LANES) return;
    HeadRow at(set);
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
  auto prepare = [&] { stage<QKV>(input, weights, before, x, layer.input_norm, config::EPS); };
  weights.multiply<QKV>(input, layer, prepare, [](int) {}, finish);
  after.arrive();
}

// Attention of the token at `position` to all tokens up to it.
__device__ void attend(
    StepWeights& weights, GridBarrier& barrier, const Layer<T>& layer, int position, int capacity,
    const T* queries, Attended& attended) {
  weights.wait(barrier);
  weights.fill();
  for (int part = blockIdx.x; part < config::HEADS * config::SPLITS; part += gridDim.x) {
    attend_one_token<T, config::HEAD_DIM, config::HEADS, config::KV_HEADS, config::SPLITS,
                     config::WINDOW, config::THREADS>(
        *reinterpret_cast<Softmaxes*>(shared), part, queries, layer.keys, layer.values, position,
        capacity, config::SCALE, attended);
    __syncthreads();
  }
  weights.fill();
  barrier.arrive();
}

// silu(gate_proj(n)) * up_proj(n) with n = RMS norm of x.
template <typename Before, typename X>
__device__ void gate_up(
    StepWeights& weights, Before& before, GridBarrier& after, const Layer<T>& layer, X x, T* out) {
  auto& input = *reinterpret_cast<StagedInput<StepWeights::Layout<GATE_UP>>*>(shared);
  int thread = thread_of_step();
  auto finish = [&](int set, float* totals) {
    if (thread % LANES == 0) {
      out[set] = round_to<T>(totals[0] / (1 + __expf(-totals[0])) * totals[1]);
    }
  };
  auto prepare = [&] { stage<GATE_UP>(input, weights, before, x, layer.post_norm, config::EPS); };
  weights.multiply<GATE_UP>(input, layer, prepare, [](int) {}, finish);
  after.arrive();
}

// residual + proj(source) with HIDDEN outputs, of OUTPUT or DOWN. residual(i) loads a value that
// to_float converts; a warp gives each result to out(i, lane, value) once, in all lanes.
template <int PRODUCT, typename After, typename Source, typename Residual, typename Out>
__device__ void project(
    StepWeights& weights, GridBarrier& before, After& after, const Layer<T>& layer, Source source,
    Residual residual, Out out) {
  constexpr int ROWS = StepWeights::ROWS<PRODUCT>;
  auto& input = *reinterpret_cast<StagedInput<StepWeights::Layout<PRODUCT>>*>(shared);
  int thread = thread_of_step();
  decltype(residual(0)) added[ROWS];
  auto begin = [&](int set) {
#pragma unroll
    for (int r = 0; r < ROWS; ++r) added[r] = residual(set * ROWS + r);
  };
  auto finish = [&](int set, float* totals) {
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
      out(set * ROWS + r, thread % LANES, to_float(added[r]) + totals[r]);
    }
  };
  auto prepare = [&] { stage<PRODUCT>(input, weights, before, source, nullptr, 0); };
  weights.multiply<PRODUCT>(input, layer, prepare, begin, finish);
  after.arrive();
}

}  // namespace moxin
