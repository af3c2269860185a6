// The vertical pass of Pillow's resize, [rows, SIZE] to [SIZE, SIZE] pixels, and their
// normalisation; a thread per pixel.
//
// Cost: 4 * PLANES * SIZE * SIZE bytes written, for two towers of 224 pixels 1.2 MB.
//
// Constants that resize_kernels.py defines in namespace config: SIZE, PLANES, THREADS.

#include "resize.cuh"

extern "C" __global__ void __launch_bounds__(config::THREADS) resize_height(
    const unsigned int* rows, const int* table,
    const float* normalized,  // [PLANES, 256], the value of each byte
    float* pixel_values,      // [PLANES, SIZE, SIZE]
    int low, int high) {      // address of the bytes, [CHANNELS, SIZE, SIZE]
  using namespace moxin;
  using config::SIZE, config::PLANES, config::THREADS;
  constexpr int PIXELS = SIZE * SIZE;
  int at = blockIdx.x * THREADS + threadIdx.x;
  if (at >= PIXELS) return;
  unsigned int bytes[CHANNELS];
  weighted_bytes<SIZE>(table, at / SIZE, rows + at % SIZE, SIZE, bytes);
  unsigned char* resized = host_memory<unsigned char>(low, high);
#pragma unroll
  for (int channel = 0; channel < CHANNELS; ++channel) {
    resized[channel * PIXELS + at] = bytes[channel];
  }
#pragma unroll
  for (int plane = 0; plane < PLANES; ++plane) {
    pixel_values[plane * PIXELS + at] = normalized[plane * 256 + bytes[plane % CHANNELS]];
  }
}
