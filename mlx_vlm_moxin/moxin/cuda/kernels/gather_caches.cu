// Copies the key-value caches of all layers, and new tokens after them, into one larger array.
//
// Cost: reads the filled positions and writes the whole array: 147 KB per position of Moxin's 36
// layers. It runs for further prompts and whenever the caches are full (every 256 tokens).
//
// Constants that kv_cache.py defines in namespace config: T, HEAD_DIM, COUNT (arrays), THREADS.

#include "dtypes.cuh"

namespace moxin {

// Cached keys or values [rows, cached_capacity, HEAD_DIM] and the new ones [rows, tokens, HEAD_DIM],
// null if there are none.
struct Source {
  const config::T* cached;
  const config::T* added;
};

}  // namespace moxin

// SOURCE_PARAMETERS declares the arrays, first all cached ones, then all new ones, and
// FILL_SOURCES(sources) stores them in a table of moxin::Source. `rows` is batch size times
// key-value heads. Positions after the new tokens are zeros.
extern "C" __global__ void __launch_bounds__(config::THREADS, 1) gather_caches(
    const int* filled,  // filled[0]: positions of the cached arrays that are used
    SOURCE_PARAMETERS,
    config::T* out,     // [COUNT, rows, capacity, HEAD_DIM]
    int rows, int cached_capacity, int tokens, int capacity) {
  constexpr int VECTORS = config::HEAD_DIM / 8;
  __shared__ moxin::Source sources[config::COUNT];
  FILL_SOURCES(sources)
  __syncthreads();
  // The thread blocks of a row share a source.
  const moxin::Source source = sources[blockIdx.x % config::COUNT];
  const uint4* cached = reinterpret_cast<const uint4*>(source.cached);
  const uint4* added = reinterpret_cast<const uint4*>(source.added);
  int units = rows * capacity * VECTORS, length = *filled;
  uint4* to = reinterpret_cast<uint4*>(out)
      + static_cast<long long>(blockIdx.x % config::COUNT) * units;
  int stride = gridDim.x / config::COUNT * blockDim.x;
  for (int i = blockIdx.x / config::COUNT * blockDim.x + threadIdx.x; i < units; i += stride) {
    int vector = i % VECTORS, position = i / VECTORS % capacity, row = i / VECTORS / capacity;
    uint4 value = {0, 0, 0, 0};
    if (position < length) {
      value = cached[(row * cached_capacity + position) * VECTORS + vector];
    } else if (position < length + tokens) {
      value = added[(row * tokens + position - length) * VECTORS + vector];
    }
    to[i] = value;
  }
}
