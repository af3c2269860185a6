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

#include "batch_attention.cuh"
#include "batch_products.cuh"
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
  using config::HIDDEN, config::INTERMEDIATE;
  __shared__ Layer<T> layers[config::LAYERS];
  FILL_LAYERS(layers)
  GridBarrier barrier{arrivals};
  barrier.arrive();
  ScratchMemory memory(work);
  float* products = memory.take<float>(ROWS * PROJECTED);
  T* attended = memory.take<T>(ROWS * ATTENDED);  // [batch, HEADS, HEAD_DIM]
  T* gated = memory.take<T>(ROWS * INTERMEDIATE);
  WeightStream stream(layers);
  int finished = 0;
  auto nothing = [](int, int, int) { return T{}; };
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
    {
      NormWeight<HIDDEN> weight(layer.input_norm);
      barrier.wait();
      StepInputs inputs[MOST_STEPS<HIDDEN>];
#pragma unroll
      for (int step = 0; step < MOST_STEPS<HIDDEN>; ++step) {
        load_inputs<HIDDEN>(residual, batch, step, inputs[step]);
      }
      normalise<HIDDEN>(inputs, weight);
      auto store = [&](int tile, int row, int row_of_x, float value, T) {
        int at = row_of_x * PROJECTED + tile * TILE + row;
        if (row_of_x < batch) products[at] = value;
      };
#pragma unroll
      for (StepInputs& step : inputs) step.finish();
      multiply_tiles<QKV>(stream, finished, inputs, nothing, store);
      barrier.arrive();
    }
    BatchCache<T> cache{layer.keys, layer.values, padding, *filled, capacity};
    prefetch_cache<T, config::HEAD_DIM, config::KV_HEADS, config::WINDOW, config::THREADS>(
        cache, batch);
    barrier.wait();
    auto& attention = *reinterpret_cast<
        BatchAttention<T, config::HEAD_DIM, config::HEADS_AT_ONCE, WARPS>*>(scratch());
    for (int item = blockIdx.x; item < batch * config::HEADS / config::HEADS_AT_ONCE;
         item += gridDim.x) {
      attend_heads<T, config::HEAD_DIM, config::HEADS, config::KV_HEADS, config::HEADS_AT_ONCE,
                   config::KEY_BATCHES, config::WINDOW, config::THREADS>(
          attention, item, products, cache, config::LOG2_THETA, config::SCALE, attended);
      __syncthreads();
    }
    barrier.arrive();
    {
      barrier.wait();
      StepInputs inputs[MOST_STEPS<ATTENDED>];
#pragma unroll
      for (int step = 0; step < MOST_STEPS<ATTENDED>; ++step) {
        load_inputs<ATTENDED>(attended, batch, step, inputs[step]);
      }
#pragma unroll
      for (StepInputs& step : inputs) step.finish();
      multiply_tiles<OUTPUT>(stream, finished, inputs, load, add);
      barrier.arrive();
    }
    residual = out;
    {
      NormWeight<HIDDEN> weight(layer.post_norm);
      barrier.wait();
      StepInputs inputs[MOST_STEPS<HIDDEN>];
#pragma unroll
      for (int step = 0; step < MOST_STEPS<HIDDEN>; ++step) {
        load_inputs<HIDDEN>(out, batch, step, inputs[step]);
      }
      normalise<HIDDEN>(inputs, weight);
      auto store = [&](int tile, int row, int row_of_x, float value, T) {
        int at = row_of_x * INTERMEDIATE + tile * (TILE / 2) + row;
        if (row_of_x < batch) gated[at] = round_to<T>(value);
      };
#pragma unroll
      for (StepInputs& step : inputs) step.finish();
      multiply_tiles<GATE_UP>(stream, finished, inputs, nothing, store);
      barrier.arrive();
    }
    barrier.wait();
    multiply_pairs<DOWN>(stream, finished, gated, batch, load, add);
    barrier.arrive();
  }
}
