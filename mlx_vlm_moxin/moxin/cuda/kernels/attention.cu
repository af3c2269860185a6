// Attention of one new token to the key-value cache, which it is in already.
//
// A head's keys are divided over SPLITS blocks. In a warp eight lanes share a key, and each such
// group keeps a running softmax of its own; they are merged at the end of the block, and the
// blocks of a head by whoever reads the result.

#pragma once

#include "grid.cu"

namespace moxin {

// In place of -infinity, which would give NaN where nothing was added yet.
constexpr float LOWEST = -1e30f;
constexpr int KEY_LANES = 8;

// Softmax-weighted sum of values: maximum of the scores (base 2), sum of weights, and the sum.
template <int N>
struct Softmax {
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

  // Add what the lane `distance` away has.
  __device__ void merge_lane(int distance) {
    rescale(fmaxf(highest, __shfl_xor_sync(ALL_LANES, highest, distance)));
    weight += __shfl_xor_sync(ALL_LANES, weight, distance);
#pragma unroll
    for (float& sum : sums) sum += __shfl_xor_sync(ALL_LANES, sum, distance);
  }
};

// The result of all heads, divided: softmax-weighted sums [HEADS, SPLITS, HEAD_DIM], then maximum
// and weight of each. As a function it gives the i-th eight values of [HEADS, HEAD_DIM].
template <typename T, int HEAD_DIM, int HEADS, int SPLITS>
struct Attended {
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

// What the warps of a block leave to each other, in shared memory.
template <int HEAD_DIM, int WARPS>
struct Gathered {
  float highest[WARPS], weights[WARPS], sums[WARPS][HEAD_DIM];
};

// Split number part % SPLITS of head part / SPLITS, by a block.
//
// keys and values are [KV_HEADS, capacity, HEAD_DIM]; the token's own stand at `last`. Of longer
// sequences the last WINDOW count (0: all).
template <typename T, int HEAD_DIM, int HEADS, int KV_HEADS, int SPLITS, int WINDOW, int THREADS>
__device__ void attend(
    Gathered<HEAD_DIM, THREADS / LANES>& gathered, int part, const T* queries, const T* keys,
    const T* values, int last, int capacity, float scale,
    Attended<T, HEAD_DIM, HEADS, SPLITS> attended) {
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

  Softmax<DIMS> own;
#pragma unroll 2
  for (int base = start + warp * GROUPS; base < end; base += WARPS * GROUPS) {
    bool valid = base + group < end;
    int key = min(base + group, end - 1);  // loads without a condition can be issued early
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
    own.rescale(fmaxf(own.highest, score));
    float weight = exp2f(score - own.highest);
    own.weight += weight;
#pragma unroll
    for (int v = 0; v < VECTORS; ++v) {
      float x[8];
      unpack<T>(value_vectors[v], x);
#pragma unroll
      for (int i = 0; i < 8; ++i) own.sums[8 * v + i] += weight * x[i];
    }
  }
#pragma unroll
  for (int lanes = KEY_LANES; lanes < LANES; lanes *= 2) own.merge_lane(lanes);

  if (group == 0) {
    if (share == 0) {
      gathered.highest[warp] = own.highest;
      gathered.weights[warp] = own.weight;
    }
#pragma unroll
    for (int i = 0; i < DIMS; ++i) {
      gathered.sums[warp][(i / 8 * KEY_LANES + share) * 8 + i % 8] = own.sums[i];
    }
  }
  __syncthreads();
  for (int dim = thread; dim < HEAD_DIM; dim += THREADS) {
    float top = LOWEST, weight = 0, sum = 0;
#pragma unroll
    for (int w = 0; w < WARPS; ++w) top = fmaxf(top, gathered.highest[w]);
#pragma unroll
    for (int w = 0; w < WARPS; ++w) {
      float factor = exp2f(gathered.highest[w] - top);
      weight += factor * gathered.weights[w];
      sum += factor * gathered.sums[w][dim];
    }
    attended.sums[part * HEAD_DIM + dim] = sum;
    if (dim == 0) *attended.extent(part) = float2{top, weight};
  }
}

}  // namespace moxin
