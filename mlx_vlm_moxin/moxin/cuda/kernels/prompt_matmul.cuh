// Products of many rows of x by matrices on Hopper, W x^T, in tensor cores.
//
// A block's two product warpgroups have 64 rows of weights each, which are the tensor cores' operand A
// (prompt_weights.cuh, prompt_plain.cuh). Operand B, x, is arranged so that it is copied into shared
// memory as it is (arranged.cuh), by one thread of a third warpgroup, a few stages ahead. While a product
// runs, the weights of the next one are unpacked or loaded. If weights are packed, little shared memory
// is used for stages, because what is left of it is the L1 cache, where the weights' scales stay.

#pragma once

#include "prompt_plain.cuh"

namespace moxin {

// Registers of a thread: one that copies x alone, one that copies plain weights too, and one that
// multiplies beside it.
template <int BITS>
constexpr int COPY_REGISTERS = BITS == 16 ? 40 : 24;
template <int BITS>
constexpr int PRODUCT_REGISTERS = BITS == 16 ? 232 : 240;

// sums [64, TOKENS] = a tile of weights, of which the first are being read, times x, of which `width`
// columns are multiplied.
template <typename T, int TOKENS, typename Stages, typename Weights>
__device__ inline void multiply_tile(
    Weights& weights, Stages& stages, int width, float (&sums)[2][TOKENS / 4]) {
  constexpr int STEPS = LOOP_K / STEP_K;
  // Operands of the step that is being multiplied, and of the next one.
  unsigned int operands[2][2][4];
  weights.unpack(0, 0, operands[0], width <= LOOP_K);
#pragma unroll
  for (int i = 0; i < TOKENS / 2; ++i) sums[i % 2][i / 2] = 0;
#pragma unroll 1
  for (int k = 0; k < width; k += LOOP_K) {
    bool is_last = k + LOOP_K >= width;
#pragma unroll
    for (int step = 0; step < STEPS; ++step) {
      bool begins_stage = step * STEP_K % STAGE_K == 0;
      // Staged weights have waited for their stage.
      if (begins_stage && !Weights::ARE_STAGED) wait_barrier(stages.filled(), stages.parity);
      unsigned int x = stages.data() + step * STEP_K % STAGE_K * 2;
      begin_products();
#pragma unroll
      for (int product = 0; product < 2; ++product) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          unsigned int columns = x + half * Stages::X_BYTES / 2 + product * 32;
          multiply_wide<T>(sums[half], operands[step % 2][product], describe_tile(columns));
        }
      }
      commit_products();
      // Those of the step before are done, so that their stage and registers are free.
      wait_products<1>();
      if (begins_stage && (k > 0 || step > 0)) stages.release_before();
      if (step + 1 < STEPS) {
        weights.unpack(step + 1, k, operands[(step + 1) % 2], is_last);
      } else if (!is_last) {
        weights.unpack(0, k + LOOP_K, operands[0], k + 2 * LOOP_K >= width);
      }
      if ((step + 1) * STEP_K % STAGE_K == 0) stages.advance();
    }
  }
  wait_products<0>();
  // Keeps the compiler from reading the sums before this.
#pragma unroll
  for (int i = 0; i < TOKENS / 2; ++i) asm volatile("" : "+f"(sums[i % 2][i / 2]) : : "memory");
  stages.release_before();
}

__device__ inline void store_two(float* to, float first, float second) {
  *reinterpret_cast<float2*>(to) = float2{first, second};
}

template <typename T>
__device__ inline void store_two(T* to, float first, float second) {
  *reinterpret_cast<unsigned int*>(to) = pack<T>(first, second);
}

// Sums of a lane: two neighbouring columns of its warp's 16, for pairs of tokens. Stores COUNT times eight
// tokens of product part `out` [rows, N], from token `token` on. N is even.
template <int COUNT, typename Output>
__device__ inline void store_part(
    const float* sums, Output* out, int token, int rows, int N, int column) {
  token += threadIdx.x % 4 * 2;
  column += threadIdx.x % LANES / 4 * 2;
  if (column >= N) return;
  Output* to = out + static_cast<long long>(token) * N + column;
#pragma unroll
  for (int block = 0; block < COUNT; ++block, token += 8, to += 8LL * N) {
    const float* four = sums + 4 * block;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (token + i < rows) store_two(to + i * N, four[i], four[i + 2]);
    }
  }
}

// Stores zeros there, for TOKENS tokens.
template <int TOKENS, typename Output>
__device__ inline void store_zeros(Output* out, int token, int rows, int N, int column) {
  int end = min(token + TOKENS, rows);
  column += threadIdx.x % 8 * 2;
  for (int row = token + threadIdx.x % LANES / 8; row < end && column < N; row += 4) {
    store_two(out + static_cast<long long>(row) * N + column, 0, 0);
  }
}

// Stores silu(first row) * second row, of which a warp has eight columns from `column` on. out is
// [rows, N], or in the order of a product with weights of OUT_BITS bits; column is a position then.
template <int COUNT, typename T, int OUT_BITS, int TOKENS>
__device__ inline void store_gated(
    const float* sums, T* out, int token, int rows, int N, int column) {
  token += threadIdx.x % LANES / 4;
  column += threadIdx.x % 4 * 2;
  long long at = static_cast<long long>(token) * N + column, eight_tokens = 8LL * N;
  if constexpr (OUT_BITS > 0) {
    at = arranged_index<TOKENS>(token, column, N);
    eight_tokens = 8 * 64;
  }
  unsigned int* to = reinterpret_cast<unsigned int*>(out + at);
#pragma unroll
  for (int block = 0; block < COUNT; ++block, token += 8, to += eight_tokens / 2) {
    const float* gates = sums + 4 * block;
    float gated[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      gated[i] = __fdividef(gates[i], 1 + __expf(-gates[i])) * gates[i + 2];
    }
    // From two tokens of a column to two columns of a token.
    unsigned int pair = pack<T>(gated[0], gated[1]);
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %0;" : "+r"(pair));
    if (column < N && (OUT_BITS > 0 || token < rows)) *to = pair;
  }
}

// Begins to read the packed weights of a warpgroup's tile of an item.
template <typename Matrices, typename T, int BITS, int GROUP>
__device__ inline void begin_item(
    const Matrices& from, const Item& item, int width, LaneWeights<T, BITS, GROUP>& weights) {
  int tile = item.pair * PRODUCT_GROUPS + threadIdx.x / WARPGROUP_THREADS;
  int first = threadIdx.x % WARPGROUP_THREADS / LANES * 16 + threadIdx.x % LANES / 4;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    int row;
    auto matrix = from.find(tile, first + 8 * i, row);
    weights.start(i, matrix, row, width, item.begin);
  }
  weights.read_first();
}

// Stores the sums of a warpgroup's tile. If the product has one part, the block with an item's end adds
// up.
template <typename T, bool GATED, int OUT_BITS, int TOKENS, typename Output>
__device__ inline void store_tile(
    float (&sums)[2][TOKENS / 4], const Division& division, const Item& item, int width, int rows,
    int parts, int N, const Handover& handover, Output* out) {
  bool has_end = item.end == width;
  if (parts == 1 && !has_end) {
    handover.give<TOKENS>(sums);
    return;
  }
  if (parts == 1 && item.begin > 0) handover.add<TOKENS>(sums);
  int tile = item.pair * PRODUCT_GROUPS + threadIdx.x / WARPGROUP_THREADS, token = item.tile * TOKENS;
  int warp = threadIdx.x % WARPGROUP_THREADS / LANES;
  constexpr int EIGHTS = TOKENS / 16;
  if constexpr (GATED) {
    int column = tile * (TILE / 2) + warp * 8;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      int first = token + half * TOKENS / 2;
      store_gated<EIGHTS, T, OUT_BITS, TOKENS>(sums[half], out, first, rows, N, column);
    }
  } else {
    int part = parts == 1 ? 0 : division.blocks_before(item), column = tile * TILE + warp * 16;
    long long size = static_cast<long long>(rows) * N;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      int first = token + half * TOKENS / 2;
      store_part<EIGHTS>(sums[half], out + part * size, first, rows, N, column);
    }
    // Items may have fewer parts than the product.
    while (has_end && ++part < parts) {
      store_zeros<TOKENS>(out + part * size, token, rows, N, column);
    }
  }
}

// A warpgroup's tiles of all items of a block. The next tile's first weights are read while sums are
// stored.
template <typename Weights, int TOKENS, typename T, int COUNT, bool GATED, int OUT_BITS,
          typename Stages, typename Output>
__device__ inline void multiply_and_store(
    const JoinedMatrices<T, COUNT, GATED, OUT_BITS>& from, Stages& stages, const Division& division,
    int turns, int width, int rows, int parts, const Handover& handover, Output* out) {
  Weights weights;
  weights.use(stages);
  Item item = division.find(0);
  begin_item(from, item, width, weights);
  for (int turn = 0; turn < turns; ++turn) {
    float sums[2][TOKENS / 4];
    multiply_tile<T, TOKENS>(weights, stages, item.end - item.begin, sums);
    Item done = division.find(again(turn));
    if (turn + 1 < turns) {
      item = division.find(turn + 1);
      begin_item(from, item, width, weights);
    }
    store_tile<T, GATED, OUT_BITS, TOKENS>(
        sums, division, done, width, rows, parts, from.count(), handover, out);
  }
}

// Copies the stages of an item, by one thread; they are x alone.
template <typename Matrices, int TOKENS, int STAGES>
__device__ inline void copy_stages(
    const char* x, const Matrices&, Stages<TOKENS, 0, STAGES>& stages, const Item& item, int width) {
  constexpr int BYTES = Stages<TOKENS, 0, STAGES>::BYTES;
  long long first = static_cast<long long>(item.tile) * (width / STAGE_K);
  for (int k = item.begin; k < item.end; k += STAGE_K) {
    wait_barrier(stages.emptied(), stages.parity ^ 1);
    arrive_expecting(stages.filled(), BYTES);
    copy_bulk(stages.data(), x + (first + k / STAGE_K) * BYTES, BYTES, stages.filled());
    stages.advance();
  }
}

// How weights of BITS bits are used. Plain ones are in the stages, so that a whole warpgroup copies.
template <typename T, int BITS, int GROUP, int TOKENS, int STAGES>
struct Use {
  static constexpr int COPYING = 1, ARRIVALS = 1;  // threads that copy; arrivals at a stage
  using In = Stages<TOKENS, 0, STAGES>;
  using Weights = LaneWeights<T, BITS, GROUP>;
};

template <typename T, int TOKENS, int STAGES>
struct Use<T, 16, 0, TOKENS, STAGES> {
  static constexpr int COPYING = WARPGROUP_THREADS, ARRIVALS = 1 + COPYING;
  using In = Stages<TOKENS, BLOCK_ROWS, STAGES>;
  using Weights = StagedWeights<In>;
};

}  // namespace moxin
