// Layer norm of the vision towers, and the residual connection before it.

#pragma once

#include "grid.cuh"

namespace moxin {

// A product that is still to be added to x: sums [PARTS, rows, width] over parts of K. gamma may be
// null.
template <typename T>
struct PartialSums {
  const float* sums;
  const T* bias;
  const T* gamma;
  int rows;
};

// x and out are [rows, width]; added, the same, is x plus the product, if there is one.
template <typename T>
struct LayerNorm {
  const T* x;
  const T* weight;
  const T* bias;
  T* out;
  int width;
  PartialSums<T> partial;
  T* added;
};

// Threads of a row: with one warp, the instructions of a row would be issued one after the other.
constexpr int ROW_THREADS = 2 * LANES;
constexpr int ROWS_AT_ONCE = config::THREADS / ROW_THREADS;

// Brings what all rows share into L2, by the threads of a row.
template <typename T>
__device__ void prefetch(const LayerNorm<T>& norm, int thread) {
  constexpr int LINE = 128 / sizeof(T);
  for (int i = thread * LINE; i < norm.width; i += ROW_THREADS * LINE) {
    for (const T* row : {norm.weight, norm.bias, norm.partial.bias, norm.partial.gamma}) {
      if (row) asm volatile("prefetch.global.L2 [%0];" : : "l"(row + i));
    }
  }
}

// The sum over the threads of a row, in each of them; `sums` are of this row alone.
__device__ inline float row_sum(float x, float* sums, int thread, int team) {
  x = warp_sum(x);
  if (thread % LANES == 0) sums[thread / LANES] = x;
  sync_team<ROW_THREADS>(team);
  return sums[0] + sums[1];
}

// Threads 0 to ROW_THREADS - 1 of a team compute row `row`. WIDTH is at least norm.width. PARTS is 0 if
// there is no product to add. Without `out`, there is nothing but that product.
template <typename T, int WIDTH, int PARTS>
__device__ void layer_norm(const LayerNorm<T>& norm, int row, int thread, int team, float eps) {
  __shared__ float sums[ROWS_AT_ONCE][2][2];
  constexpr int ROUNDS = (WIDTH / 8 + ROW_THREADS - 1) / ROW_THREADS;
  const PartialSums<T>& partial = norm.partial;
  int count = norm.width / 8;
  long long first = static_cast<long long>(row) * norm.width;
  // All loads are issued before the first store. Threads without values load the last ones again.
  uint4 inputs[ROUNDS], biases_of[ROUNDS], gammas[ROUNDS];
  float4 parts[ROUNDS][PARTS > 0 ? PARTS : 1][2];
#pragma unroll
  for (int round = 0; round < ROUNDS; ++round) {
    int i = min(round * ROW_THREADS + thread, count - 1);
    inputs[round] = reinterpret_cast<const uint4*>(norm.x + first)[i];
    if constexpr (PARTS > 0) {
      biases_of[round] = reinterpret_cast<const uint4*>(partial.bias)[i];
      gammas[round] = reinterpret_cast<const uint4*>(partial.gamma ? partial.gamma : partial.bias)[i];
#pragma unroll
      for (int part = 0; part < PARTS; ++part) {
        long long before = static_cast<long long>(part) * partial.rows * norm.width + first;
        const float4* from = reinterpret_cast<const float4*>(partial.sums + before);
        parts[round][part][0] = from[2 * i];
        parts[round][part][1] = from[2 * i + 1];
      }
    }
  }
  float values[ROUNDS][8] = {};
  float sum = 0;
#pragma unroll
  for (int round = 0; round < ROUNDS; ++round) {
    int i = round * ROW_THREADS + thread;
    if (i >= count) continue;
    unpack<T>(inputs[round], values[round]);
    if constexpr (PARTS > 0) {
      float product[8], gamma[8];
      unpack<T>(biases_of[round], product);
      unpack<T>(gammas[round], gamma);
#pragma unroll
      for (int part = 0; part < PARTS; ++part) {
        float4 low = parts[round][part][0], high = parts[round][part][1];
        const float sums[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
        for (int k = 0; k < 8; ++k) product[k] += sums[k];
      }
#pragma unroll
      for (int k = 0; k < 8; ++k) values[round][k] += partial.gamma ? product[k] * gamma[k] : product[k];
      uint4 rounded = pack_eight<T>(values[round]);
      reinterpret_cast<uint4*>(norm.added + first)[i] = rounded;
      unpack<T>(rounded, values[round]);
    }
#pragma unroll
    for (float value : values[round]) sum += value;
  }
  if (!norm.out) return;
  float mean = row_sum(sum, sums[team][0], thread, team) / norm.width, squares = 0;
#pragma unroll
  for (int round = 0; round < ROUNDS; ++round) {
    if (round * ROW_THREADS + thread >= count) continue;
#pragma unroll
    for (float value : values[round]) squares += (value - mean) * (value - mean);
  }
  float scale = rsqrtf(row_sum(squares, sums[team][1], thread, team) / norm.width + eps);
  uint4* out = reinterpret_cast<uint4*>(norm.out + first);
#pragma unroll
  for (int round = 0; round < ROUNDS; ++round) {
    int i = round * ROW_THREADS + thread;
    if (i >= count) continue;
    float weights[8], biases[8];
    unpack<T>(reinterpret_cast<const uint4*>(norm.weight)[i], weights);
    unpack<T>(reinterpret_cast<const uint4*>(norm.bias)[i], biases);
#pragma unroll
    for (int k = 0; k < 8; ++k) {
      values[round][k] = (values[round][k] - mean) * scale * weights[k] + biases[k];
    }
    out[i] = pack_eight<T>(values[round]);
  }
}

}  // namespace moxin
