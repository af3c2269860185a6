// Rotary position embeddings of halves: dimension i of a head is turned with dimension i + HALF.

#pragma once

namespace moxin {

// Cosine and sine of dimension `dim` of the first half; by itself, as sincosf is long.
template <int HALF>
__device__ __noinline__ float2 rotation(int position, int dim, float log2_theta) {
  float2 r;
  sincosf(position * exp2f(-log2_theta * dim / HALF), &r.y, &r.x);
  return r;
}

}  // namespace moxin
