// One token of each of up to eight sequences through LAYERS decoder layers, in one launch.
//
// Cost: reads every weight once, and every cached key and value HEADS / KV_HEADS / HEADS_AT_ONCE
// times (the first time from memory, then from the L2 cache). Reading is the limit: a layer of Moxin
// takes 112 us at 16 bits, 59 at 8 and 32 at 4 (3.9 TB/s).
//
// A layer is five steps of the whole grid: queries, keys and values; attention; o_proj; gate and up;
// down_proj. Between them thread blocks wait for each other, while their next weights are on the way
// (weight_stream.cuh).
//
// Constants that fused_batch.py defines in namespace config: T; HIDDEN, INTERMEDIATE, HEAD_DIM,
// HEADS, KV_HEADS; WINDOW (0: none); LAYERS; QKV (moxin::Format of all matrices); EPS,
// LOG2_THETA, SCALE; THREADS, STEP, SLOTS, INTEGERS (batch_steps.cuh); HEADS_AT_ONCE
// (batch_attention.cuh).

#include "batch_layer.cuh"
#include "scratch_memory.cuh"

// As in fused_step.cu, LAYER_PARAMETERS declares the layers' arrays and FILL_LAYERS(layers) stores
// them in a table in shared memory.
extern "C" __global__ void __launch_bounds__(config::THREADS, 1) fused_batch(
    const config::T* x,      // [batch, HIDDEN]
    const int* filled,       // filled[0]: positions of the caches that are used
    unsigned int* arrivals,  // [4] zeros, the barrier's counter
    const int* padding,      // [batch], masked positions at the start of each sequence
    LAYER_PARAMETERS,
    config::T* out,          // [batch, HIDDEN]
    unsigned int* work,      // scratch, see below
    int batch, int capacity) {  // sequences; positions of their caches
  using namespace moxin;
  using config::HIDDEN;
  __shared__ Layer<T> layers[config::LAYERS];
  FILL_LAYERS(layers)
  GridBarrier barrier{arrivals};
  barrier.arrive();
  ScratchMemory memory(work);
  float* products = memory.take<float>(ROWS * PROJECTED);
  T* attended = memory.take<T>(ROWS * ATTENDED);
  T* gated = memory.take<T>(ROWS * config::INTERMEDIATE);
  WeightStream stream(layers);
  int finished = 0;
#pragma unroll 1
  for (int i = 0; i < config::LAYERS; ++i) {
    const Layer<T>& layer = layers[i];
    const T* residual = i ? out : x;
    auto load = [&](int tile, int row, int row_of_x) {
      return load_early(residual + min(row_of_x, batch - 1) * HIDDEN + tile * TILE + row);
    };
    auto add = [&](int tile, int row, int row_of_x, float value, T before) {
      int at = row_of_x * HIDDEN + tile * TILE + row;
      if (row_of_x < batch) out[at] = round_to<T>(to_float(before) + value);
    };
    qkv(stream, finished, barrier, barrier, layer, Vectors{residual}, batch, products);
    BatchCache<T> cache{layer.keys, layer.values, padding, *filled, capacity};
    attend(barrier, cache, batch, products, attended);
    output(stream, finished, barrier, barrier, attended, batch, load, add);
    residual = out;
    gate_up(stream, finished, barrier, barrier, layer, Vectors{out}, batch, gated);
    down(stream, finished, barrier, barrier, gated, batch, load, add);
  }
}
