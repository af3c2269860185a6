// A kernel's scratch arrays, one after the other in one output (kernel.scratch). MLX copies its list of
// inputs once for each output of a kernel, and the kernels of many layers have hundreds of inputs.

#pragma once

namespace moxin {

struct ScratchMemory {
  static constexpr int ALIGNMENT = 256;  // as in kernel.py
  unsigned char* free;

  __device__ explicit ScratchMemory(unsigned int* memory)
      : free(reinterpret_cast<unsigned char*>(memory)) {}

  // The next array, of `count` values.
  template <typename V>
  __device__ V* take(long long count) {
    V* taken = reinterpret_cast<V*>(free);
    free += (count * static_cast<int>(sizeof(V)) + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    return taken;
  }
};

}  // namespace moxin
