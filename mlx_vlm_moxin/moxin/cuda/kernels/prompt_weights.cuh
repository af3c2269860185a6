// Packed weights as operand A of Hopper's tensor cores: every lane reads its weights from global memory
// into registers and unpacks them there.

#pragma once

#include "arranged.cuh"
#include "weights.cuh"

namespace moxin {

constexpr int TILE = 64;     // rows of weights that a warpgroup multiplies
constexpr int STEP_K = 32;   // two products of the tensor cores
constexpr int LOOP_K = 256;  // of a round of the unrolled loop; K is a multiple of it

// COUNT matrices, at most three, of `ends[i]` rows up to and with matrix i. GATED: two of the same size,
// of which a tile has 32 rows each; every eight rows of the first are followed by the same ones of the
// second. If the result is for a product with weights of OUT_BITS bits, its columns are in that order.
// Otherwise rows i and i + 8 of every 16 are neighbours in the matrix, because a lane has the sums of both.
template <typename T, int COUNT, bool GATED, int OUT_BITS>
struct JoinedMatrices {
  Matrix<T> matrices[3];
  int ends[3];

  // Columns of the result.
  __device__ inline int count() const { return GATED ? ends[0] : ends[2]; }

  // The matrix and its row that is row `index` of a tile. Beyond the last one, the last one.
  __device__ inline Matrix<T> find(int tile, int index, int& row) const {
    if constexpr (GATED) {
      row = tile * (TILE / 2) + index / 16 * 8 + index % 8;
      if constexpr (OUT_BITS > 0) row = arranged_column<OUT_BITS>(row);
      row = min(row, ends[0] - 1);
      return index % 16 < 8 ? matrices[0] : matrices[1];
    } else {
      row = min(tile * TILE + index / 16 * 16 + index % 8 * 2 + index / 8 % 2, ends[2] - 1);
      if constexpr (COUNT == 1) return matrices[0];
      int matrix = row >= ends[1] ? 2 : row >= ends[0] ? 1 : 0;
      if (matrix > 0) row -= ends[matrix == 2 ? 1 : 0];
      return matrix == 0 ? matrices[0] : matrix == 1 ? matrices[1] : matrices[2];
    }
  }
};

// Four, two or one scales of a row, in one load.
template <int COUNT>
__device__ inline void load_scales(const void* from, unsigned int* words) {
  if constexpr (COUNT == 4) {
    asm volatile("ld.global.nc.v2.u32 {%0, %1}, [%2];" : "=r"(words[0]), "=r"(words[1]) : "l"(from));
  } else if constexpr (COUNT == 2) {
    asm volatile("ld.global.nc.u32 %0, [%1];" : "=r"(words[0]) : "l"(from));
  } else {
    asm volatile("ld.global.nc.u16 %0, [%1];" : "=r"(words[0]) : "l"(from));
  }
}

// The weights of a lane: two rows. It reads 16 bytes of each at a time, CHUNKS chunks ahead, and scales
// and biases of SCALE_K columns at once.
template <typename T, int BITS, int GROUP>
struct LaneWeights {
  static constexpr bool ARE_STAGED = false;
  static constexpr int COUNT = 128 / BITS, CHUNK_K = 4 * COUNT;  // four lanes read a chunk
  static constexpr int CHUNKS = BITS == 8 ? 4 : 2, STEPS = CHUNK_K / STEP_K;  // steps per chunk
  static constexpr int SCALE_K = GROUP == 32 ? 128 : LOOP_K, SCALES = SCALE_K / GROUP;
  static constexpr int WORDS = SCALES / 2;
  Matrix<T> matrices[2];
  unsigned int at[2], group[2];  // bytes; scales
  uint4 units[CHUNKS][2];
  // Two buffers: of the two halves of a round, or of this round and the next one.
  unsigned int scales[2][2][WORDS], biases[2][2][WORDS];

  template <typename Stages>
  __device__ inline void use(const Stages&) {}

  // Row i of the lane is row `row` of a matrix [rows, width], from column `first` on.
  __device__ inline void start(int i, const Matrix<T>& matrix, int row, int width, int first) {
    matrices[i] = matrix;
    at[i] = (static_cast<unsigned int>(row) * width + first) / 8 * BITS + threadIdx.x % 4 * 16;
    group[i] = row * (width / GROUP) + first / GROUP;
  }

  // Reads the chunk at column `first` + k.
  __device__ inline void load(int chunk, int k) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const char* weight = static_cast<const char*>(matrices[i].weight);
      units[chunk][i] = load_once(weight + (at[i] + k / 8 * BITS));
    }
  }

  // Reads scales and biases of the SCALE_K columns at `first` + k.
  __device__ inline void load_groups(int buffer, int k) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      load_scales<SCALES>(matrices[i].scales + (group[i] + k / GROUP), scales[buffer][i]);
      load_scales<SCALES>(matrices[i].biases + (group[i] + k / GROUP), biases[buffer][i]);
    }
  }

  // Reads the first chunks.
  __device__ inline void read_first() {
#pragma unroll
    for (int chunk = 0; chunk < CHUNKS; ++chunk) load(chunk, chunk * CHUNK_K);
    load_groups(0, 0);
    if (SCALE_K < LOOP_K) load_groups(1, SCALE_K);
  }

  // The scale or bias of this lane's part of the chunk that begins at column k of SCALE_K.
  __device__ inline T find(const unsigned int* words, int k) const {
    constexpr int PER_CHUNK = CHUNK_K / GROUP;  // if more than one, by lanes
    int index = k / GROUP, lane = threadIdx.x % 4 * COUNT / GROUP;
    unsigned int word = words[index / 2];
    if constexpr (PER_CHUNK == 4) word = lane < 2 ? words[0] : words[1];
    int shift = PER_CHUNK > 1 ? lane % 2 * 16 : index % 2 * 16;
    return T{static_cast<unsigned short>(word >> shift)};
  }

  // The operands of a step of the round at column `first` + k, of two products with four registers each.
  // Then reads what is needed later, unless the round is the last one.
  __device__ inline void unpack(int step, int k, unsigned int (*operands)[4], bool is_last) {
    int chunk = step / STEPS, column = chunk * CHUNK_K, buffer = SCALE_K == LOOP_K ? 0 : column / SCALE_K;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      unsigned int words[4];
      next_eight<T, BITS>(units[chunk % CHUNKS][i], find(scales[buffer][i], column % SCALE_K),
                          find(biases[buffer][i], column % SCALE_K), words);
#pragma unroll
      for (int j = 0; j < 4; ++j) operands[j / 2][i + j % 2 * 2] = words[j];
    }
    int next = (chunk + CHUNKS) * CHUNK_K;
    if ((step + 1) % STEPS == 0 && (!is_last || next < LOOP_K)) load(chunk % CHUNKS, k + next);
    if (is_last) return;
    bool ends_scales = (step + 1) * STEP_K % SCALE_K == 0;
    if constexpr (SCALE_K < LOOP_K) {
      if (ends_scales) load_groups(buffer, k + LOOP_K + buffer * SCALE_K);
    } else {
      if (step == 1) load_groups(1, k + LOOP_K);
      if (ends_scales) {
#pragma unroll
        for (int i = 0; i < 2 * WORDS; ++i) {
          scales[0][i / WORDS][i % WORDS] = scales[1][i / WORDS][i % WORDS];
          biases[0][i / WORDS][i % WORDS] = biases[1][i / WORDS][i % WORDS];
        }
      }
    }
  }
};

}  // namespace moxin
