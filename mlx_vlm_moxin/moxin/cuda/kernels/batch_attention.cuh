// Attention of one new token of each sequence to its key-value cache, with the rotation of its
// queries and key, which is appended with its value.
//
// A thread block does HEADS_AT_ONCE heads that share keys; its warps divide the positions. In a
// warp 16 or 8 lanes share a key, and BATCHES of keys are read before the first is used.

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

// First visible position of a sequence.
template <int WINDOW>
__device__ inline int first_visible(int padding, int last) {
  return WINDOW > 0 ? max(padding, last + 1 - WINDOW) : padding;
}

// Moves the visible keys and values of the cache into L2, or keeps them there.
template <typename T, int HEAD_DIM, int KV_HEADS, int WINDOW, int THREADS>
__device__ inline void prefetch_cache(const BatchCache<T>& cache, int batch) {
  constexpr int LINE = 128;  // bytes
  for (int item = blockIdx.x; item < 2 * batch * KV_HEADS; item += gridDim.x) {
    int head = item / 2, padding = cache.padding[head / KV_HEADS];
    int first = first_visible<WINDOW>(padding, cache.filled);
    const T* from = (item % 2 ? cache.values : cache.keys) +
                    (static_cast<long long>(head) * cache.capacity + first) * HEAD_DIM;
    int bytes = (cache.filled - first) * HEAD_DIM * static_cast<int>(sizeof(T));
    for (int at = thread_of_step() * LINE; at < bytes; at += THREADS * LINE) {
      asm volatile("prefetch.global.L2 [%0];" : : "l"(reinterpret_cast<const char*>(from) + at));
    }
  }
}

// Item `item` of B * HEADS / COUNT: COUNT heads of a sequence. products are those of q_proj, k_proj
// and v_proj [B, (HEADS + 2 KV_HEADS) * HEAD_DIM], out is [B, HEADS, HEAD_DIM]. Only the last WINDOW
// positions are visible (0: all). Not inlined, because it would cost the products registers.
template <typename T, int HEAD_DIM, int HEADS, int KV_HEADS, int COUNT, int BATCHES, int WINDOW,
          int THREADS>
__device__ __noinline__ void attend_heads(
    BatchAttention<T, HEAD_DIM, COUNT, THREADS / LANES>& memory, int item, const float* products,
    const BatchCache<T>& cache, float log2_theta, float scale, T* out) {
  constexpr int WARPS = THREADS / LANES, HALF = HEAD_DIM / 2, GROUP = HEADS / KV_HEADS;
  constexpr int SHARERS = HEAD_DIM % 128 == 0 ? 16 : 8;  // lanes of a key
  constexpr int KEYS_PER_WARP = LANES / SHARERS, DIMS = HEAD_DIM / SHARERS, VECTORS = DIMS / 8;
  static_assert(GROUP % COUNT == 0, "the heads share keys");
  static_assert(HEAD_DIM % (8 * SHARERS) == 0, "a lane reads 16 bytes of a key at a time");
  int sequence = item / (HEADS / COUNT), first = item % (HEADS / COUNT) * COUNT;
  int kv_head = first / GROUP;
  int thread = thread_of_step(), warp = thread / LANES, lane = thread % LANES;
  int group = lane / SHARERS, share = lane % SHARERS;
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
      unpack<T>(from[v * SHARERS + share], queries[h] + 8 * v);
    }
#pragma unroll
    for (float& q : queries[h]) q *= scale * LOG2_E;
  }

  constexpr int STRIDE = WARPS * KEYS_PER_WARP;
  RunningSoftmax<DIMS> softmax[COUNT];
#pragma unroll 1
  for (int base = first_visible<WINDOW>(padding, last) + warp * KEYS_PER_WARP + group;
       base - group <= last; base += BATCHES * STRIDE) {
    uint4 key_vectors[BATCHES][VECTORS], value_vectors[BATCHES][VECTORS];
#pragma unroll
    for (int b = 0; b < BATCHES; ++b) {
      int key = min(base + b * STRIDE, last);  // without a branch, all are in flight together
      // The new token is read from shared memory: another thread block may be writing it.
      const T* from_key = key == last ? memory.rotated[COUNT] : keys + key * HEAD_DIM;
      const T* from_value = key == last ? memory.rotated[COUNT + 1] : values + key * HEAD_DIM;
#pragma unroll
      for (int v = 0; v < VECTORS; ++v) {
        key_vectors[b][v] = reinterpret_cast<const uint4*>(from_key)[v * SHARERS + share];
        value_vectors[b][v] = reinterpret_cast<const uint4*>(from_value)[v * SHARERS + share];
      }
    }
    float scores[BATCHES][COUNT] = {};
#pragma unroll
    for (int b = 0; b < BATCHES; ++b) {
#pragma unroll
      for (int v = 0; v < VECTORS; ++v) {
        float x[8];
        unpack<T>(key_vectors[b][v], x);
#pragma unroll
        for (int h = 0; h < COUNT; ++h) {
#pragma unroll
          for (int i = 0; i < 8; ++i) scores[b][h] += queries[h][8 * v + i] * x[i];
        }
      }
    }
#pragma unroll
    for (int h = 0; h < COUNT; ++h) {
      float highest = softmax[h].highest;
#pragma unroll
      for (int b = 0; b < BATCHES; ++b) {
#pragma unroll
        for (int lanes = SHARERS / 2; lanes > 0; lanes /= 2) {
          scores[b][h] += __shfl_xor_sync(ALL_LANES, scores[b][h], lanes);
        }
        if (base + b * STRIDE > last) scores[b][h] = 2 * LOWEST;
        highest = fmaxf(highest, scores[b][h]);
      }
      softmax[h].rescale(highest);
#pragma unroll
      for (int b = 0; b < BATCHES; ++b) {
        scores[b][h] = exp2f(scores[b][h] - highest);  // the weight from here on
        softmax[h].weight += scores[b][h];
      }
    }
#pragma unroll
    for (int b = 0; b < BATCHES; ++b) {
#pragma unroll
      for (int v = 0; v < VECTORS; ++v) {
        float x[8];
        unpack<T>(value_vectors[b][v], x);
#pragma unroll
        for (int h = 0; h < COUNT; ++h) {
#pragma unroll
          for (int i = 0; i < 8; ++i) softmax[h].sums[8 * v + i] += scores[b][h] * x[i];
        }
      }
    }
  }
#pragma unroll
  for (int h = 0; h < COUNT; ++h) {
#pragma unroll
    for (int lanes = SHARERS; lanes < LANES; lanes *= 2) softmax[h].merge_lane(lanes);
    if (group == 0) {
      if (share == 0) {
        memory.highest[h][warp] = softmax[h].highest;
        memory.weights[h][warp] = softmax[h].weight;
      }
#pragma unroll
      for (int i = 0; i < DIMS; ++i) {
        memory.sums[h][warp][(i / 8 * SHARERS + share) * 8 + i % 8] = softmax[h].sums[i];
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
