// The order in which Hopper's products of prompts read x: [tiles, WIDTH / 64, TOKENS, 64], tiles of
// TOKENS rows, of which each piece of 64 columns is contiguous and copied into shared memory as it is.
//
// A lane reads 16 bytes of a row of weights at once, that is COUNT = 128 / BITS values, but a k16 step
// of the tensor cores needs 4 of a lane: COUNT / 4 steps use what four lanes have read, 4 * COUNT
// columns. So x has those columns in the order of the steps. Pairs stay together. For plain weights (BITS
// 16), which lanes load from shared memory, columns keep their order. Within 64 columns, chunk c of 8
// values of row r is at c ^ r % 8, as the tensor cores expect it (wgmma.cuh).

#pragma once

#include "dtypes.cuh"

namespace moxin {

// BITS: of the weights that x is multiplied by; 0 for x [rows, WIDTH] as it is.
template <int BITS_, int TOKENS_>
struct Order {
  static constexpr int BITS = BITS_, TOKENS = TOKENS_;
  static constexpr bool HAS_STEPS = BITS == 8 || BITS == 4;  // columns are in the order of the steps
};

using RowMajor = Order<0, 1>;

// Column of position `at` of a row.
template <int BITS>
__device__ inline int arranged_column(int at) {
  if constexpr (BITS == 16) return at;
  constexpr int COUNT = 128 / BITS;
  return at / (4 * COUNT) * (4 * COUNT) + at % 8 / 2 * COUNT + at / 16 % (COUNT / 4) * 4
      + at % 16 / 8 * 2 + at % 2;
}

// Position of the pair of columns at `column`, an even number: the inverse.
template <int BITS>
__device__ inline int arranged_position(int column) {
  if constexpr (BITS == 16) return column;
  constexpr int COUNT = 128 / BITS;
  return column / (4 * COUNT) * (4 * COUNT) + column % COUNT / 4 * 16 + column % 4 / 2 * 8
      + column % (4 * COUNT) / COUNT * 2;
}

// Index in x of position `at` of a row.
template <int TOKENS>
__device__ inline long long arranged_index(int row, int at, int width) {
  int tile = row / TOKENS, local = row % TOKENS;
  long long piece = static_cast<long long>(tile) * (width / 64) + at / 64;
  return (piece * TOKENS + local) * 64 + (at % 64 / 8 ^ local % 8) * 8 + at % 8;
}

// Stores the pair of values at `column`, an even number.
template <typename Order>
__device__ inline void store_pair(void* x, int row, int column, int width, unsigned int pair) {
  long long at = static_cast<long long>(row) * width + column;
  if constexpr (Order::BITS > 0) {
    at = arranged_index<Order::TOKENS>(row, arranged_position<Order::BITS>(column), width);
  }
  static_cast<unsigned int*>(x)[at / 2] = pair;
}

// Stores the chunk of eight values at position `at` (a multiple of 8) of a row.
template <typename Order>
__device__ inline void store_chunk(
    void* x, unsigned int row, unsigned int at, unsigned int width, const unsigned int (&words)[4]) {
  uint4* chunks = static_cast<uint4*>(x);
  if constexpr (Order::BITS == 0) {
    chunks += row * (width / 8) + at / 8;
  } else {
    unsigned int tile = row / Order::TOKENS, local = row % Order::TOKENS;
    unsigned int piece = tile * (width / 64) + at / 64;
    chunks += (piece * Order::TOKENS + local) * 8 + (at / 8 ^ local) % 8;
  }
  *chunks = {words[0], words[1], words[2], words[3]};
}

// Word i of lane j of the four lanes that are STRIDE apart becomes word j of lane i.
template <int STRIDE>
__device__ inline void transpose_words(unsigned int (&words)[4]) {
#pragma unroll
  for (int step = 1; step <= 2; ++step) {
    bool is_upper = threadIdx.x / (STRIDE * step) % 2;
#pragma unroll
    for (int pair = 0; pair < 2; ++pair) {
      unsigned int &low = words[pair * (3 - step)], &high = words[pair * (3 - step) + step];
      unsigned int received = __shfl_xor_sync(ALL_LANES, is_upper ? low : high, STRIDE * step);
      (is_upper ? low : high) = received;
    }
  }
}

// Stores eight consecutive values of a row, at `column` (a multiple of 8). A warp's lanes have
// consecutive columns of one row.
template <typename Order>
__device__ inline void store_eight(void* x, int row, int column, int width, const uint4& values) {
  unsigned int words[4] = {values.x, values.y, values.z, values.w};
  int at = column;
  if constexpr (Order::HAS_STEPS) {
    // STRIDE lanes have as many columns as a lane reads weights at once.
    constexpr int STRIDE = 16 / Order::BITS;
    transpose_words<STRIDE>(words);
    int eight = column / 8, first = eight / (4 * STRIDE) * (4 * STRIDE);
    at = (first + eight % STRIDE * 4 + eight / STRIDE % 4) * 8;
  }
  store_chunk<Order>(x, row, at, width, words);
}

}  // namespace moxin
