// Products of up to 64 rows on Hopper: x [rows, K] times the transpose of weights [N, K], as weights
// times the transpose of x.
//
// Each lane streams the 16-byte units of its two rows of the weights through shared memory of its
// own, STAGES steps ahead, without any synchronisation, and unpacks them in the registers of the
// product's first operand (wgmma.cuh): in each 16 values of K, lane 4 g + j has those at 2 j,
// 2 j + 1, 2 j + 8 and 2 j + 9. Which values of a row are at these places does not matter as long as
// x uses the same order, so x is brought into that order on its way to shared memory: a chunk of
// CHUNK values of K for all warps, while the one before is multiplied.

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

// Sizes of a product with N (8, 16, 32 or 64) rows of x in thread blocks of WARPS warps. A stage of a
// lane's weights is two units of 16 bytes of each of its rows.
template <int BITS, int GROUP, int N, int WARPS, int STAGES>
struct StreamSizes {
  static constexpr int PACK = 128 / BITS, PLANES = PACK / 8;
  static constexpr int CHUNK_STAGES = CHUNK / (8 * PACK);
  static constexpr int X_BYTES = CHUNK * N * 2;  // twice
  static constexpr int COPY_BYTES = WARPS * LANES * 16, STAGE_BYTES = 4 * COPY_BYTES;
  // Scales and biases of a warp's rows for a chunk, and chunks of which they are held.
  static constexpr int GROUPS = BITS == 16 ? 0 : CHUNK / (BITS == 16 ? 1 : GROUP);
  static constexpr int SCALE_BYTES = 2 * WARP_ROWS * GROUPS * 2;
  static constexpr int SCALE_SLOTS = (STAGES + CHUNK_STAGES - 1) / CHUNK_STAGES + 1;
  static constexpr int STAGES_AT = 2 * X_BYTES;
  static constexpr int SCALES_AT = STAGES_AT + STAGES * STAGE_BYTES;
  static constexpr int BYTES = SCALES_AT + SCALE_SLOTS * WARPS * SCALE_BYTES;
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
  const char* weights[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    Matrix<T> matrix;
    long long row = find(lane / 4 + 8 * half, matrix);
    weights[half] = static_cast<const char*>(matrix.weight) + row * K * BITS / 8 +
                    first_chunk * (CHUNK * BITS / 8) + lane % 4 * 16;
  }
  const T* scales = nullptr;  // of row lane % 16; in the upper half of the lanes its biases
  if constexpr (BITS < 16) {
    Matrix<T> matrix;
    long long row = find(lane % 16, matrix);
    scales = (lane < 16 ? matrix.scales : matrix.biases) + row * (K / GROUP) +
             first_chunk * S::GROUPS;
  }

  unsigned int base = static_cast<unsigned int>(__cvta_generic_to_shared(shared));
  int stages = chunks * S::CHUNK_STAGES;
  unsigned int lane_at = S::STAGES_AT + thread * 16;
  unsigned int scales_at = S::SCALES_AT + warp * S::SCALE_BYTES;
  auto copy = [&](int stage, int slot) {
    if (is_active && stage < stages) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        copy_once(base + lane_at + slot * S::STAGE_BYTES + i * S::COPY_BYTES,
                  weights[i % 2] + stage * 128 + i / 2 * 64);
      }
      if constexpr (BITS < 16) {
        if (stage % S::CHUNK_STAGES == 0) {
          int chunk = stage / S::CHUNK_STAGES;
          copy_few<S::GROUPS * 2>(base + scales_at + chunk % S::SCALE_SLOTS * (WARPS * S::SCALE_BYTES) +
                                      lane * (S::GROUPS * 2),
                                  scales + chunk * S::GROUPS);
        }
      }
    }
    commit_copies();
  };
#pragma unroll 1
  for (int stage = 0; stage < STAGES; ++stage) copy(stage, stage);

  // A task brings 32 values of a row of x, four vectors of 16 bytes, into the order of the products.
  constexpr int TASKS = N * 8, ROUNDS = (TASKS + THREADS - 1) / THREADS;
  uint4 vectors[ROUNDS][4];
  auto load_x = [&](int chunk) {
#pragma unroll
    for (int round = 0; round < ROUNDS; ++round) {
      int task = thread + round * THREADS, row = task % 8 + task / 64 * 8, part = task / 8 % 8;
      const T* from = x + static_cast<long long>(row) * K + (first_chunk + chunk) * CHUNK +
                      part / S::PLANES * 4 * S::PACK + part % S::PLANES * 8;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        vectors[round][j] = task < TASKS && row < rows
            ? *reinterpret_cast<const uint4*>(from + j * S::PACK)
            : uint4{0, 0, 0, 0};
      }
    }
  };
  auto store_x = [&](int chunk) {
#pragma unroll
    for (int round = 0; round < ROUNDS; ++round) {
      int task = thread + round * THREADS, row = task % 8 + task / 64 * 8, part = task / 8 % 8;
      if (task >= TASKS) continue;
      uint4* to = reinterpret_cast<uint4*>(shared + chunk % 2 * S::X_BYTES) + part * 4 * N + row;
      const uint4* v = vectors[round];
      to[0] = uint4{v[0].x, v[1].x, v[2].x, v[3].x};
      to[N] = uint4{v[0].y, v[1].y, v[2].y, v[3].y};
      to[2 * N] = uint4{v[0].z, v[1].z, v[2].z, v[3].z};
      to[3 * N] = uint4{v[0].w, v[1].w, v[2].w, v[3].w};
    }
  };
  load_x(0);
  store_x(0);
  if (chunks > 1) load_x(1);
  fence_async();
  __syncthreads();

  float sums[N / 2] = {};
  unsigned int a[2][4][4];
  int slot = 0;
#pragma unroll 1
  for (int chunk = 0; chunk < chunks; ++chunk) {
    if (chunk + 1 < chunks) store_x(chunk + 1);
    if (chunk + 2 < chunks) load_x(chunk + 2);
    unsigned int x_at = base + chunk % 2 * S::X_BYTES;
    const T* held = reinterpret_cast<const T*>(
        shared + scales_at + chunk % S::SCALE_SLOTS * (WARPS * S::SCALE_BYTES));
#pragma unroll
    for (int stage = 0; stage < S::CHUNK_STAGES; ++stage) {
      wait_copies<STAGES - 1>();
      __syncwarp();
      const uint4* from =
          reinterpret_cast<const uint4*>(shared + lane_at + slot * S::STAGE_BYTES);
      uint4 units[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) units[i] = from[i * (WARPS * LANES)];
      constexpr int BATCHES = 4 / S::CHUNK_STAGES;
#pragma unroll
      for (int b = 0; b < BATCHES; ++b) {
        int batch = stage * BATCHES + b;
        wait_products<1>();
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
            unsigned int* to = a[batch % 2][p * 2 + i];
            to[0] = upper[2 * i];
            to[1] = lower[2 * i];
            to[2] = upper[2 * i + 1];
            to[3] = lower[2 * i + 1];
          }
        }
        begin_products();
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          multiply_wide<T>(sums, a[batch % 2][i],
                           describe_rows(x_at + (batch * 4 + i) * (2 * N * 16), N * 16, 128));
        }
        commit_products();
      }
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
