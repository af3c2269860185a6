// Kernels of one decoding step of a single row: what the step reads is nearly all weights,
// so each kernel streams its matrices once and does everything that stands between two of them.
//
// T is the model's dtype; sums are float.

#pragma once

#include "matrix.cu"

namespace moxin {

// How a matrix with rows of K weights is read: 16 bytes, that is PACK weights, per lane.
template <typename T, int BITS, int GROUP, int K>
struct Format {
  static constexpr int PACK = 128 / BITS;
  static constexpr int PLANES = PACK / 8;
  static constexpr int UNITS = K / PACK;
  static constexpr int CHUNKS = (UNITS + LANES - 1) / LANES;
  static constexpr int DEPTH = CHUNKS < 4 ? CHUNKS : 4;
  static constexpr int BATCHES = (CHUNKS + DEPTH - 1) / DEPTH;
  static_assert(K % PACK == 0, "rows are read 16 bytes at a time");
  static_assert(BITS == 16 || GROUP % PACK == 0, "a lane's weights share a scale");
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

// Copy x [K] into shared memory; with a norm weight, its RMS norm, rounded to T.
template <typename T, typename F, int K, int THREADS, bool NORM>
__device__ void stage(Input<F>& input, const T* x, const T* norm_weight, float eps) {
  constexpr int ROUNDS = (F::UNITS + THREADS - 1) / THREADS;
  const uint4* vectors = reinterpret_cast<const uint4*>(x);
  float scale = 1;
  uint4 own[ROUNDS][F::PLANES], norm[ROUNDS][F::PLANES];
  float squares = 0;
#pragma unroll
  for (int round = 0; round < ROUNDS; ++round) {
    int unit = round * THREADS + threadIdx.x;
#pragma unroll
    for (int plane = 0; plane < F::PLANES; ++plane) {
      own[round][plane] = unit < F::UNITS ? vectors[unit * F::PLANES + plane] : uint4{0, 0, 0, 0};
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
    int unit = round * THREADS + threadIdx.x;
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

// R rows of matrices times the staged input, by one warp.
template <typename T, int BITS, int GROUP, int K, int R>
struct Rows {
  using F = Format<T, BITS, GROUP, K>;

  uint4 weights[R][F::DEPTH];
  float2 affine[R][F::DEPTH];

  // Batch number `batch` of row rows[r] of matrix matrices[r].
  __device__ void load(const Matrix<T>* matrices, const int* rows, int batch) {
    int lane = threadIdx.x % LANES;
#pragma unroll
    for (int i = 0; i < F::DEPTH; ++i) {
      int unit = (batch * F::DEPTH + i) * LANES + lane;
      bool inside = F::UNITS % (F::DEPTH * LANES) == 0 || unit < F::UNITS;
#pragma unroll
      for (int r = 0; r < R; ++r) {
        weights[r][i] = uint4{0, 0, 0, 0};
        if (inside) {
          auto* row = static_cast<const uint4*>(matrices[r].weight) + size_t(rows[r]) * F::UNITS;
          weights[r][i] = load_once(row + unit);
        }
        if constexpr (BITS < 16) {
          affine[r][i] = float2{0, 0};
          if (inside) {
            size_t group = size_t(rows[r]) * (K / GROUP) + unit * F::PACK / GROUP;
            affine[r][i] = {to_float(matrices[r].scales[group]), to_float(matrices[r].biases[group])};
          }
        }
      }
    }
  }

  // Add the products of the loaded batch to `totals`, this lane's part of the R results.
  __device__ void multiply(const Input<F>& input, int batch, float* totals) {
    int lane = threadIdx.x % LANES;
#pragma unroll
    for (int i = 0; i < F::DEPTH; ++i) {
      int unit = (batch * F::DEPTH + i) * LANES + lane;
      if (F::UNITS % (F::DEPTH * LANES) != 0 && unit >= F::UNITS) unit = 0;  // weights are 0
      float products[R] = {};
#pragma unroll
      for (int plane = 0; plane < F::PLANES; ++plane) {
        float x[8];
        unpack<T>(input.vectors[plane * F::UNITS + unit], x);
#pragma unroll
        for (int r = 0; r < R; ++r) {
          const unsigned int words[4] = {
              weights[r][i].x, weights[r][i].y, weights[r][i].z, weights[r][i].w};
          if constexpr (BITS == 16) {
            float w[8];
            unpack<T>(weights[r][i], w);
#pragma unroll
            for (int k = 0; k < 8; ++k) totals[r] += w[k] * x[k];
          } else if constexpr (BITS == 8) {
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
      if constexpr (BITS < 16) {
        float sum = input.sums[unit];
#pragma unroll
        for (int r = 0; r < R; ++r) {
          float product = BITS == 4 ? products[r] - NIBBLE_RAISE * sum : products[r];
          totals[r] += affine[r][i].x * product + affine[r][i].y * sum;
        }
      }
    }
  }
};

// All products of one warp: `count` sets of R rows. `locate(set, matrices, rows)` says which,
// `finish(set, totals)` gets the results in every lane, `prepare()` stages the input.
template <typename T, int BITS, int GROUP, int K, int R, typename P, typename L, typename E>
__device__ void multiply_rows(
    const Input<Format<T, BITS, GROUP, K>>& input, int count, P prepare, L locate, E finish) {
  using F = Format<T, BITS, GROUP, K>;
  Rows<T, BITS, GROUP, K, R> loaded;
  Matrix<T> matrices[R];
  int rows[R];
  if (count > 0) {
    locate(0, matrices, rows);
    loaded.load(matrices, rows, 0);
  }
  prepare();
  for (int set = 0; set < count; ++set) {
    float totals[R] = {};
    for (int batch = 0; batch < F::BATCHES; ++batch) {
      loaded.multiply(input, batch, totals);
      if (batch + 1 < F::BATCHES) {
        loaded.load(matrices, rows, batch + 1);
      } else if (set + 1 < count) {
        locate(set + 1, matrices, rows);
        loaded.load(matrices, rows, 0);
      }
    }
#pragma unroll
    for (int r = 0; r < R; ++r) totals[r] = warp_sum(totals[r]);
    finish(set, totals);
  }
}

// Sets of rows of this warp: of `total`, `per_warp` each.
template <int THREADS>
__device__ inline int first_set(int per_warp) {
  return (blockIdx.x * (THREADS / LANES) + threadIdx.x / LANES) * per_warp;
}

__device__ inline int clamp_count(int first, int per_warp, int total) {
  return max(0, min(per_warp, total - first));
}

}  // namespace moxin
