// Attention of one new token to the key-value cache and to itself.
//
// A head's keys are divided over SPLITS blocks. In a warp eight lanes share a key, and each such
// group keeps a running softmax of its own; they are merged at the end of the block, and the
// blocks of a head by `merge`.

#include "types.cu"

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

// Block `blockIdx.x` is split number blockIdx.x % SPLITS of head blockIdx.x / SPLITS.
//
// keys and values are [KV_HEADS, capacity, HEAD_DIM], filled up to *position; new_key and
// new_value [KV_HEADS, HEAD_DIM] stand at *position. Of longer sequences the last WINDOW count
// (0: all). With one split `out` is the result [HEADS, HEAD_DIM], otherwise `partial` is
// [HEADS, SPLITS, HEAD_DIM + 2]: the sums, then maximum and weight.
template <typename T, int HEAD_DIM, int HEADS, int KV_HEADS, int SPLITS, int WINDOW, int THREADS,
          typename O>
__device__ void attend(
    const T* queries, const T* keys, const T* values, const T* new_key, const T* new_value,
    const int* position, int capacity, float scale, O* out) {
  constexpr int WARPS = THREADS / LANES;
  constexpr int GROUPS = LANES / KEY_LANES;
  constexpr int DIMS = HEAD_DIM / KEY_LANES;
  constexpr int VECTORS = DIMS / 8;
  static_assert(HEAD_DIM % (8 * KEY_LANES) == 0, "a lane reads 16 bytes of a key at a time");
  int head = blockIdx.x / SPLITS, split = blockIdx.x % SPLITS;
  int kv_head = head / (HEADS / KV_HEADS);
  int warp = threadIdx.x / LANES, lane = threadIdx.x % LANES;
  int group = lane / KEY_LANES, part = lane % KEY_LANES;

  float query[DIMS];
#pragma unroll
  for (int v = 0; v < VECTORS; ++v) {
    const uint4* from = reinterpret_cast<const uint4*>(queries + head * HEAD_DIM);
    unpack<T>(from[v * KEY_LANES + part], query + 8 * v);
  }
  constexpr float LOG2_E = 1.4426950408889634f;
#pragma unroll
  for (float& q : query) q *= scale * LOG2_E;

  int last = *position;
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
    const uint4* from_key = reinterpret_cast<const uint4*>(
        key == last ? new_key + kv_head * HEAD_DIM : keys + offset);
    const uint4* from_value = reinterpret_cast<const uint4*>(
        key == last ? new_value + kv_head * HEAD_DIM : values + offset);
    uint4 key_vectors[VECTORS], value_vectors[VECTORS];
#pragma unroll
    for (int v = 0; v < VECTORS; ++v) {
      key_vectors[v] = from_key[v * KEY_LANES + part];
      value_vectors[v] = from_value[v * KEY_LANES + part];
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

  __shared__ float highest[WARPS], weights[WARPS], sums[WARPS][HEAD_DIM];
  if (group == 0) {
    if (part == 0) {
      highest[warp] = own.highest;
      weights[warp] = own.weight;
    }
#pragma unroll
    for (int i = 0; i < DIMS; ++i) {
      sums[warp][(i / 8 * KEY_LANES + part) * 8 + i % 8] = own.sums[i];
    }
  }
  __syncthreads();
  for (int dim = threadIdx.x; dim < HEAD_DIM; dim += THREADS) {
    float top = LOWEST, weight = 0, sum = 0;
#pragma unroll
    for (int w = 0; w < WARPS; ++w) top = fmaxf(top, highest[w]);
#pragma unroll
    for (int w = 0; w < WARPS; ++w) {
      float factor = exp2f(highest[w] - top);
      weight += factor * weights[w];
      sum += factor * sums[w][dim];
    }
    if constexpr (SPLITS == 1) {
      out[head * HEAD_DIM + dim] = round_to<O>(sum / weight);
    } else {
      float* to = reinterpret_cast<float*>(out) + size_t(blockIdx.x) * (HEAD_DIM + 2);
      to[dim] = sum;
      if (dim == 0) {
        to[HEAD_DIM] = top;
        to[HEAD_DIM + 1] = weight;
      }
    }
  }
}

// The splits of head blockIdx.x, one thread per dimension.
template <typename T, int HEAD_DIM, int SPLITS>
__device__ void merge(const float* partial, T* out) {
  partial += blockIdx.x * SPLITS * (HEAD_DIM + 2);
  float top = LOWEST, weight = 0, sum = 0;
#pragma unroll
  for (int s = 0; s < SPLITS; ++s) top = fmaxf(top, partial[s * (HEAD_DIM + 2) + HEAD_DIM]);
#pragma unroll
  for (int s = 0; s < SPLITS; ++s) {
    const float* from = partial + s * (HEAD_DIM + 2);
    float factor = exp2f(from[HEAD_DIM] - top);
    weight += factor * from[HEAD_DIM + 1];
    sum += factor * from[threadIdx.x];
  }
  out[blockIdx.x * HEAD_DIM + threadIdx.x] = round_to<T>(sum / weight);
}

}  // namespace moxin
