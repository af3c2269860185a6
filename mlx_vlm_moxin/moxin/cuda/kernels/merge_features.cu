// Embeddings of tokens, [tokens, WIDTH], some replaced by rows of image features; a thread block per
// token.
//
// Cost: 2 * tokens * WIDTH values read and written.
//
// Constants that embeddings.py defines in namespace config: T, WIDTH (a multiple of 8), THREADS.

#include "dtypes.cuh"

extern "C" __global__ void __launch_bounds__(config::THREADS, 1) merge_features(
    const config::T* embeddings, const config::T* features,  // [any number, WIDTH]
    const int* places,                                       // row of features; negative: none
    config::T* out, int tokens) {
  constexpr int UNITS = config::WIDTH / 8;  // of 16 bytes
  int place = places[blockIdx.x];
  long long row = place < 0 ? blockIdx.x : place;
  const uint4* from = reinterpret_cast<const uint4*>(place < 0 ? embeddings : features) + row * UNITS;
  uint4* to = reinterpret_cast<uint4*>(out) + blockIdx.x * 1LL * UNITS;
  for (int i = threadIdx.x; i < UNITS; i += config::THREADS) to[i] = from[i];
}
