// The key-value caches of all layers, in one array.

#include "types.cu"

namespace moxin {

// What a cache holds, [heads, cached_capacity, HEAD_DIM], and what it is to hold behind that,
// [heads, tokens, HEAD_DIM]; null if there is nothing.
template <typename T>
struct Entry {
  const T* cached;
  const T* added;
};

// out [COUNT, heads, capacity, HEAD_DIM]: of each entry the first *filled cached positions, those
// that are added, and zeros. fill(entries) puts the entries into shared memory. A row of blocks
// shares an entry.
template <typename T, int COUNT, int HEAD_DIM, typename F>
__device__ void stack(
    F fill, const int* filled, int heads, int cached_capacity, int tokens, int capacity, T* out) {
  constexpr int VECTORS = HEAD_DIM / 8;
  __shared__ Entry<T> entries[COUNT];
  fill(entries);
  __syncthreads();
  const Entry<T> own = entries[blockIdx.x % COUNT];
  const uint4* cached = reinterpret_cast<const uint4*>(own.cached);
  const uint4* added = reinterpret_cast<const uint4*>(own.added);
  int units = heads * capacity * VECTORS, length = *filled;
  uint4* to = reinterpret_cast<uint4*>(out) + static_cast<long long>(blockIdx.x % COUNT) * units;
  int apart = gridDim.x / COUNT * blockDim.x;
  for (int i = blockIdx.x / COUNT * blockDim.x + threadIdx.x; i < units; i += apart) {
    int vector = i % VECTORS, position = i / VECTORS % capacity, head = i / VECTORS / capacity;
    uint4 value = {0, 0, 0, 0};
    if (position < length) {
      value = cached[(head * cached_capacity + position) * VECTORS + vector];
    } else if (position < length + tokens) {
      value = added[(head * tokens + position - length) * VECTORS + vector];
    }
    to[i] = value;
  }
}

}  // namespace moxin
