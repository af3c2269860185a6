// Rows of the table of embeddings, [tokens, WIDTH]; a thread block per token.
//
// Cost: 2 * tokens * WIDTH values read and written.
//
// Constants that embeddings.py defines in namespace config: T, Id (int or unsigned int), WIDTH (a
// multiple of 8), THREADS.

#include "dtypes.cuh"

extern "C" __global__ void __launch_bounds__(config::THREADS, 1) embed_tokens(
    const config::Id* ids, const config::T* table,  // [rows, WIDTH]
    config::T* out, int rows) {
  constexpr int UNITS = config::WIDTH / 8;  // of 16 bytes
  unsigned int last = rows - 1, id = ids[blockIdx.x];
  const uint4* from = reinterpret_cast<const uint4*>(table) + (id < last ? id : last) * 1LL * UNITS;
  uint4* to = reinterpret_cast<uint4*>(out) + blockIdx.x * 1LL * UNITS;
  for (int i = threadIdx.x; i < UNITS; i += config::THREADS) to[i] = from[i];
}
