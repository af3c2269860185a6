// Products of a step: 16 rows of weights in shared memory with a lane's inputs.
//
// The operands are swapped: a product of tensor cores has 16 rows of weights and eight rows of x.

#pragma once

#include "batch_inputs.cuh"

namespace moxin {

// Adds the products with weights that are converted to T to two parts of the sums. `all_scales` are
// those of the lane's two rows for the slot, of which this is step `step`: scales of the upper and the
// lower one, then their biases.
__device__ inline void multiply_weights(
    const unsigned char* weights, const unsigned char* all_scales, int step, const StepInputs& x,
    float (*sums)[4]) {
  int lane = threadIdx.x % LANES;
  const T* scales = reinterpret_cast<const T*>(all_scales) + step * GROUPS;
#pragma unroll
  for (int c = 0; c < CHUNKS; ++c) {
    const uint4* from = reinterpret_cast<const uint4*>(weights + c * COPY_BYTES) + lane;
    uint4 upper = from[0], lower = from[LANES];
    T upper_scale{}, upper_bias{}, lower_scale{}, lower_bias{};
    if constexpr (BITS < 16) {
      int group = c * 4 * PACK / Weights::GROUP;
      if constexpr (Weights::GROUP < 4 * PACK) group += lane % 4 * PACK / Weights::GROUP;
      upper_scale = scales[group];
      lower_scale = scales[TOGETHER * GROUPS + group];
      upper_bias = scales[2 * TOGETHER * GROUPS + group];
      lower_bias = scales[3 * TOGETHER * GROUPS + group];
    }
#pragma unroll
    for (int plane = 0; plane < PLANES; ++plane) {
      unsigned int up[4], low[4];
      next_eight<T, BITS>(upper, upper_scale, upper_bias, up);
      next_eight<T, BITS>(lower, lower_scale, lower_bias, low);
      const unsigned int first[4] = {up[0], low[0], up[1], low[1]};
      const unsigned int second[4] = {up[2], low[2], up[3], low[3]};
      const uint4& values = x.vectors[c * PLANES + plane];
      const unsigned int b[4] = {values.x, values.y, values.z, values.w};
      multiply_add<T>(sums[0], first, b);
      multiply_add<T>(sums[1], second, b + 2);
    }
  }
}

// The same, with integers as operands, in float16, whose sums of a group are multiplied by its scale.
// Biases are multiplied by the sums of the inputs (StepInputs). For a weight, this takes half as many
// instructions as its conversion at 4 bits, and a fourth at 8.
__device__ inline void multiply_integers(
    const unsigned char* weights, const unsigned char* all_scales, int step, const StepInputs& x,
    float (*sums)[4]) {
  int lane = threadIdx.x % LANES;
  // Each word is of both groups.
  uint4 words = reinterpret_cast<const uint4*>(all_scales)[0];
  if constexpr (TOGETHER == 2) {
    uint4 further = reinterpret_cast<const uint4*>(all_scales)[1];
    words = step ? uint4{words.y, words.w, further.y, further.w}
                 : uint4{words.x, words.z, further.x, further.z};
  }
  const unsigned int biases[2] = {words.z, words.w};
  multiply_add_short(sums[0], biases, x.totals);
  float parts[CHUNKS][4] = {};
#pragma unroll
  for (int c = 0; c < CHUNKS; ++c) {
    uint4 upper, lower;
    if constexpr (BITS == 8) {
      auto from = reinterpret_cast<const uint4*>(weights + c * COPY_BYTES) + lane;
      upper = from[0];
      lower = from[LANES];
    } else {
      // WeightStream::copy says why in this place.
      int place = lane / 4 * 8 + (c ^ (lane / 8 % 2)) * 4 + lane % 4;
      auto from = reinterpret_cast<const uint2*>(weights) + place;
      uint2 upper_half = from[0], lower_half = from[LANES * 2];
      upper = uint4{upper_half.x, upper_half.y};
      lower = uint4{lower_half.x, lower_half.y};
    }
#pragma unroll
    for (int plane = 0; plane < PLANES; ++plane) {
      unsigned int up[4], low[4];
      next_integers<BITS>(upper, up);
      next_integers<BITS>(lower, low);
      const unsigned int first[4] = {up[0], low[0], up[1], low[1]};
      const unsigned int second[4] = {up[2], low[2], up[3], low[3]};
      const uint4& values = x.vectors[c * PLANES + plane];
      const unsigned int b[4] = {values.x, values.y, values.z, values.w};
      multiply_add<float16>(parts[c], first, b);
      multiply_add<float16>(parts[c], second, b + 2);
    }
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    unsigned int word = i < 2 ? words.x : words.y;
    float sum = to_float(T{static_cast<unsigned short>(word)}) * parts[0][i] +
                to_float(T{static_cast<unsigned short>(word >> 16)}) * parts[1][i];
    sums[1][i] += x.factors[i % 2] * sum;
  }
}

}  // namespace moxin
