// Attention of one new token of each sequence to its key-value cache, with the rotation of its
// queries and key, which is appended with its value.
//
// A thread block does HEADS_AT_ONCE heads that share keys; its warps divide the positions. In a
// warp eight lanes share a key, as in decode_attention.cuh.

#pragma once

#include "decode_attention.cuh"
#include "rope.cuh"

namespace moxin {

// Shared memory of a thread block.
template <typename T, int HEAD_DIM, int COUNT, int WARPS>
struct BatchAttention {
  T rotated[COUNT + 2][HEAD_DIM];  // queries, key, value
  float highest[COUNT][WARPS], weights[COUNT][WARPS], sums[COUNT][WARPS][HEAD_DIM];
};

// The cache of a layer: [B, KV_HEADS, capacity, HEAD_DIM]. `filled` positions are used, of which the
// first padding[b] of sequence b are masked.
template <typename T>
struct BatchCache {
  T *keys, *values;
  const int* padding;
  int filled, capacity;
};

// Item `item` of B * HEADS / COUNT: COUNT heads of a sequence. products are those of q_proj, k_proj
// and v_proj [B, (HEADS + 2 KV_HEADS) * HEAD_DIM], out is [B, HEADS, HEAD_DIM]. Only the last WINDOW
// positions are visible (0: all).
template <typename T, int HEAD_DIM, int HEADS, int KV_HEADS, int COUNT, int WINDOW, int THREADS>
__device__ void attend_heads(
    BatchAttention<T, HEAD_DIM, COUNT, THREADS / LANES>& memory, int item, const float* products,
    const BatchCache<T>& cache, float log2_theta, float scale, T* out) {
  constexpr int WARPS = THREADS / LANES, HALF = HEAD_DIM / 2, GROUP = HEADS / KV_HEADS;
  constexpr int KEYS_PER_WARP = LANES / KEY_LANES, DIMS = HEAD_DIM / KEY_LANES, VECTORS = DIMS / 8;
  static_assert(GROUP % COUNT == 0, "the heads share keys");
  static_assert(HEAD_DIM % (8 * KEY_LANES) == 0, "a lane reads 16 bytes of a key at a time");
  int sequence = item / (HEADS / COUNT), first = item % (HEADS / COUNT) * COUNT;
  int kv_head = first / GROUP;
  int thread = thread_of_step(), warp = thread / LANES, lane = thread % LANES;
  int group = lane / KEY_LANES, share = lane % KEY_LANES;
  int padding = cache.padding[sequence], last = cache.filled;
  long long head = (static_cast<long long>(sequence) * KV_HEADS + kv_head) * cache.capacity;
  const T* keys = cache.keys + head * HEAD_DIM;
  const T* values = cache.values + head * HEAD_DIM;

  products += static_cast<long long>(sequence) * (HEADS + 2 * KV_HEADS) * HEAD_DIM;
  for (int i = thread; i < (COUNT + 2) * HALF; i += THREADS) {
    int index = i / HALF, dim = i % HALF;
    int column = index < COUNT ? first + index : HEADS + (index - COUNT) * KV_HEADS + kv_head;
    float low = products[column * HEAD_DIM + dim], high = products[column * HEAD_DIM + dim + HALF];
    if (index <= COUNT) {
      float2 r = rotation<HALF>(last - padding, dim, log2_theta);
      float turned = low * r.x - high * r.y;
      high = low * r.y + high * r.x;
      low = turned;
    }
    T rounded_low = round_to<T>(low), rounded_high = round_to<T>(high);
    memory.rotated[index][dim] = rounded_low;
    memory.rotated[index][dim + HALF] = rounded_high;
    if (index >= COUNT && first % GROUP == 0) {
      T* to = (index == COUNT ? cache.keys : cache.values) + (head + last) * HEAD_DIM + dim;
      to[0] = rounded_low;
      to[HALF] = rounded_high;
    }
  }
  __syncthreads();

  constexpr float LOG2_E = 1.4426950408889634f;
  float queries[COUNT][DIMS];
#pragma unroll
  for (int h = 0; h < COUNT; ++h) {
#pragma unroll
    for (int v = 0; v < VECTORS; ++v) {
      const uint4* from = reinterpret_cast<const uint4*>(memory.rotated[h]);
      unpack<T>(from[v * KEY_LANES + share], queries[h] + 8 * v);
    }
#pragma unroll
    for (float& q : queries[h]) q *= scale * LOG2_E;
  }

  int start = WINDOW > 0 ? max(padding, last + 1 - WINDOW) : padding;
  RunningSoftmax<DIMS> softmax[COUNT];
#pragma unroll 2
  for (int base = start + warp * KEYS_PER_WARP; base <= last; base += WARPS * KEYS_PER_WARP) {
    int key = min(base + group, last);  // unconditional loads can be issued early
    // The new token is read from shared memory: another thread block may be writing it.
    const T* from_key = key == last ? memory.rotated[COUNT] : keys + key * HEAD_DIM;
    const T* from_value = key == last ? memory.rotated[COUNT + 1] : values + key * HEAD_DIM;
    uint4 key_vectors[VECTORS], value_vectors[VECTORS];
#pragma unroll
    for (int v = 0; v < VECTORS; ++v) {
      key_vectors[v] = reinterpret_cast<const uint4*>(from_key)[v * KEY_LANES + share];
      value_vectors[v] = reinterpret_cast<const uint4*>(from_value)[v * KEY_LANES + share];
    }
    float scores[COUNT] = {};
#pragma unroll
    for (int v = 0; v < VECTORS; ++v) {
      float x[8];
      unpack<T>(key_vectors[v], x);
#pragma unroll
      for (int h = 0; h < COUNT; ++h) {
#pragma unroll
        for (int i = 0; i < 8; ++i) scores[h] += queries[h][8 * v + i] * x[i];
      }
    }
#pragma unroll
    for (int h = 0; h < COUNT; ++h) {
#pragma unroll
      for (int lanes = KEY_LANES / 2; lanes > 0; lanes /= 2) {
        scores[h] += __shfl_xor_sync(ALL_LANES, scores[h], lanes);
      }
      if (base + group > last) scores[h] = 2 * LOWEST;
      softmax[h].rescale(fmaxf(softmax[h].highest, scores[h]));
      scores[h] = exp2f(scores[h] - softmax[h].highest);  // the weight from here on
      softmax[h].weight += scores[h];
    }
#pragma unroll
    for (int v = 0; v < VECTORS; ++v) {
      float x[8];
      unpack<T>(value_vectors[v], x);
#pragma unroll
      for (int h = 0; h < COUNT; ++h) {
#pragma unroll
        for (int i = 0; i < 8; ++i) softmax[h].sums[8 * v + i] += scores[h] * x[i];
      }
    }
  }
#pragma unroll
  for (int h = 0; h < COUNT; ++h) {
#pragma unroll
    for (int lanes = KEY_LANES; lanes < LANES; lanes *= 2) softmax[h].merge_lane(lanes);
    if (group == 0) {
      if (share == 0) {
        memory.highest[h][warp] = softmax[h].highest;
        memory.weights[h][warp] = softmax[h].weight;
      }
#pragma unroll
      for (int i = 0; i < DIMS; ++i) {
        memory.sums[h][warp][(i / 8 * KEY_LANES + share) * 8 + i % 8] = softmax[h].sums[i];
      }
    }
  }
  __syncthreads();
  for (int i = thread; i < COUNT * HEAD_DIM; i += THREADS) {
    int h = i / HEAD_DIM, dim = i % HEAD_DIM;
    float top = LOWEST, weight = 0, sum = 0;
#pragma unroll
    for (int w = 0; w < WARPS; ++w) top = fmaxf(top, memory.highest[h][w]);
#pragma unroll
    for (int w = 0; w < WARPS; ++w) {
      float factor = exp2f(memory.highest[h][w] - top);
      weight += factor * memory.weights[h][w];
      sum += factor * memory.sums[h][w][dim];
    }
    long long row = static_cast<long long>(sequence) * HEADS + first;
    out[row * HEAD_DIM + i] = round_to<T>(weight > 0 ? sum / weight : 0);
  }
}

}  // namespace moxin
