// A lane's inputs of a product: how they are read, normalised, and converted for products with integers.
//
// Integers of 8 and 4 bits are exact in float16, as is a bfloat16 in its range: a power of two for each
// row of a step brings the largest value to 2^14. Those below 2^-27 of it lose bits, less than 2^-35 of
// the largest, which is below the rounding of a float32 sum.

#pragma once

#include "batch_steps.cuh"

namespace moxin {

static_assert(!INTEGERS || (GROUPS == 2 && CHUNKS == 2), "a lane's vectors are of two groups");

// The larger of two pairs of bfloat16 that are not negative.
__device__ inline unsigned int larger_pair(unsigned int a, unsigned int b) {
  unsigned int larger;
  asm("max.bf16x2 %0, %1, %2;" : "=r"(larger) : "r"(a), "r"(b));
  return larger;
}

// Part k of a float that is the sum of four parts, each exact in bfloat16; in the upper half.
__device__ inline unsigned int part_of(float x, int k) {
#pragma unroll
  for (int i = 0; i < 3; ++i) {
    if (k > i) x -= __uint_as_float(__float_as_uint(x) & 0xffff0000u);
  }
  return __float_as_uint(x);
}

// A lane's inputs of a step: of row lane / 4.
struct StepInputs {
  uint4 vectors[VECTORS];
  // If INTEGERS: part lane % 4 of the sum of the row's values in each of both groups, and what sums
  // of products of rows 2 (lane % 4) and the next one are multiplied by.
  unsigned int totals;
  float factors[2];

  // To be called when the vectors are complete.
  __device__ void finish() {
    if constexpr (INTEGERS) convert();
  }

 private:
  // Exponent, as its bits, of the largest value of the row.
  __device__ int highest_exponent() const {
    constexpr unsigned int MAGNITUDES = 0x7fff7fffu;
    unsigned int most = 0;
#pragma unroll
    for (const uint4& v : vectors) {
      most = larger_pair(most, larger_pair(v.x & MAGNITUDES, v.y & MAGNITUDES));
      most = larger_pair(most, larger_pair(v.z & MAGNITUDES, v.w & MAGNITUDES));
    }
    most = larger_pair(most, __shfl_xor_sync(ALL_LANES, most, 1));
    most = larger_pair(most, __shfl_xor_sync(ALL_LANES, most, 2));
    return max(most & 0xffffu, most >> 16) >> 7;
  }

  __device__ void convert() {
    constexpr int BIAS = 127, HIGHEST = 14;
    // The power of two must have an exponent of bfloat16.
    int exponent = max(highest_exponent(), HIGHEST), lane = threadIdx.x % LANES;
    unsigned int power = 2 * BIAS + HIGHEST - exponent;
    // Every other integer of 4 bits is 16 times as large (next_integers).
    unsigned int powers = power << 7 | (BITS == 4 ? power - 4 : power) << 23;
    // The reciprocal, and the unit of the integers.
    auto factor_of = [](int exponent) {
      return __uint_as_float(static_cast<unsigned int>(exponent) << 23) * (1 << 24 >> HIGHEST);
    };
    unsigned int parts[2];
#pragma unroll
    for (int group = 0; group < 2; ++group) {
      constexpr unsigned int ONE = 0x00010001u, FURTHER = BITS == 4 ? ONE << 4 : ONE;
      const unsigned int ones[4] = {ONE, ONE, FURTHER, FURTHER};
      float sums[4] = {};
#pragma unroll
      for (int plane = 0; plane < PLANES; ++plane) {
        uint4& v = vectors[group * PLANES + plane];
        v = uint4{multiply_pair(v.x, powers), multiply_pair(v.y, powers),
                  multiply_pair(v.z, powers), multiply_pair(v.w, powers)};
        float x[8];
        unpack<bfloat16>(v, x);
        if constexpr (BITS == 4) {
          v = uint4{pack<float16>(x[0], x[4]), pack<float16>(x[1], x[5]),
                    pack<float16>(x[2], x[6]), pack<float16>(x[3], x[7])};
        } else {
          v = pack_eight<float16>(x);
        }
        const unsigned int b[4] = {v.x, v.y, v.z, v.w};
        multiply_add<float16>(sums, ones, b);
        multiply_add<float16>(sums, ones, b + 2);
      }
      // sums are those of rows 2 (lane % 4) and the next one.
      float even = __shfl_sync(ALL_LANES, sums[0], lane / 8);
      float odd = __shfl_sync(ALL_LANES, sums[1], lane / 8);
      parts[group] = part_of((lane / 4 % 2 ? odd : even) * factor_of(exponent), lane % 4);
    }
    totals = __byte_perm(parts[0], parts[1], 0x7632);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      factors[i] = factor_of(__shfl_sync(ALL_LANES, exponent, (lane % 4 * 2 + i) * 4));
    }
  }
};

// Steps of a warp, at most, in whole slots.
template <int K>
constexpr int MOST_STEPS = (K / STEP + WARPS * TOGETHER - 1) / (WARPS * TOGETHER) * TOGETHER;

// Whether each warp has as many.
template <int K>
constexpr bool HAVE_MOST_STEPS = K / STEP % (WARPS * TOGETHER) == 0;

// Column of a lane's vector v in its warp's step `step`.
template <int K>
__device__ inline int column_of(int step, int v) {
  int thread = thread_of_step(), lane = thread % LANES, warp = thread / LANES;
  int column = Rounds(K).step_of(warp, step) * STEP + lane % 4 * UNIT;
  return column + v / PLANES * 4 * UNIT + v % PLANES * 8;
}

// A lane's inputs of step `step` of a warp: of row lane / 4 of [rows, K], 0 if there is none. x(at)
// gives eight values from number `at` on.
template <int K, typename X>
__device__ inline void load_inputs(X x, int rows, int step, StepInputs& to) {
  int thread = thread_of_step(), row = thread % LANES / 4;
  bool inside = row < rows && (HAVE_MOST_STEPS<K> || step < Rounds(K).count(thread / LANES));
#pragma unroll
  for (int v = 0; v < VECTORS; ++v) {
    int column = column_of<K>(step, v);
    to.vectors[v] = inside ? x(row * K + column) : uint4{0, 0, 0, 0};
  }
}

// Reads eight values at a time from memory.
struct Vectors {
  const T* values;

  __device__ uint4 operator()(int at) const {
    return *reinterpret_cast<const uint4*>(values + at);
  }
};

// A lane's columns of a norm's weight [K], loaded early.
template <int K>
struct NormWeight {
  uint4 vectors[MOST_STEPS<K>][VECTORS];

  __device__ explicit NormWeight(const T* weight) {
#pragma unroll
    for (int step = 0; step < MOST_STEPS<K>; ++step) {
#pragma unroll
      for (int v = 0; v < VECTORS; ++v) {
        int column = min(column_of<K>(step, v), K - 8);
        vectors[step][v] = *reinterpret_cast<const uint4*>(weight + column);
      }
    }
  }
};

// Keeps the compiler from holding what it has computed from v.
__device__ inline void forget(uint4& v) {
  asm volatile("" : "+r"(v.x), "+r"(v.y), "+r"(v.z), "+r"(v.w));
}

// RMS norm of the rows of inputs that the lanes of a thread block hold.
template <int K>
__device__ inline void normalise(StepInputs* x, const NormWeight<K>& weight) {
  __shared__ float squares[WARPS][ROWS];
  int thread = thread_of_step(), lane = thread % LANES, warp = thread / LANES;
  float sum = 0;
#pragma unroll
  for (int step = 0; step < MOST_STEPS<K>; ++step) {
#pragma unroll
    for (int v = 0; v < VECTORS; ++v) {
      float values[8];
      unpack<T>(x[step].vectors[v], values);
#pragma unroll
      for (float value : values) sum += value * value;
    }
  }
  sum += __shfl_xor_sync(ALL_LANES, sum, 1);
  sum += __shfl_xor_sync(ALL_LANES, sum, 2);
  if (lane % 4 == 0) squares[warp][lane / 4] = sum;
  __syncthreads();
  float total = 0;
#pragma unroll
  for (int w = 0; w < WARPS; ++w) total += squares[w][lane / 4];
  float scale = rsqrtf(total / K + config::EPS);
#pragma unroll
  for (int step = 0; step < MOST_STEPS<K>; ++step) {
#pragma unroll
    for (int v = 0; v < VECTORS; ++v) {
      float factors[8], values[8];
      unpack<T>(weight.vectors[step][v], factors);
      forget(x[step].vectors[v]);
      unpack<T>(x[step].vectors[v], values);
#pragma unroll
      for (int i = 0; i < 8; ++i) values[i] *= scale * factors[i];
      x[step].vectors[v] = pack_eight<T>(values);
    }
  }
}

}  // namespace moxin
