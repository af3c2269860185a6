// One token of one sequence through LAYERS decoder layers, in one launch.
//
// Cost: every weight is read once and takes part in one multiply-add, so the memory's bandwidth is
// the limit. Moxin's 36 layers are 7.85e9 weights: 15.70 GB at 16 bits, 8.34 GB at 8 bits and
// 4.42 GB at 4 bits in groups of 64, plus 147 KB of cache per token of context.
//
// A layer is five steps of the whole grid: qkv, attention, o_proj, gate_up and down_proj. While a
// thread block waits for the others, the first weights of its next step are already in flight, or packed
// weights stream on (packed_stream.cuh).
//
// Constants that fused_step.py defines in namespace config: T; HIDDEN, INTERMEDIATE, HEAD_DIM, HEADS,
// KV_HEADS; WINDOW (0: none); LAYERS; QKV, OUTPUT, GATE_UP, DOWN (moxin::Format); EPS, LOG2_THETA,
// SCALE; SPLITS (thread blocks per head in attention) and THREADS; STAGED (bytes of shared memory before
// slots for packed weights), SLOTS (of a warp; 0: no stream), and the most pieces in flight of the
// current product (IN_FLIGHT) and of the next ones (NEXT_IN_FLIGHT).

#include "scratch_memory.cuh"
#include "step_products.cuh"

// LAYER_PARAMETERS declares the layers' arrays, in the order of moxin::Layer: each is a parameter, or
// a layer's weights are one parameter that contains them (joined_layers.py). FILL_LAYERS(layers)
// stores them in a table, which is in shared memory: dynamically indexed kernel parameters would be
// copied to local memory by every thread.
extern "C" __global__ void __launch_bounds__(config::THREADS, 1) fused_step(
    const config::T* x,      // [HIDDEN]
    const int* position,     // position[0]: tokens in the cache, the position of this one
    unsigned int* arrivals,  // [4] zeros, the barrier's counter
    const int* padding,      // padding[0]: masked positions at the start of the cache
    LAYER_PARAMETERS,
    config::T* out,          // [HIDDEN]
    unsigned int* scratch,   // see below
    int capacity) {          // positions of the cache
  using namespace moxin;
  __shared__ Layer<T> layers[config::LAYERS];
  FILL_LAYERS(layers)
  skip_padding(layers, *padding);
  GridBarrier barrier{arrivals};
  barrier.arrive();
  StepWeights weights(layers, shared + config::STAGED);
  int last = *position - *padding;
  ScratchMemory memory(scratch);
  T* queries = memory.take<T>(ATTENDED);
  Attended attended{memory.take<float>(config::HEADS * config::SPLITS * (config::HEAD_DIM + 2))};
  T* gated = memory.take<T>(config::INTERMEDIATE);
  auto store = [&](int i, int lane, float value) {
    if (lane == 0) out[i] = round_to<T>(value);
  };
#pragma unroll 1
  for (int i = 0; i < config::LAYERS; ++i) {
    const Layer<T>& layer = layers[i];
    const T* residual = i ? out : x;
    qkv(weights, barrier, barrier, layer, Vector{residual}, last, capacity, queries);
    attend(weights, barrier, layer, last, capacity, queries, attended);
    auto load = [&](int i) { return load_early(residual + i); };
    project<OUTPUT>(weights, barrier, barrier, layer, attended, load, store);
    gate_up(weights, barrier, barrier, layer, Vector{out}, gated);
    auto load_out = [&](int i) { return load_early(out + i); };
    project<DOWN>(weights, barrier, barrier, layer, Vector{gated}, load_out, store);
  }
}
