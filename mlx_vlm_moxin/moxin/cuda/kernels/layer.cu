// What a launch that takes many of the decoder's layers is told of them.

#pragma once

#include "matrix.cu"

namespace moxin {

template <typename T>
struct Layer {
  const T* input_norm;
  Matrix<T> q_proj, k_proj, v_proj, o_proj;
  const T* post_norm;
  Matrix<T> gate_proj, up_proj, down_proj;
};

template <int HIDDEN_, int INTERMEDIATE_, int HEAD_DIM_, int HEADS_, int KV_HEADS_, int WINDOW_>
struct Sizes {
  static constexpr int HIDDEN = HIDDEN_, INTERMEDIATE = INTERMEDIATE_, HEAD_DIM = HEAD_DIM_;
  static constexpr int HEADS = HEADS_, KV_HEADS = KV_HEADS_, WINDOW = WINDOW_;
};

struct Numbers {
  int capacity;
  float eps, log2_theta, scale;
};

// Keys and values of a layer, [KV_HEADS, capacity, HEAD_DIM] each.
template <typename T>
struct LayerCache {
  T *keys, *values;
};

// Those of layer number `layer` in the array of all caches, where keys stand in front of values.
template <typename S, typename T>
__device__ inline LayerCache<T> layer_cache(T* caches, int layer, int capacity) {
  long long size = static_cast<long long>(S::KV_HEADS) * S::HEAD_DIM * capacity;
  T* keys = caches + layer * 2 * size;
  return {keys, keys + size};
}

}  // namespace moxin
