// The products of a layer: their widths, and which rows of weights are multiplied together.
//
// Constants in namespace config: see fused_step.cu.

#pragma once

#include "decoder_layer.cuh"
#include "matvec.cuh"

namespace moxin {

using config::T;
constexpr int ATTENDED = config::HEADS * config::HEAD_DIM;
constexpr int HALF = config::HEAD_DIM / 2;

// Products of a layer, in their order.
enum Product { QKV, OUTPUT, GATE_UP, DOWN, PRODUCTS };

template <int PRODUCT>
struct FormatOf {
  using Type = config::QKV;
};
template <>
struct FormatOf<OUTPUT> {
  using Type = config::OUTPUT;
};
template <>
struct FormatOf<GATE_UP> {
  using Type = config::GATE_UP;
};
template <>
struct FormatOf<DOWN> {
  using Type = config::DOWN;
};

template <int PRODUCT>
constexpr int WIDTH = PRODUCT == OUTPUT ? ATTENDED
    : PRODUCT == DOWN                   ? config::INTERMEDIATE
                                        : config::HIDDEN;

// Sets of rows that a warp multiplies together. Those of QKV are two rows of a head that are rotated
// together, those of GATE_UP one of each matrix, and others ROWS consecutive ones.
template <int PRODUCT, int ROWS>
constexpr int SETS = PRODUCT == QKV ? (config::HEADS + 2 * config::KV_HEADS) * HALF
    : PRODUCT == GATE_UP            ? config::INTERMEDIATE
                                    : config::HIDDEN / ROWS;

// What a set of QKV belongs to: its first row, and HALF rows later its second one.
struct HeadRow {
  bool is_query, is_key;
  int row;

  __device__ explicit HeadRow(int set) {
    int head = set / HALF;
    is_query = head < config::HEADS;
    is_key = !is_query && head < config::HEADS + config::KV_HEADS;
    if (!is_query) head -= is_key ? config::HEADS : config::HEADS + config::KV_HEADS;
    row = head * config::HEAD_DIM + set % HALF;
  }
};

struct Row {
  const Matrix<T>* matrix;
  int index;
};

// Row r of a set.
template <int PRODUCT, int ROWS>
__device__ Row row_of(const Layer<T>& layer, int set, int r) {
  if constexpr (PRODUCT == QKV) {
    HeadRow at(set);
    const Matrix<T>& matrix = at.is_query ? layer.q_proj
        : at.is_key                       ? layer.k_proj
                                          : layer.v_proj;
    return {&matrix, at.row + r * HALF};
  } else if constexpr (PRODUCT == GATE_UP) {
    return {r ? &layer.up_proj : &layer.gate_proj, set};
  } else {
    return {PRODUCT == OUTPUT ? &layer.o_proj : &layer.down_proj, set * ROWS + r};
  }
}

}  // namespace moxin
