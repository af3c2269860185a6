// silu(gate) * up, [rows, WIDTH]; a thread computes eight values.
//
// Cost: 3 * rows * WIDTH values read and written.
//
// Constants that activations.py defines in namespace config: T, WIDTH (a multiple of 8), STRIDE and
// SHIFT (values from one row of gate or up to the next, and from the pointer `up` to its first row:
// both may be parts of one product), THREADS.

#include "dtypes.cuh"

extern "C" __global__ void __launch_bounds__(config::THREADS, 1) swiglu(
    const config::T* gate, const config::T* up, config::T* out, int rows) {
  constexpr int UNITS = config::WIDTH / 8;
  int unit = blockIdx.x * config::THREADS + threadIdx.x, row = unit / UNITS;
  if (row >= rows) return;
  long long at = row * 1LL * config::STRIDE + unit % UNITS * 8;
  float gates[8], ups[8];
  moxin::unpack<config::T>(*reinterpret_cast<const uint4*>(gate + at), gates);
  moxin::unpack<config::T>(*reinterpret_cast<const uint4*>(up + config::SHIFT + at), ups);
#pragma unroll
  for (int i = 0; i < 8; ++i) gates[i] = gates[i] / (1 + __expf(-gates[i])) * ups[i];
  reinterpret_cast<uint4*>(out)[unit] = moxin::pack_eight<config::T>(gates);
}
