// The operations between two products of prompts and batches: residual and RMS norm; rotation.
//
// A product is of dtype P, float or T: [splits, rows, N], the sum of which is the product, or [rows, N]
// (computed by MLX; splits is 0). Those of T are prompts', with hundreds of rows: their kernels have so
// few registers that three thread blocks fit on a multiprocessor, and all rows of a usual prompt at once.

#pragma once

#include "arranged.cuh"
#include "dtypes.cuh"
#include "rope.cuh"

namespace moxin {

// Thread blocks of a row each that a multiprocessor has to hold.
template <typename P>
constexpr int MIN_BLOCKS = sizeof(P) == 2 ? 3 : 1;

// Eight or four values of a part of a product.
template <typename T>
__device__ inline void load_part(const float* from, float (&values)[8]) {
  const float4* fours = reinterpret_cast<const float4*>(from);
  float4 low = fours[0], high = fours[1];
  const float loaded[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
  for (int i = 0; i < 8; ++i) values[i] = loaded[i];
}

template <typename T>
__device__ inline void load_part(const float* from, float (&values)[4]) {
  float4 loaded = *reinterpret_cast<const float4*>(from);
  values[0] = loaded.x, values[1] = loaded.y, values[2] = loaded.z, values[3] = loaded.w;
}

template <typename T>
__device__ inline void load_part(const T* from, float (&values)[8]) {
  unpack<T>(*reinterpret_cast<const uint4*>(from), values);
}

template <typename T>
__device__ inline void load_part(const T* from, float (&values)[4]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) values[i] = to_float(from[i]);
}

// Values of a product, at COUNT places that are `distance` values apart, from `from` on. Its parts are
// `stride` values apart, and AT_ONCE of them are read at once.
template <typename T, int AT_ONCE, int COUNT, int LENGTH, typename P>
__device__ inline void sum_parts(
    const P* from, long long stride, int splits, int distance, float (&values)[COUNT][LENGTH]) {
#pragma unroll
  for (int i = 0; i < COUNT * LENGTH; ++i) values[i / LENGTH][i % LENGTH] = 0;
  int parts = max(splits, 1);
#pragma unroll AT_ONCE
  for (int part = 0; part < parts; ++part) {
#pragma unroll
    for (int place = 0; place < COUNT; ++place) {
      float added[LENGTH];
      load_part<T>(from + part * stride + place * distance, added);
#pragma unroll
      for (int i = 0; i < LENGTH; ++i) values[place][i] += added[i];
    }
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
  constexpr bool READS_AHEAD = ROUNDS == 1;  // the weights, together with the product
  uint4 weights[ROUNDS];
  auto read_weights = [&](int at) { return *reinterpret_cast<const uint4*>(weight + at); };
#pragma unroll
  for (int round = 0; round < ROUNDS; ++round) {
    int at = (round * THREADS + threadIdx.x) * 8;
    if (at >= WIDTH) continue;
    if (READS_AHEAD && weight) weights[round] = read_weights(at);
    uint4 old = *reinterpret_cast<const uint4*>(residual + row + at);
    float added[1][8];
    if (product) {
      sum_parts<T, 4>(product + row + at, static_cast<long long>(rows) * WIDTH, splits, 0, added);
    }
    unpack<T>(old, values[round]);
    if (product) {
#pragma unroll
      for (int i = 0; i < 8; ++i) values[round][i] += added[0][i];
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
    float factors[8];
    unpack<T>(READS_AHEAD ? weights[round] : read_weights(at), factors);
#pragma unroll
    for (int i = 0; i < 8; ++i) values[round][i] *= scale * factors[i];
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

// Eight dimensions of the first half of a head and those HALF after them: part `part` of a row's COUNT.
template <typename T, int HEAD_DIM, int HEADS, int KV_HEADS>
struct HeadPart {
  static constexpr int HALF = HEAD_DIM / 2, OF_HEAD = HALF / 8;
  static constexpr int COUNT = (HEADS + 2 * KV_HEADS) * OF_HEAD;
  int row, head, dim;
  float values[2][8];

  __device__ inline HeadPart(int row, int part)
      : row(row), head(part / OF_HEAD), dim(part % OF_HEAD * 8) {}

  __device__ inline bool is_query() const { return head < HEADS; }
  __device__ inline bool is_value() const { return head >= HEADS + KV_HEADS; }
  // Number of the query, key or value head.
  __device__ inline int index() const {
    return is_query() ? head : head - (is_value() ? HEADS + KV_HEADS : HEADS);
  }

  template <typename P>
  __device__ inline void read(const ProjectedHeads<P>& from, int splits, int rows) {
    int stride = is_query() ? from.query_stride : from.key_stride;
    const P* products = is_query() ? from.queries : is_value() ? from.values : from.keys;
    products += static_cast<long long>(row) * stride + index() * HEAD_DIM + dim;
    long long part_stride = static_cast<long long>(rows) * stride;
    sum_parts<T, 2>(products, part_stride, splits, HALF, values);
  }

  // find_rotation(d): cosine and sine for dimension d.
  template <typename F>
  __device__ inline void rotate(F find_rotation) {
    if (is_value()) return;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      float2 r = find_rotation(dim + i);
      float first = values[0][i], second = values[1][i];
      values[0][i] = first * r.x - second * r.y;
      values[1][i] = first * r.y + second * r.x;
    }
  }

  __device__ inline void write(const RotatedHeads<T>& to, int tokens) const {
    T* out = is_query() ? to.queries : is_value() ? to.values : to.keys;
    int batch = row / tokens, token = row % tokens;
    long long head_row = (static_cast<long long>(batch) * KV_HEADS + index()) * to.length + token;
    long long at = is_query() ? static_cast<long long>(row) * HEADS + head : head_row;
    *reinterpret_cast<uint4*>(out + at * HEAD_DIM + dim) = pack_eight<T>(values[0]);
    *reinterpret_cast<uint4*>(out + at * HEAD_DIM + dim + HALF) = pack_eight<T>(values[1]);
  }
};

}  // namespace moxin
