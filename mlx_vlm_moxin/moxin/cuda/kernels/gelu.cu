// The exact GELU of each value; a thread computes eight.
//
// Cost: 2 * count values read and written.
//
// Constants that activations.py defines in namespace config: T, THREADS.

#include "dtypes.cuh"

extern "C" __global__ void __launch_bounds__(config::THREADS, 1) gelu(
    const config::T* x, config::T* out, int units) {  // of eight values
  int unit = blockIdx.x * config::THREADS + threadIdx.x;
  if (unit >= units) return;
  float values[8];
  moxin::unpack<config::T>(reinterpret_cast<const uint4*>(x)[unit], values);
#pragma unroll
  for (float& value : values) value *= 0.5f * (1 + erff(value * 0.70710678f));
  reinterpret_cast<uint4*>(out)[unit] = moxin::pack_eight<config::T>(values);
}
