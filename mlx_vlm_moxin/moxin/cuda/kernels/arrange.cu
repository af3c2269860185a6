// x [rows, width] in the order of Hopper's products (arranged.cuh); a thread moves eight values.
//
// Cost: reads and writes x, 2.4 MB each for 288 rows of 4,096.
//
// Constants that prompt_matmul.py defines in namespace config: T, BITS, TOKENS, THREADS.

#include "arranged.cuh"

extern "C" __global__ void __launch_bounds__(config::THREADS) arrange(
    const config::T* x,
    config::T* out,  // [tiles, width / 64, TOKENS, 64]; rows after the last one are not written
    int rows, int width) {
  int unit = blockIdx.x * config::THREADS + threadIdx.x, row = unit / (width / 8);
  if (row >= rows) return;
  uint4 values = reinterpret_cast<const uint4*>(x)[unit];
  using Order = moxin::Order<config::BITS, config::TOKENS>;
  moxin::store_eight<Order>(out, row, unit % (width / 8) * 8, width, values);
}
