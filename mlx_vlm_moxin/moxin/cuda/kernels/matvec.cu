// Products of one decoding step of a single row: what the step reads is nearly all weights, so
// each matrix is streamed once, by all warps of the grid.
//
// T is the model's dtype; sums are float.

#pragma once

#include "grid.cu"
#include "matrix.cu"

namespace moxin {

// How a matrix with rows of K weights is read: 16 bytes, that is PACK weights, per lane.
template <typename P, int K>
struct Format {
  static constexpr int PACK = 128 / P::BITS;
  static constexpr int PLANES = PACK / 8;
  static constexpr int UNITS = K / PACK;
  static constexpr int CHUNKS = (UNITS + LANES - 1) / LANES;
  static_assert(K % PACK == 0, "rows are read 16 bytes at a time");
  static_assert(P::BITS == 16 || P::GROUP % PACK == 0, "a lane's weights share a scale");
};

// The input of a product in shared memory: its 8-value vectors, ordered so that the lanes of a
// warp read neighbouring ones, and the sum of each unit.
template <typename F>
struct Input {
  uint4 vectors[F::PLANES * F::UNITS];
  float sums[F::PLANES > 1 ? F::UNITS : 1];  // for packed matrices

  __device__ void put(int unit, int plane, const uint4& v) {
    vectors[plane * F::UNITS + unit] = v;
  }
};

// Put K values into shared memory, of which source(i) gives the i-th eight; with a norm weight,
// their RMS norm, rounded to T.
template <typename T, typename F, int K, int THREADS, bool NORM, typename S>
__device__ void stage(
    Input<F>& input, int thread, S source, const T* norm_weight, float eps) {
  constexpr int ROUNDS = (F::UNITS + THREADS - 1) / THREADS;
  float scale = 1;
  uint4 own[ROUNDS][F::PLANES], norm[ROUNDS][F::PLANES];
  float squares = 0;
#pragma unroll
  for (int round = 0; round < ROUNDS; ++round) {
    int unit = round * THREADS + thread;
#pragma unroll
    for (int plane = 0; plane < F::PLANES; ++plane) {
      own[round][plane] = unit < F::UNITS ? source(unit * F::PLANES + plane) : uint4{0, 0, 0, 0};
      if constexpr (NORM) {
        const uint4* from = reinterpret_cast<const uint4*>(norm_weight);
        norm[round][plane] = unit < F::UNITS ? from[unit * F::PLANES + plane] : uint4{0, 0, 0, 0};
      }
    }
  }
  if constexpr (NORM) {
#pragma unroll
    for (int round = 0; round < ROUNDS; ++round) {
#pragma unroll
      for (int plane = 0; plane < F::PLANES; ++plane) {
        float values[8];
        unpack<T>(own[round][plane], values);
#pragma unroll
        for (float value : values) squares += value * value;
      }
    }
    scale = rsqrtf(block_sum<THREADS>(squares) / K + eps);
  }
#pragma unroll
  for (int round = 0; round < ROUNDS; ++round) {
    int unit = round * THREADS + thread;
    if (unit >= F::UNITS) continue;
    float sum = 0;
#pragma unroll
    for (int plane = 0; plane < F::PLANES; ++plane) {
      float values[8];
      unpack<T>(own[round][plane], values);
      if constexpr (NORM) {
        float weights[8];
        unpack<T>(norm[round][plane], weights);
#pragma unroll
        for (int i = 0; i < 8; ++i) values[i] = values[i] * scale * weights[i];
        own[round][plane] = pack_eight<T>(values);
        unpack<T>(own[round][plane], values);
      }
#pragma unroll
      for (float value : values) sum += value;
      input.put(unit, plane, own[round][plane]);
    }
    if constexpr (F::PLANES > 1) input.sums[unit] = sum;
  }
  __syncthreads();
}

// The largest divisor of `chunks` up to `most` if it is not much less, otherwise `most`.
__device__ constexpr int batch_size(int chunks, int most) {
  if (chunks <= most) return chunks;
  for (int size = most; 2 * size > most; --size) {
    if (chunks % size == 0) return size;
  }
  return most;
}

// R rows of matrices times the staged input, by one warp. While a chunk is multiplied, the others
// of a batch are on their way: each is loaded anew as soon as it has been used.
template <typename T, typename P, int K, int R, int THREADS>
struct Rows {
  using F = Format<P, K>;
  static constexpr int DEPTH = batch_size(F::CHUNKS, 4096 / THREADS / R);
  static constexpr int BATCHES = (F::CHUNKS + DEPTH - 1) / DEPTH;
  static constexpr bool IS_EVEN = F::UNITS % (DEPTH * LANES) == 0;
  static constexpr int CHUNK_GROUPS = P::BITS < 16 ? LANES * F::PACK / P::GROUP : 1;

  int lane;
  const uint4* next[R];  // of this lane, in the batch that is loaded next
  const T *next_scale[R], *next_bias[R];
  uint4 weights[R][DEPTH];
  T scales[R][DEPTH], biases[R][DEPTH];

  // Row number `row` of `matrix` is the r-th one of the set that is loaded next.
  __device__ void take(int r, const Matrix<T>& matrix, int row) {
    next[r] = static_cast<const uint4*>(matrix.weight) + size_t(row) * F::UNITS + lane;
    if constexpr (P::BITS < 16) {
      size_t group = size_t(row) * (K / P::GROUP) + lane * F::PACK / P::GROUP;
      next_scale[r] = matrix.scales + group;
      next_bias[r] = matrix.biases + group;
    }
  }

  // Chunk i of batch number `batch`, which is next.
  __device__ void load(int batch, int i) {
    bool inside = IS_EVEN || (batch * DEPTH + i) * LANES + lane < F::UNITS;
#pragma unroll
    for (int r = 0; r < R; ++r) {
      weights[r][i] = uint4{0, 0, 0, 0};
      scales[r][i] = biases[r][i] = T{0};
      if (!inside) continue;
      weights[r][i] = load_once(next[r] + i * LANES);
      if constexpr (P::BITS < 16) {
        scales[r][i] = load_scale(next_scale[r] + i * CHUNK_GROUPS);
        biases[r][i] = load_scale(next_bias[r] + i * CHUNK_GROUPS);
      }
    }
  }

  __device__ void advance() {
#pragma unroll
    for (int r = 0; r < R; ++r) {
      next[r] += DEPTH * LANES;
      if constexpr (P::BITS < 16) {
        next_scale[r] += DEPTH * CHUNK_GROUPS;
        next_bias[r] += DEPTH * CHUNK_GROUPS;
      }
    }
  }

  // Add the products of the loaded chunk i to `totals`, this lane's part of the R results.
  __device__ void multiply(const Input<F>& input, int batch, int i, float* totals) const {
    int unit = (batch * DEPTH + i) * LANES + lane;
    if (!IS_EVEN && unit >= F::UNITS) unit = 0;  // weights are 0
    float products[R] = {};
#pragma unroll
    for (int plane = 0; plane < F::PLANES; ++plane) {
      float x[8];
      unpack<T>(input.vectors[plane * F::UNITS + unit], x);
#pragma unroll
      for (int r = 0; r < R; ++r) {
        const unsigned int words[4] = {
            weights[r][i].x, weights[r][i].y, weights[r][i].z, weights[r][i].w};
        if constexpr (P::BITS == 16) {
          float w[8];
          unpack<T>(weights[r][i], w);
#pragma unroll
          for (int k = 0; k < 8; ++k) totals[r] += w[k] * x[k];
        } else if constexpr (P::BITS == 8) {
#pragma unroll
          for (int k = 0; k < 8; ++k) {
            products[r] += byte_value(words[2 * plane + k / 4], k % 4) * x[k];
          }
        } else {
#pragma unroll
          for (int k = 0; k < 8; ++k) products[r] += raised_nibble(words[plane], k) * x[k];
        }
      }
    }
    if constexpr (P::BITS < 16) {
      float sum = input.sums[unit];
#pragma unroll
      for (int r = 0; r < R; ++r) {
        float product = P::BITS == 4 ? products[r] - NIBBLE_RAISE * sum : products[r];
        totals[r] += to_float(scales[r][i]) * product + to_float(biases[r][i]) * sum;
      }
    }
  }
};

// `total` sets of R rows, divided over the warps of the grid. `locate(set, loaded)` says which rows
// loaded.take()s, `finish(set, totals)` gets the results in every lane; `prepare()` stages the
// input, while the first weights are on their way. `begin(set)` starts what finish will need, which
// would have to wait behind other warps' weights there.
template <typename T, typename P, int K, int R, int THREADS, typename A, typename L, typename B,
          typename E>
__device__ void multiply_rows(
    const Input<Format<P, K>>& input, int thread, int total, A prepare, L locate, B begin,
    E finish) {
  Rows<T, P, K, R, THREADS> loaded{thread % LANES};
  constexpr int DEPTH = loaded.DEPTH, BATCHES = loaded.BATCHES;
  int set = grid_warp(thread), warps = gridDim.x * (THREADS / LANES);
  if (set < total) {
    locate(set, loaded);
#pragma unroll
    for (int i = 0; i < DEPTH; ++i) loaded.load(0, i);
  }
  prepare();
  for (; set < total; set += warps) {
    begin(set);
    float totals[R] = {};
#pragma unroll 1
    for (int batch = 0; batch < BATCHES; ++batch) {
      bool is_last = batch + 1 == BATCHES, has_next = !is_last || set + warps < total;
      if (!is_last) {
        loaded.advance();
      } else if (has_next) {
        locate(set + warps, loaded);
      }
#pragma unroll
      for (int i = 0; i < DEPTH; ++i) {
        loaded.multiply(input, batch, i, totals);
        if (has_next) loaded.load(is_last ? 0 : batch + 1, i);
      }
    }
#pragma unroll
    for (int r = 0; r < R; ++r) totals[r] = warp_sum(totals[r]);
    finish(set, totals);
  }
}

}  // namespace moxin
