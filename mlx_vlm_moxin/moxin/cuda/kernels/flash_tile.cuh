// Attention of a warp's 16 queries to a tile of keys in shared memory, with a running softmax.
//
// FlashAttention-2 (https://arxiv.org/abs/2307.08691) on tensor cores (mma m16n8k16). In the sums of
// a 16 x 8 tile, a lane's registers 0 and 1 belong to row lane / 4, registers 2 and 3 to row
// lane / 4 + 8.

#pragma once

#include "tensor_cores.cuh"

namespace moxin {

// Used instead of -infinity, which would give NaN where all keys are masked: the score of a masked key, and
// a lower limit of the maximum, before which such a score has no weight.
constexpr float MASKED = -1e30f;
constexpr float LOWEST = -1e20f;

// 2 to the power of x, 0 below 2^-126: one instruction instead of the four of exp2f.
__device__ inline float power_of_two(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Rows in shared memory are PITCH bytes apart.
template <typename T, int HEAD, int KEYS, int PITCH>
struct FlashTile {
  float outputs[HEAD / 8][4] = {};
  // Maximum (base 2) and sum of the weights, of this lane's keys, for its two rows.
  float highest[2] = {LOWEST, LOWEST}, weight[2] = {};

  // Adds KEYS keys and values. All three addresses are in shared memory. is_valid(half, key): whether
  // the row of registers 2 * half sees `key` of the tile; not called if all rows see all keys.
  template <typename V>
  __device__ void add(
      unsigned int queries, unsigned int keys, unsigned int values, float scale, V is_valid,
      bool sees_all = false) {
    constexpr float LOG2_E = 1.4426950408889634f;
    int lane = threadIdx.x % LANES;
    float scores[KEYS / 8][4] = {};
#pragma unroll 2
    for (int k = 0; k < HEAD / 16; ++k) {
      unsigned int a[4];
      load_matrices(a, queries + lane % 16 * PITCH + (k * 16 + lane / 16 * 8) * 2);
#pragma unroll
      for (int j = 0; j < KEYS / 16; ++j) {
        unsigned int b[4];
        int key = j * 16 + lane % 8 + lane / 16 * 8;
        load_matrices(b, keys + key * PITCH + (k * 16 + lane / 8 % 2 * 8) * 2);
        multiply_add<T>(scores[2 * j], a, b);
        multiply_add<T>(scores[2 * j + 1], a, b + 2);
      }
    }
    if (!sees_all) {
#pragma unroll
      for (int i = 0; i < KEYS / 2; ++i) {
        bool is_seen = is_valid(i / 2 % 2, i / 4 * 8 + lane % 4 * 2 + i % 2);
        scores[i / 4][i % 4] = is_seen ? scores[i / 4][i % 4] : MASKED;
      }
    }
    float factors[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float top = MASKED, sum = 0;
#pragma unroll
      for (int j = 0; j < KEYS / 8; ++j) {
        top = fmaxf(top, fmaxf(scores[j][2 * half], scores[j][2 * half + 1]));
      }
      top = fmaxf(top, __shfl_xor_sync(ALL_LANES, top, 1));
      top = fmaxf(top, __shfl_xor_sync(ALL_LANES, top, 2));
      top = fmaxf(highest[half], top * (scale * LOG2_E));
      factors[half] = power_of_two(highest[half] - top);
      highest[half] = top;
#pragma unroll
      for (int j = 0; j < KEYS / 8; ++j) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          float& score = scores[j][2 * half + i];
          score = power_of_two(score * (scale * LOG2_E) - top);
          sum += score;
        }
      }
      weight[half] = weight[half] * factors[half] + sum;
    }
    // Later tiles seldom have a new maximum.
    if (__any_sync(ALL_LANES, factors[0] != 1 || factors[1] != 1)) {
#pragma unroll
      for (int j = 0; j < HEAD / 8; ++j) {
#pragma unroll
        for (int i = 0; i < 4; ++i) outputs[j][i] *= factors[i / 2];
      }
    }
#pragma unroll
    for (int k = 0; k < KEYS / 16; ++k) {
      unsigned int a[4] = {
          pack<T>(scores[2 * k][0], scores[2 * k][1]), pack<T>(scores[2 * k][2], scores[2 * k][3]),
          pack<T>(scores[2 * k + 1][0], scores[2 * k + 1][1]),
          pack<T>(scores[2 * k + 1][2], scores[2 * k + 1][3])};
#pragma unroll
      for (int j = 0; j < HEAD / 16; ++j) {
        unsigned int b[4];
        int key = k * 16 + lane % 16;
        load_matrices_transposed(b, values + key * PITCH + (j * 16 + lane / 16 * 8) * 2);
        multiply_add<T>(outputs[2 * j], a, b);
        multiply_add<T>(outputs[2 * j + 1], a, b + 2);
      }
    }
  }

  // Sums the weights of the four lanes that share a row. Call once, after the last tile.
  __device__ void finish() {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      weight[half] += __shfl_xor_sync(ALL_LANES, weight[half], 1);
      weight[half] += __shfl_xor_sync(ALL_LANES, weight[half], 2);
    }
  }
};

}  // namespace moxin
