// The products of two rows of packed weights in shared memory with staged inputs.
//
// The tensor cores multiply the integers themselves. A lane has 16 consecutive weights of both rows and
// the same 16 inputs. Of the products m16n8k16 of rows g (of a) and columns g (of b), which four lanes
// have, the diagonal is the sum over a group of 64 weights, which share a scale.
//
// An integer below 256, as the bits of a bfloat16, is that number in units of 2^-133. Inputs are
// multiplied by 2^64, so that sums are in the middle of float's range.

#pragma once

#include "matvec.cuh"
#include "tensor_cores.cuh"

namespace moxin {

constexpr float INTEGER_UNIT = 0x1p69f;  // of sums of products

// How rows of K packed weights are multiplied: a lane has a unit of 16, a warp a chunk of 32 units.
template <int BITS, int K>
struct PackedLayout {
  static constexpr int PLANES = 2;
  static constexpr int UNITS = K / 16;
  static constexpr int CHUNKS = (UNITS + LANES - 1) / LANES;

  // Eight inputs in the order of next_integers, by whose units they are divided.
  static __device__ uint4 arranged(const uint4& v) {
    // 2^64; of 4 bits, every other integer is 16 times as large.
    constexpr unsigned int POWERS = BITS == 4 ? 0x5d805f80u : 0x5f805f80u;
    unsigned int a = multiply_pair(v.x, POWERS), b = multiply_pair(v.y, POWERS);
    unsigned int c = multiply_pair(v.z, POWERS), d = multiply_pair(v.w, POWERS);
    if constexpr (BITS == 8) return {a, b, c, d};
    return {__byte_perm(a, c, 0x5410), __byte_perm(a, c, 0x7632), __byte_perm(b, d, 0x5410),
            __byte_perm(b, d, 0x7632)};
  }
};

// A piece of two rows: their weights, their scales and their biases.
template <int BITS>
struct PackedPiece {
  static constexpr int CHUNKS = 4;
  static constexpr int CHUNK = 16 * LANES;  // weights of a row
  static constexpr int CHUNK_GROUPS = CHUNK / 64;
  static constexpr int ROW_BYTES = CHUNKS * CHUNK * BITS / 8;
  static constexpr int SCALE_BYTES = CHUNKS * CHUNK_GROUPS * 2;  // of a row
  static constexpr int BYTES = 2 * ROW_BYTES + 4 * SCALE_BYTES;
};

// A lane's part of the results of two rows.
struct PackedSums {
  // Of products, in units of INTEGER_UNIT: in lane 4 g + j of rows g and g + 8 and of columns 2 j and
  // 2 j + 1.
  float products[4];
  float biases[2];

  __device__ float total(int r, int lane) const {
    float sum = lane / 4 % 2 ? products[2 * r + 1] : products[2 * r];
    return warp_sum((lane % 4 == lane / 8 ? sum * INTEGER_UNIT : 0) + biases[r]);
  }
};

// Adds the products of a piece that begins at chunk `first` of the rows.
template <typename T, int BITS, typename L>
__device__ void multiply_piece(
    const StagedInput<L>& input, const unsigned char* piece, int first, int lane, PackedSums& sums) {
  using Piece = PackedPiece<BITS>;
  constexpr int ROW_BYTES = Piece::ROW_BYTES, CHUNK_GROUPS = Piece::CHUNK_GROUPS;
  constexpr bool IS_EVEN = L::UNITS % (Piece::CHUNKS * LANES) == 0;
  const unsigned char* weights = piece + lane * 2 * BITS;
  const T* scales = reinterpret_cast<const T*>(piece + 2 * ROW_BYTES) + lane / 4;
  const uint4* inputs = input.vectors + first * LANES + lane;
  // With more chunks at once, 8 bits need more registers than there are.
  constexpr int AT_ONCE = BITS == 8 ? 2 : Piece::CHUNKS;
#pragma unroll AT_ONCE
  for (int c = 0; c < Piece::CHUNKS; ++c) {
    bool inside = IS_EVEN || (first + c) * LANES + lane < L::UNITS;
    // K is a multiple of 256, so there are 16 units.
    const uint4* x = inside ? inputs + c * LANES : input.vectors + lane % 16;
    float products[4] = {};
    uint4 row[2];
    float scale[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const unsigned char* from = weights + r * ROW_BYTES + c * LANES * 2 * BITS;
      if constexpr (BITS == 8) {
        row[r] = *reinterpret_cast<const uint4*>(from);
      } else {
        uint2 half = *reinterpret_cast<const uint2*>(from);
        row[r] = uint4{half.x, half.y, 0, 0};
      }
      scale[r] = to_float(scales[(r * Piece::CHUNKS + c) * CHUNK_GROUPS]);
      if (!inside) scale[r] = 0;
    }
#pragma unroll
    for (int plane = 0; plane < 2; ++plane) {
      unsigned int upper[4], lower[4];
      next_integers<BITS>(row[0], upper);
      next_integers<BITS>(row[1], lower);
      const uint4& v = x[plane * L::UNITS];
      const unsigned int b[4] = {v.x, v.y, v.z, v.w};
      const unsigned int even[4] = {upper[0], lower[0], upper[1], lower[1]};
      const unsigned int odd[4] = {upper[2], lower[2], upper[3], lower[3]};
      multiply_add<T>(products, even, b);
      multiply_add<T>(products, odd, b + 2);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) sums.products[i] += scale[i / 2] * products[i];
  }
  // The four lanes of a group have the biases of different chunks.
  int chunk = lane % 4, group = (first + chunk) * CHUNK_GROUPS + lane / 4;
  bool inside = IS_EVEN || group < L::UNITS / 4;
  float4 parts = reinterpret_cast<const float4*>(input.sums)[inside ? group : 0];
  float sum = (parts.x + parts.y) + (parts.z + parts.w);
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float bias = to_float(scales[((2 + r) * Piece::CHUNKS + chunk) * CHUNK_GROUPS]);
    sums.biases[r] += inside ? bias * sum : 0;
  }
}

}  // namespace moxin
