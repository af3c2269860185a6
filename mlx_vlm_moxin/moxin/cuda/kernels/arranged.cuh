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

// Stores eight consecutive values of a row, at `column` (a multiple of 8).
template <typename Order>
__device__ inline void store_eight(void* x, int row, int column, int width, const uint4& values) {
  if constexpr (Order::BITS == 0) {
    static_cast<uint4*>(x)[(static_cast<long long>(row) * width + column) / 8] = values;
  } else if constexpr (Order::BITS == 16) {
    static_cast<uint4*>(x)[arranged_index<Order::TOKENS>(row, column, width) / 8] = values;
  } else {
    const unsigned int pairs[4] = {values.x, values.y, values.z, values.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) store_pair<Order>(x, row, column + 2 * i, width, pairs[i]);
  }
}

}  // namespace moxin
