// Products of a few rows: x [rows, K] times weights [N, K] transposed, at the speed at which the
// weights are read.
//
// A warp streams its rows of the weights from global memory straight into the registers that
// tensor cores take: of mma m16n8k16 lane 4 g + j holds row g at k = 2 j, 2 j + 1, 2 j + 8 and
// 2 j + 9. Which values of a row stand at these k does not matter as long as x has the same
// order, so a lane reads 16 bytes that are neighbours in memory. x, which all warps of a block
// share, goes through shared memory.

#pragma once

#include "grid.cu"
#include "matrix.cu"
#include "tensor_cores.cu"

namespace moxin {

constexpr int TILE_K = 128;  // of one step
constexpr int VECTORS = TILE_K / 8;
constexpr int STAGES = 3;  // of x
constexpr int PRODUCT_WARPS = 8;

// How a step's weights are read. For each 16 bytes of them a lane needs PLANES vectors of x. A warp
// takes TILES tiles of 8 rows of the weights.
template <int BITS, int GROUP, int TILES>
struct Step {
  static constexpr int PACK = 128 / BITS;
  static constexpr int PLANES = PACK / 8;
  static constexpr int CHUNKS = TILE_K / (4 * PACK);
  static constexpr int DEPTH = (BITS == 4 ? 8 : 4) / TILES;  // steps that are loaded ahead
  static_assert(BITS == 16 || GROUP % PACK == 0, "a lane's weights share a scale");
};

// Up to three matrices with rows of K values, one on top of the other.
template <typename T>
struct Stack {
  Matrix<T> matrices[3];
  int ends[3];  // number of rows up to each one's end
};

// One step's weights of a lane.
template <typename T, int BITS, int GROUP, int TILES>
struct Weights {
  using P = Step<BITS, GROUP, TILES>;

  uint4 packed[TILES][P::CHUNKS];
  T scales[TILES][P::CHUNKS], biases[TILES][P::CHUNKS];  // of packed matrices

  // Chunk c of each row.
  __device__ void load(const Matrix<T>* rows, int step, int c) {
    int unit = (step * P::CHUNKS + c) * 4 + threadIdx.x % 4;
#pragma unroll
    for (int n = 0; n < TILES; ++n) {
      packed[n][c] = load_once(static_cast<const uint4*>(rows[n].weight) + unit);
      if constexpr (BITS < 16) {
        scales[n][c] = rows[n].scales[unit * P::PACK / GROUP];
        biases[n][c] = rows[n].biases[unit * P::PACK / GROUP];
      }
    }
  }

  // The next eight weights of a 16-byte unit, as T.
  __device__ void next(int n, int c, unsigned int* words) {
    uint4& unit = packed[n][c];
    if constexpr (BITS == 16) {
      words[0] = unit.x;
      words[1] = unit.y;
      words[2] = unit.z;
      words[3] = unit.w;
    } else {
      float scale = to_float(scales[n][c]), bias = to_float(biases[n][c]), values[8];
#pragma unroll
      for (int k = 0; k < 8; ++k) {
        if constexpr (BITS == 8) {
          values[k] = byte_value(k < 4 ? unit.x : unit.y, k % 4) * scale + bias;
        } else {
          values[k] = raised_nibble(unit.x, k) * scale + (bias - NIBBLE_RAISE * scale);
        }
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) words[i] = pack<T>(values[2 * i], values[2 * i + 1]);
      unit = BITS == 8 ? uint4{unit.z, unit.w, 0, 0} : uint4{unit.y, unit.z, unit.w, 0};
    }
  }
};

// Place of a vector of x in its row of a stage. The vectors that four lanes read together are
// neighbours; odd rows are shifted to the other half of the banks.
__device__ inline int place(int row, int chunk_plane, int part) {
  return (chunk_plane * 4 + part) ^ (row % 2 * 4);
}

// Columns of a warp.
template <bool GATED, int TILES>
constexpr int OWN_COLUMNS = GATED ? 4 * TILES : 8 * TILES;

// A block's part of the product: number `split` of `splits` parts of K, and of each warp the
// columns from its `first_column` on, none if that is N or more. x may be read once ready()
// returns.
//
// Plain, `out` is [splits, rows, N], float. GATED, the stack is gate_proj and up_proj [N, K], `out`
// is silu(gate) * up [rows, N] and splits is 1. At most ROWS rows, a multiple of 16; K is a
// multiple of TILE_K.
template <typename T, int BITS, int GROUP, int ROWS, bool GATED, int TILES, typename O, typename R>
__device__ void multiply(
    const T* x, const Stack<T>& stack, int rows, int K, int split, int splits, int first_column,
    O* out, R ready) {
  using P = Step<BITS, GROUP, TILES>;
  constexpr int THREADS = PRODUCT_WARPS * LANES, PER_MATRIX = OWN_COLUMNS<GATED, TILES> / 8;
  constexpr int STAGE_BYTES = ROWS * TILE_K * 2;
  unsigned int stages = static_cast<unsigned int>(__cvta_generic_to_shared(shared));
  int thread = thread_of_step(), lane = thread % LANES;
  int all_steps = K / TILE_K;
  int first_step = all_steps * split / splits;
  int steps = all_steps * (split + 1) / splits - first_step;
  int N = GATED ? stack.ends[0] : stack.ends[2];
  bool has_columns = first_column < N;

  Matrix<T> own[TILES];
#pragma unroll
  for (int n = 0; n < TILES; ++n) {
    int column = min(first_column + n % PER_MATRIX * 8 + lane / 4, N - 1);
    int index = GATED ? n / PER_MATRIX : (column >= stack.ends[0]) + (column >= stack.ends[1]);
    Matrix<T> matrix = index == 0 ? stack.matrices[0]
        : index == 1              ? stack.matrices[1]
                                  : stack.matrices[2];
    if (!GATED && index) column -= index == 1 ? stack.ends[0] : stack.ends[1];
    own[n].weight =
        static_cast<const char*>(matrix.weight) + static_cast<long long>(column) * K * BITS / 8;
    if constexpr (BITS < 16) {
      own[n].scales = matrix.scales + static_cast<long long>(column) * (K / GROUP);
      own[n].biases = matrix.biases + static_cast<long long>(column) * (K / GROUP);
    }
  }

  // A thread copies the same vector of every APART-th row.
  constexpr int APART = THREADS / VECTORS;
  int row = thread / VECTORS, vector = thread % VECTORS;
  int chunk_plane = vector / (4 * P::PLANES) * P::PLANES + vector % P::PLANES;
  int vector_at = row * VECTORS + place(row, chunk_plane, vector / P::PLANES % 4);
  const T* from_x = x + row * K + first_step * TILE_K + vector * 8;
  auto copy_x = [&](int step) {
    if (step < steps) {
      unsigned int to = stages + step % STAGES * STAGE_BYTES + vector_at * 16;
#pragma unroll
      for (int i = 0; i < ROWS; i += APART) {
        bool inside = row + i < rows;
        copy_async(to + i * VECTORS * 16, inside ? from_x + i * K + step * TILE_K : x, inside);
      }
    }
    asm volatile("cp.async.commit_group;");
  };

  Weights<T, BITS, GROUP, TILES> ahead[P::DEPTH];
  auto load = [&](int d, int step, int c) {
    if (has_columns && step < steps) ahead[d].load(own, first_step + step, c);
  };
#pragma unroll
  for (int d = 0; d < P::DEPTH; ++d) {
#pragma unroll
    for (int c = 0; c < P::CHUNKS; ++c) load(d, d, c);
  }
  ready();
  for (int step = 0; step < STAGES - 1; ++step) copy_x(step);

  float sums[ROWS / 16][TILES][4] = {};
#pragma unroll 1
  for (int base = 0; base < steps; base += P::DEPTH) {
#pragma unroll
    for (int d = 0; d < P::DEPTH; ++d) {
      int step = base + d;
      if (step >= steps) break;
      asm volatile("cp.async.wait_group %0;" : : "n"(STAGES - 2));
      __syncthreads();
      copy_x(step + STAGES - 1);
      if (!has_columns) continue;
      const uint4* stage = reinterpret_cast<const uint4*>(shared + step % STAGES * STAGE_BYTES);
#pragma unroll
      for (int c = 0; c < P::CHUNKS; ++c) {
#pragma unroll 1
        for (int plane = 0; plane < P::PLANES; ++plane) {
          unsigned int a[ROWS / 16][2][4];
#pragma unroll
          for (int m = 0; m < ROWS / 16; ++m) {
            int group = m * 16 + lane / 4;
            int at = group * VECTORS + place(group, c * P::PLANES + plane, lane % 4);
            uint4 upper = stage[at], lower = stage[at + 8 * VECTORS];
            const unsigned int first[4] = {upper.x, lower.x, upper.y, lower.y};
            const unsigned int second[4] = {upper.z, lower.z, upper.w, lower.w};
#pragma unroll
            for (int i = 0; i < 4; ++i) {
              a[m][0][i] = first[i];
              a[m][1][i] = second[i];
            }
          }
#pragma unroll
          for (int n = 0; n < TILES; ++n) {
            unsigned int b[4];
            ahead[d].next(n, c, b);
#pragma unroll
            for (int m = 0; m < ROWS / 16; ++m) {
              multiply_add<T>(sums[m][n], a[m][0], b);
              multiply_add<T>(sums[m][n], a[m][1], b + 2);
            }
          }
        }
        load(d, step + P::DEPTH, c);
      }
    }
  }

#pragma unroll
  for (int m = 0; m < ROWS / 16; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      int own_row = m * 16 + lane / 4 + half * 8;
      if (own_row >= rows) continue;
#pragma unroll
      for (int n = 0; n < PER_MATRIX; ++n) {
        int column = first_column + n * 8 + lane % 4 * 2;
        if (column >= N) continue;
        const float* own_sums = sums[m][n] + 2 * half;
        if constexpr (GATED) {
          const float* up = sums[m][n + PER_MATRIX] + 2 * half;
          float gated[2];
#pragma unroll
          for (int i = 0; i < 2; ++i) gated[i] = own_sums[i] / (1 + __expf(-own_sums[i])) * up[i];
          *reinterpret_cast<unsigned int*>(out + static_cast<long long>(own_row) * N + column) =
              pack<T>(gated[0], gated[1]);
        } else {
          long long at = (static_cast<long long>(split) * rows + own_row) * N + column;
          *reinterpret_cast<float2*>(out + at) = float2{own_sums[0], own_sums[1]};
        }
      }
    }
  }
}

}  // namespace moxin
