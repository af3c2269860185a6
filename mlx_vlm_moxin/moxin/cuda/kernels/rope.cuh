// Rotary position embedding, not "traditional": dimension i is rotated with dimension i + HALF.

#pragma once

namespace moxin {

// Cosine and sine for dimension `dim` of a head's first half. Not inlined, because sincosf is long.
template <int HALF>
__device__ __noinline__ float2 rotation(int position, int dim, float log2_theta) {
  float2 r;
  sincosf(position * exp2f(-log2_theta * dim / HALF), &r.y, &r.x);
  return r;
}

}  // namespace moxin
