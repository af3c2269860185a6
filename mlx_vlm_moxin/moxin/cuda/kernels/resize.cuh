// Pillow's resize of bytes: integer weights with BITS fractional bits, a byte after each pass.
//
// A table (resize_table.py) is int32 [2 + taps, SIZE]: for each output pixel the first source pixel,
// the number of source pixels, and their weights.

#pragma once

namespace moxin {

constexpr int BITS = 22;
constexpr int CHANNELS = 3;

// Memory of the host that the GPU can read and write, from the two halves of its address.
template <typename T>
__device__ inline T* host_memory(int low, int high) {
  return reinterpret_cast<T*>(static_cast<unsigned long long>(static_cast<unsigned int>(high)) << 32 |
                              static_cast<unsigned int>(low));
}

__device__ inline unsigned int round_to_byte(int sum) { return min(max(sum >> BITS, 0), 255); }

// Output pixel `at` of the table: its source pixels, of four bytes each, are `stride` apart.
template <int SIZE>
__device__ inline void weighted_bytes(
    const int* table, int at, const unsigned int* source, int stride, unsigned int* bytes) {
  int sums[CHANNELS] = {1 << (BITS - 1), 1 << (BITS - 1), 1 << (BITS - 1)};
  const int count = table[SIZE + at], *weights = table + 2 * SIZE + at;
  source += static_cast<long long>(table[at]) * stride;
  for (int tap = 0; tap < count; ++tap) {
    int weight = weights[tap * SIZE];
    unsigned int pixel = source[static_cast<long long>(tap) * stride];
#pragma unroll
    for (int channel = 0; channel < CHANNELS; ++channel) {
      sums[channel] += static_cast<int>(pixel >> (8 * channel) & 255) * weight;
    }
  }
#pragma unroll
  for (int channel = 0; channel < CHANNELS; ++channel) bytes[channel] = round_to_byte(sums[channel]);
}

}  // namespace moxin
