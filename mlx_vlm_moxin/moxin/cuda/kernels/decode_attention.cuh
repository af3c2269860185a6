// Attention of one new token to the key-value cache, which already contains the token.
//
// The keys of a head are divided over SPLITS thread blocks. In a warp, eight lanes share a key, and
// each group of eight keeps a running softmax. The groups are merged at the end of the block; the
// blocks of a head are merged by the reader of the result (AttendedHeads).

#pragma once

#include "grid.cuh"

namespace moxin {

// Used instead of -infinity, which would give NaN (inf - inf) before the first key.
constexpr float LOWEST = -1e30f;
constexpr int KEY_LANES = 8;

// Running softmax-weighted sum of values: maximum of the scores (base 2), sum of the weights, and
// the weighted sum itself.
template <int N>
struct RunningSoftmax {
  float highest = LOWEST;
  float weight = 0;
  float sums[N] = {};

  __device__ void rescale(float new_highest) {
    float factor = exp2f(highest - new_highest);
    highest = new_highest;
    weight *= factor;
#pragma unroll
    for (float& sum : sums) sum *= factor;
  }

  // Merges the state of the lane `distance` away.
  __device__ void merge_lane(int distance) {
    rescale(fmaxf(highest, __shfl_xor_sync(ALL_LANES, highest, distance)));
    weight += __shfl_xor_sync(ALL_LANES, weight, distance);
#pragma unroll
    for (float& sum : sums) sum += __shfl_xor_sync(ALL_LANES, sum, distance);
  }
};

// The unmerged result of all heads: weighted sums [HEADS, SPLITS, HEAD_DIM], followed by maximum and
// weight [HEADS, SPLITS, 2]. Called with i, it returns the i-th eight merged values of
// [HEADS, HEAD_DIM].
template <typename T, int HEAD_DIM, int HEADS, int SPLITS>
struct AttendedHeads {
  float* sums;

  __device__ float2* extent(int part) const {
    return reinterpret_cast<float2*>(sums + HEADS * SPLITS * HEAD_DIM) + part;
  }

  __device__ uint4 operator()(int i) const {
    int head = i / (HEAD_DIM / 8), first = i % (HEAD_DIM / 8) * 8;
    float top = LOWEST, weight = 0, values[8] = {};
#pragma unroll
    for (int split = 0; split < SPLITS; ++split) {
      top = fmaxf(top, extent(head * SPLITS + split)->x);
    }
#pragma unroll
    for (int split = 0; split < SPLITS; ++split) {
      int part = head * SPLITS + split;
      float factor = exp2f(extent(part)->x - top);
      weight += factor * extent(part)->y;
      const float4* from = reinterpret_cast<const float4*>(sums + part * HEAD_DIM + first);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float4 v = from[half];
        values[4 * half] += factor * v.x;
        values[4 * half + 1] += factor * v.y;
        values[4 * half + 2] += factor * v.z;
        values[4 * half + 3] += factor * v.w;
      }
    }
#pragma unroll
    for (float& value : values) value /= weight;
    return pack_eight<T>(values);
  }
};

// Shared memory in which the warps of a thread block merge their softmaxes.
template <int HEAD_DIM, int WARPS>
struct WarpSoftmaxes {
  float highest[WARPS], weights[WARPS], sums[WARPS][HEAD_DIM];
};

// One thread block computes split part % SPLITS of head part / SPLITS.
//
// keys and values are [KV_HEADS, capacity, HEAD_DIM]; those of the new token are at position `last`.
// Only the last WINDOW positions are visible (0: all).
template <typename T, int HEAD_DIM, int HEADS, int KV_HEADS, int SPLITS, int WINDOW, int THREADS>
__device__ void attend_one_token(
    WarpSoftmaxes<HEAD_DIM, THREADS / LANES>& merged, int part, const T* queries, const T* keys,
    const T* values, int last, int capacity, float scale,
    AttendedHeads<T, HEAD_DIM, HEADS, SPLITS> attended) {
  constexpr int WARPS = THREADS / LANES;
  constexpr int GROUPS = LANES / KEY_LANES;
  constexpr int DIMS = HEAD_DIM / KEY_LANES;
  constexpr int VECTORS = DIMS / 8;
  static_assert(HEAD_DIM % (8 * KEY_LANES) == 0, "a lane reads 16 bytes of a key at a time");
  int head = part / SPLITS, split = part % SPLITS;
  int kv_head = head / (HEADS / KV_HEADS);
  int thread = thread_of_step(), warp = thread / LANES, lane = thread % LANES;
  int group = lane / KEY_LANES, share = lane % KEY_LANES;

  float query[DIMS];
#pragma unroll
  for (int v = 0; v < VECTORS; ++v) {
    const uint4* from = reinterpret_cast<const uint4*>(queries + head * HEAD_DIM);
    unpack<T>(from[v * KEY_LANES + share], query + 8 * v);
  }
  constexpr float LOG2_E = 1.4426950408889634f;
#pragma unroll
  for (float& q : query) q *= scale * LOG2_E;

  int start = WINDOW > 0 ? max(0, last + 1 - WINDOW) : 0;
  int per_split = (last + 1 - start + SPLITS - 1) / SPLITS;
  start += split * per_split;
  int end = min(start + per_split, last + 1);

  RunningSoftmax<DIMS> softmax;
#pragma unroll 2
  for (int base = start + warp * GROUPS; base < end; base += WARPS * GROUPS) {
    bool valid = base + group < end;
    int key = min(base + group, end - 1);  // unconditional loads can be issued early
    size_t offset = (size_t(kv_head) * capacity + key) * HEAD_DIM;
    const uint4* from_key = reinterpret_cast<const uint4*>(keys + offset);
    const uint4* from_value = reinterpret_cast<const uint4*>(values + offset);
    uint4 key_vectors[VECTORS], value_vectors[VECTORS];
#pragma unroll
    for (int v = 0; v < VECTORS; ++v) {
      key_vectors[v] = from_key[v * KEY_LANES + share];
      value_vectors[v] = from_value[v * KEY_LANES + share];
    }
    float score = 0;
#pragma unroll
    for (int v = 0; v < VECTORS; ++v) {
      float x[8];
      unpack<T>(key_vectors[v], x);
#pragma unroll
      for (int i = 0; i < 8; ++i) score += query[8 * v + i] * x[i];
    }
#pragma unroll
    for (int lanes = KEY_LANES / 2; lanes > 0; lanes /= 2) {
      score += __shfl_xor_sync(ALL_LANES, score, lanes);
    }
    if (!valid) score = 2 * LOWEST;
    softmax.rescale(fmaxf(softmax.highest, score));
    float weight = exp2f(score - softmax.highest);
    softmax.weight += weight;
#pragma unroll
    for (int v = 0; v < VECTORS; ++v) {
      float x[8];
      unpack<T>(value_vectors[v], x);
#pragma unroll
      for (int i = 0; i < 8; ++i) softmax.sums[8 * v + i] += weight * x[i];
    }
  }
#pragma unroll
  for (int lanes = KEY_LANES; lanes < LANES; lanes *= 2) softmax.merge_lane(lanes);

  if (group == 0) {
    if (share == 0) {
      merged.highest[warp] = softmax.highest;
      merged.weights[warp] = softmax.weight;
    }
#pragma unroll
    for (int i = 0; i < DIMS; ++i) {
      merged.sums[warp][(i / 8 * KEY_LANES + share) * 8 + i % 8] = softmax.sums[i];
    }
  }
  __syncthreads();
  for (int dim = thread; dim < HEAD_DIM; dim += THREADS) {
    float top = LOWEST, weight = 0, sum = 0;
#pragma unroll
    for (int w = 0; w < WARPS; ++w) top = fmaxf(top, merged.highest[w]);
#pragma unroll
    for (int w = 0; w < WARPS; ++w) {
      float factor = exp2f(merged.highest[w] - top);
      weight += factor * merged.weights[w];
      sum += factor * merged.sums[w][dim];
    }
    attended.sums[part * HEAD_DIM + dim] = sum;
    if (dim == 0) *attended.extent(part) = float2{top, weight};
  }
}

}  // namespace moxin
