// Products of up to 64 rows on Hopper: x [rows, K] times the transpose of weights [N, K], as weights
// times the transpose of x.
//
// Each warp streams its 16 rows of the weights through shared memory of its own, STAGES steps ahead,
// without any other synchronisation, and unpacks them in the registers of the product's first operand
// (wgmma.cuh): in each 16 values of K, lane 4 g + j has those at 2 j, 2 j + 1, 2 j + 8 and 2 j + 9.
// Which values of a row are at these places does not matter as long as x uses the same order, so x is
// brought into that order on its way to shared memory: a chunk of CHUNK values of K for all warps,
// while the one before is multiplied. A warp's copies touch as few lines of 128 bytes as possible,
// because the first-level cache passes on one line per clock cycle.

#pragma once

#include "grid.cuh"
#include "tensor_cores.cuh"
#include "weights.cuh"
#include "wgmma.cuh"

namespace moxin {

// Up to three matrices with rows of K values, concatenated.
template <typename T>
struct StreamedMatrices {
  Matrix<T> matrices[3];
  int ends[3];  // ends[i]: total rows of matrices 0 to i
};

// Values of K per chunk of x, and rows of weights per warp.
constexpr int CHUNK = 256, WARP_ROWS = 16;

// Sizes of a product with N (8, 16, 32 or 64) rows of x in thread blocks of WARPS warps. A stage is 128
// bytes of each of a warp's rows.
template <int BITS, int GROUP, int N, int WARPS, int STAGES>
struct StreamSizes {
  static constexpr int PACK = 128 / BITS, PLANES = PACK / 8;
  static constexpr int CHUNK_STAGES = CHUNK * BITS / 1024;
  // x in lines of 16 bytes of each row, moved by four banks from line to line; two chunks.
  static constexpr int X_LINE = N * 16 + 16, X_BYTES = CHUNK / 8 * X_LINE;
  static constexpr int WARP_BYTES = WARP_ROWS * 128, STAGE_BYTES = WARPS * WARP_BYTES;
  // Scales and biases of a warp's rows for a chunk; those of SPAN chunks are copied together, so that a
  // row's are one piece. Two spans.
  static constexpr int SPAN = 4;
  static constexpr int GROUPS = BITS == 16 ? 0 : CHUNK / (BITS == 16 ? 1 : GROUP);
  static constexpr int SCALE_BYTES = 2 * WARP_ROWS * GROUPS * 2;
  static constexpr int STAGES_AT = 2 * X_BYTES;
  static constexpr int SCALES_AT = STAGES_AT + STAGES * STAGE_BYTES;
  static constexpr int BYTES = SCALES_AT + 2 * SPAN * WARPS * SCALE_BYTES;
  static_assert(STAGES <= SPAN * CHUNK_STAGES, "a span is used up before the next but one");
};

// One thread block multiplies part `split` of `splits` parts of K by the rows of weights of its first
// `active` warps, each 16 rows from number `first_tile` on.
//
// Not GATED: `out` is float [splits, rows, columns]. GATED: the matrices are gate_proj and up_proj, a
// warp has eight rows of each, `out` is silu(gate) * up [rows, columns] and splits is 1. K is a
// multiple of CHUNK.
template <typename T, int BITS, int GROUP, int N, int WARPS, int STAGES, bool GATED, typename O>
__device__ void stream_columns(
    const T* x, const StreamedMatrices<T>& matrices, int rows, int K, int split, int splits,
    int first_tile, int active, O* out) {
  using S = StreamSizes<BITS, GROUP, N, WARPS, STAGES>;
  constexpr int THREADS = WARPS * LANES;
  int thread = threadIdx.x, lane = thread % LANES, warp = thread / LANES;
  int all_chunks = K / CHUNK, first_chunk = all_chunks * split / splits;
  int chunks = all_chunks * (split + 1) / splits - first_chunk;
  int columns = GATED ? matrices.ends[0] : matrices.ends[2];
  constexpr int TILE_COLUMNS = GATED ? 8 : 16;
  int first_column = (first_tile + warp) * TILE_COLUMNS;
  bool is_active = warp < active && first_column < columns;

  // Row `index` of the warp's 16: its matrix and its number in that.
  auto find = [&](int index, Matrix<T>& matrix) {
    int column = min(first_column + (GATED ? index % 8 : index), columns - 1);
    int number = GATED ? index / 8 : (column >= matrices.ends[0]) + (column >= matrices.ends[1]);
    matrix = number == 0 ? matrices.matrices[0]
        : number == 1    ? matrices.matrices[1]
                         : matrices.matrices[2];
    int start = GATED || number == 0 ? 0 : number == 1 ? matrices.ends[0] : matrices.ends[1];
    return column - start;
  };
  // Lane l copies 16 bytes, number l % 8 of a stage, of rows l / 8, l / 8 + 4, ...
  const char* weights[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    Matrix<T> matrix;
    long long row = find(lane / 8 + 4 * i, matrix);
    weights[i] = static_cast<const char*>(matrix.weight) + row * K * BITS / 8 +
                 first_chunk * (CHUNK * BITS / 8) + lane % 8 * 16;
  }
  unsigned int base = static_cast<unsigned int>(__cvta_generic_to_shared(shared));
  int stages = chunks * S::CHUNK_STAGES;
  unsigned int warp_at = S::STAGES_AT + warp * S::WARP_BYTES;
  unsigned int scales_at = S::SCALES_AT + warp * (2 * S::SPAN * S::SCALE_BYTES);
  // Both halves of a stage change places in odd rows, for other banks.
  unsigned int lane_to = base + warp_at + lane / 8 * 128 + (lane * 16 % 128 ^ lane / 8 % 2 * 64);
  unsigned int lane_from = warp_at + lane / 4 * 128 + lane % 4 * 16;
  auto copy_scales = [&](int span) {
    if constexpr (BITS < 16) {
      int chunk = span * S::SPAN + lane % S::SPAN;
#pragma unroll 1
      for (int i = lane / S::SPAN; i < 2 * WARP_ROWS; i += LANES / S::SPAN) {
        Matrix<T> matrix;
        long long row = find(i % WARP_ROWS, matrix);
        const T* from = i < WARP_ROWS ? matrix.scales : matrix.biases;
        if (chunk < chunks) {
          copy_few<S::GROUPS * 2>(
              base + scales_at + chunk % (2 * S::SPAN) * S::SCALE_BYTES + i * (S::GROUPS * 2),
              from + row * (K / GROUP) + (first_chunk + chunk) * S::GROUPS);
        }
      }
    }
  };
  auto copy = [&](int stage, int slot) {
    if (is_active && stage < stages) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        copy_once(lane_to + slot * S::STAGE_BYTES + i * 512, weights[i] + stage * 128);
      }
      if (stage % (S::SPAN * S::CHUNK_STAGES) == 0) copy_scales(stage / (S::SPAN * S::CHUNK_STAGES));
    }
    commit_copies();
  };
#pragma unroll 1
  for (int stage = 0; stage < STAGES; ++stage) copy(stage, stage);

  // A task brings a vector of eight values of x into the order of the products: number `part` of the
  // 16-byte units of its row is of plane part % PLANES, and goes to a quarter of four lines.
  constexpr int TASKS = N * CHUNK / 8, ROUNDS = (TASKS + THREADS - 1) / THREADS;
  uint4 vectors[ROUNDS];
  auto load_x = [&](int chunk) {
#pragma unroll
    for (int round = 0; round < ROUNDS; ++round) {
      int task = thread + round * THREADS, row = task / (CHUNK / 8), vector = task % (CHUNK / 8);
      const T* from =
          x + static_cast<long long>(row) * K + (first_chunk + chunk) * CHUNK + vector * 8;
      vectors[round] =
          row < min(N, rows) ? *reinterpret_cast<const uint4*>(from) : uint4{0, 0, 0, 0};
    }
  };
  auto store_x = [&](int chunk) {
#pragma unroll
    for (int round = 0; round < ROUNDS; ++round) {
      int task = thread + round * THREADS, row = task / (CHUNK / 8), vector = task % (CHUNK / 8);
      if (row >= N) continue;
      int part = vector / (4 * S::PLANES) * S::PLANES + vector % S::PLANES;
      unsigned char* to = shared + chunk % 2 * S::X_BYTES + part * 4 * S::X_LINE + row * 16 +
                          vector / S::PLANES % 4 * 4;
      const unsigned int words[4] = {vectors[round].x, vectors[round].y, vectors[round].z,
                                     vectors[round].w};
#pragma unroll
      for (int i = 0; i < 4; ++i) *reinterpret_cast<unsigned int*>(to + i * S::X_LINE) = words[i];
    }
  };
  load_x(0);
  store_x(0);
  if (chunks > 1) load_x(1);
  fence_async();
  __syncthreads();

  float sums[N / 2] = {};
  // Weights of one or two batches of 64 values of K: the next is unpacked while one is multiplied, if
  // there are registers for it.
  constexpr int BUFFERS = N > 32 ? 1 : 2;
  unsigned int a[BUFFERS][4][4];
  int slot = 0;
#pragma unroll 1
  for (int chunk = 0; chunk < chunks; ++chunk) {
    if (chunk + 1 < chunks) store_x(chunk + 1);
    if (chunk + 2 < chunks) load_x(chunk + 2);
    unsigned int x_at = base + chunk % 2 * S::X_BYTES;
    const T* held = reinterpret_cast<const T*>(
        shared + scales_at + chunk % (2 * S::SPAN) * S::SCALE_BYTES);
#pragma unroll
    for (int stage = 0; stage < S::CHUNK_STAGES; ++stage) {
      wait_copies<STAGES - 1>();
      __syncwarp();
      uint4 units[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        unsigned int at = lane_from + slot * S::STAGE_BYTES + i % 2 * 1024;
        units[i] = *reinterpret_cast<const uint4*>(
            shared + at + (i / 2 * 64 ^ lane / 4 % 2 * 64));
      }
      constexpr int BATCHES = 4 / S::CHUNK_STAGES;
#pragma unroll
      for (int b = 0; b < BATCHES; ++b) {
        int batch = stage * BATCHES + b;
        wait_products<BUFFERS - 1>();
#pragma unroll
        for (int p = 0; p < 2; ++p) {
          int plane = b * 2 + p, unit = plane / S::PLANES;
          T factors[4] = {};  // scales of both rows, then biases
          if constexpr (BITS < 16) {
            int group = ((stage * 2 + unit) * 4 * S::PACK + lane % 4 * S::PACK) / GROUP;
#pragma unroll
            for (int i = 0; i < 4; ++i) factors[i] = held[(lane / 4 + i * 8) * S::GROUPS + group];
          }
          unsigned int upper[4], lower[4];
          next_eight<T, BITS>(units[unit * 2], factors[0], factors[2], upper);
          next_eight<T, BITS>(units[unit * 2 + 1], factors[1], factors[3], lower);
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            unsigned int* to = a[batch % BUFFERS][p * 2 + i];
            to[0] = upper[2 * i];
            to[1] = lower[2 * i];
            to[2] = upper[2 * i + 1];
            to[3] = lower[2 * i + 1];
          }
        }
        begin_products();
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          multiply_wide<T>(sums, a[batch % BUFFERS][i],
                           describe_rows(x_at + (batch * 4 + i) * (2 * S::X_LINE), S::X_LINE, 128));
        }
        commit_products();
      }
      __syncwarp();
      copy(chunk * S::CHUNK_STAGES + stage + STAGES, slot);
      slot = slot + 1 == STAGES ? 0 : slot + 1;
    }
    wait_products<0>();
    if (chunk + 1 < chunks) {
      fence_async();
      __syncthreads();
    }
  }

  if (!is_active) return;
#pragma unroll
  for (int i = 0; i < N / 2; i += 4) {
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      int row = i * 2 + lane % 4 * 2 + e;
      if (row >= rows) continue;
      float first = sums[i + e], second = sums[i + 2 + e];
      if constexpr (GATED) {
        int column = first_column + lane / 4;
        if (column < columns) {
          out[static_cast<long long>(row) * columns + column] =
              round_to<T>(first / (1 + __expf(-first)) * second);
        }
      } else {
        O* to = out + (static_cast<long long>(split) * rows + row) * columns;
        int column = first_column + lane / 4;
        if (column < columns) to[column] = first;
        if (column + 8 < columns) to[column + 8] = second;
      }
    }
  }
}

}  // namespace moxin
