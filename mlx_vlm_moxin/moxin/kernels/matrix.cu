// The decoder's matrices: plain (BITS 16) or packed as mx.quantize packs them in its affine mode
// (BITS 8 or 4, GROUP weights share a scale and a bias). T is the model's dtype.

#pragma once

#include "types.cu"

namespace moxin {

template <typename T>
struct Matrix {
  const void* weight;
  const T* scales;
  const T* biases;
};

__device__ inline uint4 load_once(const void* address) {
  uint4 v;
  // Volatile keeps it in front of barriers: the first weights are on their way while the input
  // is being prepared.
  asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(address));
  return v;
}

}  // namespace moxin
