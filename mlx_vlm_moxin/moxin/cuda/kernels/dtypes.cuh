// bfloat16 and float16 without CUDA's headers, which take longer to parse than a kernel to compile.
//
// In all files T is one of the two.

#pragma once

namespace moxin {

constexpr int LANES = 32;  // threads of a warp
constexpr unsigned int ALL_LANES = 0xffffffffu;

struct bfloat16 {
  unsigned short bits;
};

struct float16 {
  unsigned short bits;
};

template <typename T>
__device__ inline float to_float(T x);

template <>
__device__ inline float to_float(bfloat16 x) {
  return __uint_as_float(static_cast<unsigned int>(x.bits) << 16);
}

template <>
__device__ inline float to_float(float16 x) {
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
  return y;
}

// Rounds to nearest even.
template <typename T>
__device__ inline T round_to(float x);

template <>
__device__ inline bfloat16 round_to(float x) {
  bfloat16 y;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
  return y;
}

template <>
__device__ inline float16 round_to(float x) {
  float16 y;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
  return y;
}

// Two values, rounded, in one register; the first in the lower half.
template <typename T>
__device__ inline unsigned int pack(float low, float high);

template <>
__device__ inline unsigned int pack<bfloat16>(float low, float high) {
  unsigned int word;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  return word;
}

template <>
__device__ inline unsigned int pack<float16>(float low, float high) {
  unsigned int word;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  return word;
}

// Eight values of T (16 bytes) as floats.
template <typename T>
__device__ inline void unpack(const uint4& v, float* x) {
  const unsigned int words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    x[2 * i] = to_float(T{static_cast<unsigned short>(words[i] & 0xffffu)});
    x[2 * i + 1] = to_float(T{static_cast<unsigned short>(words[i] >> 16)});
  }
}

template <typename T>
__device__ inline uint4 pack_eight(const float* x) {
  return {pack<T>(x[0], x[1]), pack<T>(x[2], x[3]), pack<T>(x[4], x[5]), pack<T>(x[6], x[7])};
}

// Products of two pairs of bfloat16.
__device__ inline unsigned int multiply_pair(unsigned int a, unsigned int b) {
  unsigned int product;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(product) : "r"(a), "r"(b), "r"(0x80008000u));  // -0
  return product;
}

__device__ inline float warp_sum(float x) {
#pragma unroll
  for (int lanes = LANES / 2; lanes > 0; lanes /= 2) x += __shfl_xor_sync(ALL_LANES, x, lanes);
  return x;
}

// The sum over a thread block, in every thread. A __syncthreads is needed before the next call.
template <int THREADS>
__device__ inline float block_sum(float x) {
  __shared__ float partial[THREADS / LANES];
  x = warp_sum(x);
  if (threadIdx.x % LANES == 0) partial[threadIdx.x / LANES] = x;
  __syncthreads();
  float total = 0;
#pragma unroll
  for (float part : partial) total += part;
  return total;
}

}  // namespace moxin
