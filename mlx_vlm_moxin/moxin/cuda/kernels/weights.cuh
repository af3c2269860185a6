// The decoder's weight matrices: plain (BITS 16) or quantised by mx.quantize in its affine mode
// (BITS 8 or 4; GROUP weights share a scale and a bias).

#pragma once

#include "dtypes.cuh"

namespace moxin {

template <int BITS_, int GROUP_>
struct Format {
  static constexpr int BITS = BITS_, GROUP = GROUP_;
};

// [rows, K], row-major. scales and biases are unused if BITS is 16.
template <typename T>
struct Matrix {
  const void* weight;
  const T* scales;
  const T* biases;
};

// Byte k of a word, as a float. As the low mantissa bits of 2^23 it reads as 2^23 + byte.
__device__ inline float byte_value(unsigned int word, int k) {
  unsigned int bits = __byte_perm(word, 0x4b000000u, 0x7440u | k);
  return __uint_as_float(bits) - 8388608.0f;
}

constexpr float NIBBLE_RAISE = 128;

// Nibble k of a word plus NIBBLE_RAISE: placed in the upper mantissa bits of 128.
__device__ inline float raised_nibble(unsigned int word, int k) {
  unsigned int nibbles = (k % 2 ? word >> 4 : word) & 0x0f0f0f0fu;
  return __uint_as_float(__byte_perm(nibbles, 0x43000000u, 0x7044u | (k / 2) << 8));
}

// Byte k of a word in units of BYTE_UNIT, plus BYTE_RAISE: placed in the middle mantissa bits of 128.
constexpr float BYTE_RAISE = 128, BYTE_UNIT = 1.0f / 256;

__device__ inline float raised_byte(unsigned int word, int k) {
  return __uint_as_float(__byte_perm(word, 0x43000000u, 0x7404u | (k % 4) << 4));
}

// Nibbles 2 i and 2 i + 1 of a word, in the low bits of two halves; `shifted` is the word >> 4.
__device__ inline unsigned int nibble_pair(unsigned int word, unsigned int shifted, int i) {
  return __byte_perm(word, shifted, i | i << 4 | (i + 4) << 8 | (i + 4) << 12) & 0x000f000fu;
}

// Two nibbles times scale plus bias (twice each), rounded once. As the low mantissa bits of 128, or of
// 1024 in float16, a nibble is that number plus its value, from which subtracting it is exact.
template <typename T>
__device__ inline unsigned int dequantised(
    unsigned int nibbles, unsigned int scale, unsigned int bias);

template <>
__device__ inline unsigned int dequantised<bfloat16>(
    unsigned int nibbles, unsigned int scale, unsigned int bias) {
  unsigned int values, weights;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;"
      : "=r"(values)
      : "r"(nibbles | 0x43004300u), "r"(0x3f803f80u), "r"(0xc300c300u));  // 128; 1; -128
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(weights) : "r"(values), "r"(scale), "r"(bias));
  return weights;
}

template <>
__device__ inline unsigned int dequantised<float16>(
    unsigned int nibbles, unsigned int scale, unsigned int bias) {
  unsigned int values, weights;
  asm("fma.rn.f16x2 %0, %1, %2, %3;"
      : "=r"(values)
      : "r"(nibbles | 0x64006400u), "r"(0x3c003c00u), "r"(0xe400e400u));  // 1024; 1; -1024
  asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(weights) : "r"(values), "r"(scale), "r"(bias));
  return weights;
}

// The next eight integers of a 16-byte unit, two per word, and shifts the unit on. As the low mantissa
// bits of a float16 that is not normalised, an integer is that number in units of 2^-24. Of 4 bits,
// words hold integers i and i + 4, and those of words 1 and 3 are 16 times as large.
template <int BITS>
__device__ inline void next_integers(uint4& unit, unsigned int* words) {
  if constexpr (BITS == 4) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      words[i] = (i < 2 ? unit.x : unit.x >> 8) & (i % 2 ? 0x00f000f0u : 0x000f000fu);
    }
    unit = uint4{unit.y, unit.z, unit.w, 0};
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      words[i] = __byte_perm(i < 2 ? unit.x : unit.y, 0, i % 2 ? 0x4342 : 0x4140);
    }
    unit = uint4{unit.z, unit.w, 0, 0};
  }
}

// Converts the next eight weights of a 16-byte unit to T, two per word, and shifts the unit on.
// scale and bias are theirs, if they are quantised.
template <typename T, int BITS>
__device__ inline void next_eight(uint4& unit, T scale, T bias, unsigned int* words) {
  if constexpr (BITS == 16) {
    words[0] = unit.x;
    words[1] = unit.y;
    words[2] = unit.z;
    words[3] = unit.w;
  } else if constexpr (BITS == 4) {
    unsigned int scales = scale.bits | scale.bits << 16, biases = bias.bits | bias.bits << 16;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      words[i] = dequantised<T>(nibble_pair(unit.x, unit.x >> 4, i), scales, biases);
    }
    unit = uint4{unit.y, unit.z, unit.w, 0};
  } else {
    float unit_scale = to_float(scale), raised_bias = to_float(bias), values[8];
    raised_bias -= BYTE_RAISE / BYTE_UNIT * unit_scale;
    unit_scale /= BYTE_UNIT;
#pragma unroll
    for (int k = 0; k < 8; ++k) {
      values[k] = raised_byte(k < 4 ? unit.x : unit.y, k % 4) * unit_scale + raised_bias;
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) words[i] = pack<T>(values[2 * i], values[2 * i + 1]);
    unit = uint4{unit.z, unit.w, 0, 0};
  }
}

// Streaming loads of weights. Volatile keeps them before barriers, so that the first weights of a
// step are in flight while its input is being prepared.
__device__ inline uint4 load_once(const void* address) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(address));
  return v;
}

template <typename T>
__device__ inline T load_scale(const T* address) {
  T v;
  asm volatile("ld.global.nc.u16 %0, [%1];" : "=h"(v.bits) : "l"(address));
  return v;
}

// A coherent load of a value that another thread block has written. The compiler cannot move it to
// a later place.
template <typename T>
__device__ inline T load_early(const T* address) {
  T v;
  asm volatile("ld.global.u16 %0, [%1];" : "=h"(v.bits) : "l"(address));
  return v;
}

}  // namespace moxin
