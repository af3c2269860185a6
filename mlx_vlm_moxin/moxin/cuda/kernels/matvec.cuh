// Matrix-vector products of one decoding step. Weights are nearly all that the step reads, so all
// warps of the grid stream each matrix once, 16 bytes a lane. Sums are float.

#pragma once

#include "grid.cuh"
#include "weights.cuh"

namespace moxin {

// How rows of K weights of format F are read: a lane loads a unit of 16 bytes (PACK weights), a
// warp a chunk of 32 units. A unit is multiplied with PLANES vectors of eight inputs.
template <typename F, int K>
struct RowLayout {
  static constexpr int PACK = 128 / F::BITS;
  static constexpr int PLANES = PACK / 8;
  static constexpr int UNITS = K / PACK;
  static constexpr int CHUNKS = (UNITS + LANES - 1) / LANES;
  static __device__ const uint4& arranged(const uint4& inputs) { return inputs; }
  static_assert(K % PACK == 0, "rows are read 16 bytes at a time");
  static_assert(F::BITS == 16 || F::GROUP % PACK == 0, "the weights of a unit share a scale");
};

// The input of a product in shared memory: vectors of eight values, ordered so that the lanes of a
// warp read consecutive ones, and the sum of the values of each unit (for the biases of quantised
// weights).
template <typename L>
struct StagedInput {
  uint4 vectors[L::PLANES * L::UNITS];
  float sums[L::PLANES > 1 ? L::UNITS : 1];

  __device__ void put(int unit, int plane, const uint4& v) {
    vectors[plane * L::UNITS + unit] = L::arranged(v);
  }
};

// Loads the vectors of a thread's units with source(i); 0 after the last one.
template <typename L, int THREADS, int ROUNDS, typename S>
__device__ void load_units(uint4 (&to)[ROUNDS][L::PLANES], int thread, S source) {
#pragma unroll
  for (int round = 0; round < ROUNDS; ++round) {
    int unit = round * THREADS + thread;
#pragma unroll
    for (int plane = 0; plane < L::PLANES; ++plane) {
      to[round][plane] = unit < L::UNITS ? source(unit * L::PLANES + plane) : uint4{0, 0, 0, 0};
    }
  }
}

// Stages K values in shared memory, after wait(); source(i) returns the i-th eight. With NORM, stages
// their RMS norm times norm_weight, rounded to T.
template <typename T, typename L, int K, int THREADS, bool NORM, typename Wait, typename S>
__device__ void stage_input(
    StagedInput<L>& input, int thread, Wait wait, S source, const T* norm_weight, float eps) {
  constexpr int ROUNDS = (L::UNITS + THREADS - 1) / THREADS;
  float scale = 1;
  uint4 values_of[ROUNDS][L::PLANES], norm[ROUNDS][L::PLANES];
  float squares = 0;
  if constexpr (NORM) {
    load_units<L, THREADS>(
        norm, thread, [&](int i) { return load_once(norm_weight + 8 * i); });
  }
  wait();
  load_units<L, THREADS>(values_of, thread, source);
  if constexpr (NORM) {
#pragma unroll
    for (int round = 0; round < ROUNDS; ++round) {
#pragma unroll
      for (int plane = 0; plane < L::PLANES; ++plane) {
        float values[8];
        unpack<T>(values_of[round][plane], values);
#pragma unroll
        for (float value : values) squares += value * value;
      }
    }
    scale = rsqrtf(block_sum<THREADS>(squares) / K + eps);
  }
#pragma unroll
  for (int round = 0; round < ROUNDS; ++round) {
    int unit = round * THREADS + thread;
    if (unit >= L::UNITS) continue;
    float sum = 0;
#pragma unroll
    for (int plane = 0; plane < L::PLANES; ++plane) {
      float values[8];
      unpack<T>(values_of[round][plane], values);
      if constexpr (NORM) {
        float weights[8];
        unpack<T>(norm[round][plane], weights);
#pragma unroll
        for (int i = 0; i < 8; ++i) values[i] = values[i] * scale * weights[i];
        values_of[round][plane] = pack_eight<T>(values);
        unpack<T>(values_of[round][plane], values);
      }
#pragma unroll
      for (float value : values) sum += value;
      input.put(unit, plane, values_of[round][plane]);
    }
    if constexpr (L::PLANES > 1) input.sums[unit] = sum;
  }
  __syncthreads();
}

// The largest divisor of `chunks` between most / 2 and `most`; `most` if there is none.
__device__ constexpr int batch_size(int chunks, int most) {
  if (chunks <= most) return chunks;
  for (int size = most; 2 * size > most; --size) {
    if (chunks % size == 0) return size;
  }
  return most;
}

// R rows of weights that one warp multiplies with the staged input. DEPTH chunks of each row are in
// flight: a chunk's registers are loaded again as soon as it has been multiplied.
template <typename T, typename F, int K, int R, int THREADS>
struct WarpRows {
  using L = RowLayout<F, K>;
  static constexpr int DEPTH = batch_size(L::CHUNKS, 4096 / THREADS / R);
  static constexpr int BATCHES = (L::CHUNKS + DEPTH - 1) / DEPTH;
  static constexpr bool IS_EVEN = L::UNITS % (DEPTH * LANES) == 0;
  static constexpr int CHUNK_GROUPS = F::BITS < 16 ? LANES * L::PACK / F::GROUP : 1;

  int lane;
  const uint4* next[R];  // this lane's unit in the batch that is loaded next
  const T *next_scale[R], *next_bias[R];
  uint4 weights[R][DEPTH];
  T scales[R][DEPTH], biases[R][DEPTH];

  // Makes `row` of `matrix` the r-th row of the set that is loaded next.
  __device__ void select(int r, const Matrix<T>& matrix, int row) {
    next[r] = static_cast<const uint4*>(matrix.weight) + size_t(row) * L::UNITS + lane;
    if constexpr (F::BITS < 16) {
      size_t group = size_t(row) * (K / F::GROUP) + lane * L::PACK / F::GROUP;
      next_scale[r] = matrix.scales + group;
      next_bias[r] = matrix.biases + group;
    }
  }

  // Loads chunk i of batch `batch`, the next one.
  __device__ void load(int batch, int i) {
    bool inside = IS_EVEN || (batch * DEPTH + i) * LANES + lane < L::UNITS;
#pragma unroll
    for (int r = 0; r < R; ++r) {
      weights[r][i] = uint4{0, 0, 0, 0};
      scales[r][i] = biases[r][i] = T{0};
      if (!inside) continue;
      weights[r][i] = load_once(next[r] + i * LANES);
      if constexpr (F::BITS < 16) {
        scales[r][i] = load_scale(next_scale[r] + i * CHUNK_GROUPS);
        biases[r][i] = load_scale(next_bias[r] + i * CHUNK_GROUPS);
      }
    }
  }

  __device__ void advance() {
#pragma unroll
    for (int r = 0; r < R; ++r) {
      next[r] += DEPTH * LANES;
      if constexpr (F::BITS < 16) {
        next_scale[r] += DEPTH * CHUNK_GROUPS;
        next_bias[r] += DEPTH * CHUNK_GROUPS;
      }
    }
  }

  // Adds the products of the loaded chunk i to `totals`, this lane's part of the R results.
  __device__ void multiply(const StagedInput<L>& input, int batch, int i, float* totals) const {
    int unit = (batch * DEPTH + i) * LANES + lane;
    if (!IS_EVEN && unit >= L::UNITS) unit = 0;  // weights are 0
    float products[R] = {};
#pragma unroll
    for (int plane = 0; plane < L::PLANES; ++plane) {
      float x[8];
      unpack<T>(input.vectors[plane * L::UNITS + unit], x);
#pragma unroll
      for (int r = 0; r < R; ++r) {
        const unsigned int words[4] = {
            weights[r][i].x, weights[r][i].y, weights[r][i].z, weights[r][i].w};
        if constexpr (F::BITS == 16) {
          float w[8];
          unpack<T>(weights[r][i], w);
#pragma unroll
          for (int k = 0; k < 8; ++k) totals[r] += w[k] * x[k];
        } else if constexpr (F::BITS == 8) {
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
    if constexpr (F::BITS < 16) {
      float sum = input.sums[unit];
#pragma unroll
      for (int r = 0; r < R; ++r) {
        float product = F::BITS == 4 ? products[r] - NIBBLE_RAISE * sum : products[r];
        totals[r] += to_float(scales[r][i]) * product + to_float(biases[r][i]) * sum;
      }
    }
  }
};

// Divides `total` sets of R rows over the warps of the grid.
//   locate(set, rows)    calls rows.select() for the R rows of a set
//   prepare()            stages the input, while the first weights are in flight
//   begin(set)           issues the loads that finish needs (the residual); issued in finish they
//                        would queue after the next weights
//   finish(set, totals)  receives the R results, in every lane
template <typename T, typename F, int K, int R, int THREADS, typename Prepare, typename Locate,
          typename Begin, typename Finish>
__device__ void multiply_rows(
    const StagedInput<RowLayout<F, K>>& input, int thread, int total, Prepare prepare,
    Locate locate, Begin begin, Finish finish) {
  WarpRows<T, F, K, R, THREADS> loaded{thread % LANES};
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
