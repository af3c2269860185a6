// The vision towers' layer norms.

#pragma once

#include "types.cu"

namespace moxin {

// x and out are [rows, width].
template <typename T>
struct Norm {
  const T* x;
  const T* weight;
  const T* bias;
  T* out;
  int width;
};

// Row `row`, of at most WIDTH values, by a warp.
template <typename T, int WIDTH>
__device__ void layer_norm(const Norm<T>& own, int row, int lane, float eps) {
  constexpr int ROUNDS = (WIDTH / 8 + LANES - 1) / LANES;
  int count = own.width / 8;
  const uint4* x = reinterpret_cast<const uint4*>(own.x + row * own.width);
  uint4* out = reinterpret_cast<uint4*>(own.out + row * own.width);
  float values[ROUNDS][8] = {};
  float sum = 0;
#pragma unroll
  for (int round = 0; round < ROUNDS; ++round) {
    int i = round * LANES + lane;
    if (i < count) unpack<T>(x[i], values[round]);
#pragma unroll
    for (float value : values[round]) sum += value;
  }
  float mean = warp_sum(sum) / own.width, squares = 0;
#pragma unroll
  for (int round = 0; round < ROUNDS; ++round) {
    if (round * LANES + lane >= count) continue;
#pragma unroll
    for (float value : values[round]) squares += (value - mean) * (value - mean);
  }
  float scale = rsqrtf(warp_sum(squares) / own.width + eps);
#pragma unroll
  for (int round = 0; round < ROUNDS; ++round) {
    int i = round * LANES + lane;
    if (i >= count) continue;
    float weights[8], biases[8];
    unpack<T>(reinterpret_cast<const uint4*>(own.weight)[i], weights);
    unpack<T>(reinterpret_cast<const uint4*>(own.bias)[i], biases);
#pragma unroll
    for (int k = 0; k < 8; ++k) {
      values[round][k] = (values[round][k] - mean) * scale * weights[k] + biases[k];
    }
    out[i] = pack_eight<T>(values[round]);
  }
}

}  // namespace moxin
