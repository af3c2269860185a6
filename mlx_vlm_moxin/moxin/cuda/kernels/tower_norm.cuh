// Layer norm of the vision towers.

#pragma once

#include "dtypes.cuh"

namespace moxin {

// x and out are [rows, width].
template <typename T>
struct LayerNorm {
  const T* x;
  const T* weight;
  const T* bias;
  T* out;
  int width;
};

// A warp computes row `row`. WIDTH is at least norm.width.
template <typename T, int WIDTH>
__device__ void layer_norm(const LayerNorm<T>& norm, int row, int lane, float eps) {
  constexpr int ROUNDS = (WIDTH / 8 + LANES - 1) / LANES;
  int count = norm.width / 8;
  const uint4* x = reinterpret_cast<const uint4*>(norm.x + row * norm.width);
  uint4* out = reinterpret_cast<uint4*>(norm.out + row * norm.width);
  float values[ROUNDS][8] = {};
  float sum = 0;
#pragma unroll
  for (int round = 0; round < ROUNDS; ++round) {
    int i = round * LANES + lane;
    if (i < count) unpack<T>(x[i], values[round]);
#pragma unroll
    for (float value : values[round]) sum += value;
  }
  float mean = warp_sum(sum) / norm.width, squares = 0;
#pragma unroll
  for (int round = 0; round < ROUNDS; ++round) {
    if (round * LANES + lane >= count) continue;
#pragma unroll
    for (float value : values[round]) squares += (value - mean) * (value - mean);
  }
  float scale = rsqrtf(warp_sum(squares) / norm.width + eps);
#pragma unroll
  for (int round = 0; round < ROUNDS; ++round) {
    int i = round * LANES + lane;
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
