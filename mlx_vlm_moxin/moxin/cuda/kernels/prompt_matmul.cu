// Arranged x times the transpose of up to three matrices, concatenated; or SwiGLU of two.
//
// Cost: 2 * rows FLOPs per weight, in tensor cores; reads every weight once per TOKENS rows of x, and x
// once per 128 rows of weights, mostly from the L2 cache. For gate_proj and up_proj of Moxin and 288
// rows: 68 GFLOPs (97 us at 700 TFLOP/s) and, at 8 bits, 125 MB (32 us at 3.9 TB/s), plain 235 MB.
//
// Constants that prompt_matmul.py defines in namespace config: T, BITS, GROUP (0 if BITS is 16), COUNT (of
// matrices), GATED, TOKENS (rows of x of a tile, a multiple of 16), STAGES, OUT_BITS (see out), Output (T, or
// float if not GATED), THREADS.

#include "prompt_matmul.cuh"

// MATRIX_PARAMETERS and MATRICES as in narrow_matmul.cu.
extern "C" __global__ void __launch_bounds__(config::THREADS, 1) prompt_matmul(
    const config::T* x,  // [tiles, width / 64, TOKENS, 64] (arranged.cuh)
    MATRIX_PARAMETERS,
    unsigned int* flags,  // see moxin::Handover
    // [parts, rows, columns]. GATED: [rows, columns of one matrix], or in the order of a product with
    // weights of OUT_BITS bits, if that is not 0.
    config::Output* out,
    float4* handed,  // see moxin::Handover
    int end_0, int end_1, int end_2,  // see moxin::JoinedMatrices
    int rows, int width, int parts, int shared_items) {  // see moxin::Division
  using namespace moxin;
  using config::T, config::TOKENS, config::STAGES, config::GATED;
  JoinedMatrices<T, config::COUNT, GATED, config::OUT_BITS> matrices{{MATRICES}, {end_0, end_1, end_2}};
  constexpr int PAIR = PRODUCT_GROUPS * TILE / (GATED ? 2 : 1);  // columns
  int pairs = (matrices.count() + PAIR - 1) / PAIR, tiles = (rows + TOKENS - 1) / TOKENS;
  using Use = moxin::Use<T, config::BITS, config::GROUP, TOKENS, STAGES>;
  Use::In stages{(shared_address(shared) + 1023) & ~1023u};
  if (threadIdx.x == 0) {
    Use::In all = stages;
    for (int stage = 0; stage < STAGES; ++stage, all.advance()) {
      init_barrier(all.filled(), Use::ARRIVALS);
      init_barrier(all.emptied(), PRODUCT_GROUPS * WARPGROUP_THREADS / LANES);
    }
    publish_barriers();
  }
  __syncthreads();
  Division division{pairs, tiles, width / LOOP_K, shared_items};
  int turns = division.turns();
  bool copies = threadIdx.x / WARPGROUP_THREADS == PRODUCT_GROUPS;
  if (copies) {
    release_registers<COPY_REGISTERS<config::BITS>>();
    if (threadIdx.x % WARPGROUP_THREADS >= Use::COPYING) return;
    for (int turn = 0; turn < turns; ++turn) {
      copy_stages(reinterpret_cast<const char*>(x), matrices, stages, division.find(turn), width);
    }
    if constexpr (Use::COPYING > 1) {
      commit_copies();
      wait_copies<0>();
    }
  } else {
    request_registers<PRODUCT_REGISTERS<config::BITS>>();
    Handover handover{handed, flags};
    multiply_and_store<Use::Weights, TOKENS>(
        matrices, stages, division, turns, width, rows, parts, handover, out);
  }
}
