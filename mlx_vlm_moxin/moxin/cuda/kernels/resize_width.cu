// The horizontal pass of Pillow's resize, [rows, width] to [rows, SIZE] pixels of four bytes (red,
// green, blue and an unused one); a thread block per row.
//
// Cost: 4 * rows * width bytes from the host's memory, for 640 x 480 pixels 1.2 MB.
//
// Constants that resize_kernels.py defines in namespace config: SIZE, MAX_WIDTH, THREADS.

#include "resize.cuh"

extern "C" __global__ void __launch_bounds__(config::THREADS) resize_width(
    const int* table, unsigned int* resized, int low, int high, int width) {
  using namespace moxin;
  using config::SIZE, config::MAX_WIDTH, config::THREADS;
  __shared__ unsigned int row[MAX_WIDTH];
  const unsigned int* source = host_memory<const unsigned int>(low, high) +
                               static_cast<long long>(blockIdx.x) * width;
  for (int x = threadIdx.x; x < width; x += THREADS) row[x] = source[x];
  __syncthreads();
  for (int x = threadIdx.x; x < SIZE; x += THREADS) {
    unsigned int bytes[CHANNELS];
    weighted_bytes<SIZE>(table, x, row, 1, bytes);
    resized[blockIdx.x * SIZE + x] = bytes[0] | bytes[1] << 8 | bytes[2] << 16;
  }
}
