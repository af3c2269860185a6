// Arrays of one decoder layer, for kernels that run many layers in one launch.

#pragma once

#include "weights.cuh"

namespace moxin {

template <typename T>
struct Layer {
  const T* input_norm;
  Matrix<T> q_proj, k_proj, v_proj, o_proj;
  const T* post_norm;
  Matrix<T> gate_proj, up_proj, down_proj;
  T *keys, *values;  // the cache, [KV_HEADS, capacity, HEAD_DIM] each
};

}  // namespace moxin
