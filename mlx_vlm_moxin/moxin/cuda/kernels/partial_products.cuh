// The operations between two products of prompts and batches: residual and RMS norm; rotation.
//
// A product is of dtype P: float [splits, rows, N], the sum of which is the product (the partial
// products of narrow_matmul.cuh), or T [rows, N] (computed by MLX; splits is ignored).

#pragma once

#include "arranged.cuh"
#include "dtypes.cuh"
#include "rope.cuh"

namespace moxin {

// Eight values of a product at `from`; its parts are `stride` values apart.
template <typename T>
__device__ inline void sum_parts(const float* from, long long stride, int splits, float* values) {
#pragma unroll
  for (int i = 0; i < 8; ++i) values[i] = 0;
#pragma unroll 4
  for (int split = 0; split < splits; ++split) {
    const float4* part = reinterpret_cast<const float4*>(from + split * stride);
    float4 low = part[0], high = part[1];
    const float part_values[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
    for (int i = 0; i < 8; ++i) values[i] += part_values[i];
  }
}

template <typename T>
__device__ inline void sum_parts(const T* from, long long, int, float* values) {
  unpack<T>(*reinterpret_cast<const uint4*>(from), values);
}

// Four values of a product at `from` and the four `half` values after them; parts are `stride` values
// apart.
template <typename T>
__device__ inline void sum_four(
    const float* from, long long stride, int splits, int half, float* low, float* high) {
#pragma unroll
  for (int i = 0; i < 4; ++i) low[i] = high[i] = 0;
#pragma unroll 8
  for (int split = 0; split < splits; ++split) {
    float4 first = *reinterpret_cast<const float4*>(from + split * stride);
    float4 second = *reinterpret_cast<const float4*>(from + split * stride + half);
    low[0] += first.x, low[1] += first.y, low[2] += first.z, low[3] += first.w;
    high[0] += second.x, high[1] += second.y, high[2] += second.z, high[3] += second.w;
  }
}

template <typename T>
__device__ inline void sum_four(
    const T* from, long long, int, int half, float* low, float* high) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    low[i] = to_float(from[i]);
    high[i] = to_float(from[half + i]);
  }
}

// One thread block computes row `index` of sum = residual + product and normed = RMS norm of sum,
// [rows, WIDTH] each, the norm in `Order`. If `product` is null, the sum is the residual and is not
// written; if `weight` is null, the norm is not written.
template <typename T, int WIDTH, int THREADS, typename Order = RowMajor, typename P>
__device__ void add_and_norm(
    const P* product, const T* residual, const T* weight, int splits, int rows, float eps, T* sum,
    T* normed, int index) {
  constexpr int COUNT = WIDTH / 8, ROUNDS = (COUNT + THREADS - 1) / THREADS;
  long long row = static_cast<long long>(index) * WIDTH;
  float values[ROUNDS][8] = {}, squares = 0;
#pragma unroll
  for (int round = 0; round < ROUNDS; ++round) {
    int at = (round * THREADS + threadIdx.x) * 8;
    if (at >= WIDTH) continue;
    unpack<T>(*reinterpret_cast<const uint4*>(residual + row + at), values[round]);
    if (product) {
      float added[8];
      sum_parts<T>(product + row + at, static_cast<long long>(rows) * WIDTH, splits, added);
#pragma unroll
      for (int i = 0; i < 8; ++i) values[round][i] += added[i];
      uint4 rounded = pack_eight<T>(values[round]);
      *reinterpret_cast<uint4*>(sum + row + at) = rounded;
      unpack<T>(rounded, values[round]);
    }
#pragma unroll
    for (float value : values[round]) squares += value * value;
  }
  if (!weight) return;
  float scale = rsqrtf(block_sum<THREADS>(squares) / WIDTH + eps);
#pragma unroll
  for (int round = 0; round < ROUNDS; ++round) {
    int at = (round * THREADS + threadIdx.x) * 8;
    if (at >= WIDTH) continue;
    float weights[8];
    unpack<T>(*reinterpret_cast<const uint4*>(weight + at), weights);
#pragma unroll
    for (int i = 0; i < 8; ++i) values[round][i] *= scale * weights[i];
    store_eight<Order>(normed, index, at, WIDTH, pack_eight<T>(values[round]));
  }
}

// Products of q_proj, k_proj and v_proj. Strides are the distances of their rows, in values.
template <typename P>
struct ProjectedHeads {
  const P* queries;
  const P* keys;
  const P* values;
  int query_stride, key_stride;
};

// Results: queries [B, tokens, HEADS, HEAD_DIM], keys and values [B, KV_HEADS, length, HEAD_DIM].
template <typename T>
struct RotatedHeads {
  T *queries, *keys, *values;
  int length;
};

// Rotates queries and keys and copies values. Row b * tokens + t of the products has position
// filled + t - padding[b] (padding null: 0). A thread computes 16 values: eight dimensions of the
// first half of a head and those HALF after them, number `unit` of rows * (HEADS + 2 * KV_HEADS) *
// HEAD_DIM / 16.
template <typename T, int HEAD_DIM, int HEADS, int KV_HEADS, typename P>
__device__ void rotate_heads(
    const ProjectedHeads<P>& from, int filled, const int* padding, int splits, int rows, int tokens,
    float log2_theta, const RotatedHeads<T>& to, int unit) {
  constexpr int HALF = HEAD_DIM / 2, UNITS = HALF / 8, ALL_HEADS = HEADS + 2 * KV_HEADS;
  int row = unit / (UNITS * ALL_HEADS), head = unit / UNITS % ALL_HEADS, dim = unit % UNITS * 8;
  if (row >= rows) return;
  bool is_query = head < HEADS, is_key = !is_query && head < HEADS + KV_HEADS;
  int stride = is_query ? from.query_stride : from.key_stride;
  if (!is_query) head -= is_key ? HEADS : HEADS + KV_HEADS;
  const P* products = is_query ? from.queries : is_key ? from.keys : from.values;
  products += static_cast<long long>(row) * stride + head * HEAD_DIM + dim;
  long long part_stride = static_cast<long long>(rows) * stride;
  float low[8], high[8];
  sum_parts<T>(products, part_stride, splits, low);
  sum_parts<T>(products + HALF, part_stride, splits, high);
  int batch = row / tokens, token = row % tokens;
  if (is_query || is_key) {
    int position = filled + token - (padding ? padding[batch] : 0);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      float2 r = rotation<HALF>(position, dim + i, log2_theta);
      float first = low[i], second = high[i];
      low[i] = first * r.x - second * r.y;
      high[i] = first * r.y + second * r.x;
    }
  }
  T* out = is_query ? to.queries : is_key ? to.keys : to.values;
  long long at = is_query ? static_cast<long long>(row) * HEADS + head
                          : (static_cast<long long>(batch) * KV_HEADS + head) * to.length + token;
  *reinterpret_cast<uint4*>(out + at * HEAD_DIM + dim) = pack_eight<T>(low);
  *reinterpret_cast<uint4*>(out + at * HEAD_DIM + dim + HALF) = pack_eight<T>(high);
}

}  // namespace moxin
