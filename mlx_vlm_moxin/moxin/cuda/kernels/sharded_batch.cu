// One token of each of up to eight sequences through LAYERS layers of a decoder that is sharded over
// GPUs: heads and MLP columns of this process, in one launch. o_proj and down_proj give parts of a
// sum, rounded to T, which every process writes into the memory of all (peers.cuh).
//
// Cost: as in fused_batch.cu for this process's weights. Each of the two sums of a layer also sends
// batch * HIDDEN values to each other process, its barrier takes a round trip, and each thread block
// reads the parts of all processes.
//
// Constants that fused_batch.py defines in namespace config: those of fused_batch.cu for this
// process's heads and columns; RANKS (processes), PATIENCE (seconds).

#include "batch_layer.cuh"
#include "peers.cuh"
#include "scratch_memory.cuh"

namespace moxin {

// Values of a process's part of a sum.
constexpr int PART = ROWS * config::HIDDEN;

// Hidden states [batch, HIDDEN]: the sum of `count` arrays that are PART values apart, rounded to T.
struct Hidden {
  const T* first;
  int count;  // 1, or all processes'

  // Eight values from number `at` on.
  __device__ uint4 operator()(int at) const {
    float values[8] = {};
#pragma unroll
    for (int rank = 0; rank < config::RANKS; ++rank) {
      if (rank >= count) break;
      float added[8];
      unpack<T>(*reinterpret_cast<const uint4*>(first + rank * PART + at), added);
#pragma unroll
      for (int k = 0; k < 8; ++k) values[k] += added[k];
    }
    return pack_eight<T>(values);
  }
};

// A hidden state as it is loaded.
struct HiddenParts {
  T parts[config::RANKS];

  __device__ float sum() const {
    float sum = 0;
#pragma unroll
    for (T part : parts) sum += to_float(part);
    return to_float(round_to<T>(sum));
  }
};

}  // namespace moxin

extern "C" __global__ void __launch_bounds__(config::THREADS, 1) sharded_batch(
    const config::T* x,             // [batch, HIDDEN]
    const int* filled,              // filled[0]: positions of the caches that are used
    unsigned int* arrivals,         // [4] zeros, the barrier's counter
    const int* padding,             // [batch], masked positions at the start of each sequence
    const unsigned int* addresses,  // [RANKS, 2], as in peers.cuh
    LAYER_PARAMETERS,               // as in fused_step.cu
    config::T* out,                 // [batch, HIDDEN]
    unsigned int* work,             // scratch, see below
    int batch, int capacity,        // sequences; positions of their caches
    int rank, int half_bytes) {     // rank of this process; half_bytes as in peers.cuh
  using namespace moxin;
  using config::HIDDEN, config::RANKS;
  __shared__ Layer<T> layers[config::LAYERS];
  FILL_LAYERS(layers)
  __syncthreads();
  WeightStream stream(layers);
  GridBarrier grid{arrivals};
  Peers<RANKS> peers{addresses, rank, half_bytes, static_cast<int>(PART * sizeof(T))};
  ScratchMemory memory(work);
  float* products = memory.take<float>(ROWS * PROJECTED);
  T* attended = memory.take<T>(ROWS * ATTENDED);
  T* gated = memory.take<T>(ROWS * config::INTERMEDIATE);
  int finished = 0;
  Hidden hidden{x, 1};
  // The first process adds the residual, so that the parts add up to the new hidden states.
  auto load = [&](int tile, int row, int row_of_x) {
    HiddenParts found = {};
    const T* from = hidden.first + min(row_of_x, batch - 1) * HIDDEN + tile * TILE + row;
#pragma unroll
    for (int i = 0; i < RANKS; ++i) {
      if (rank == 0 && i < hidden.count) found.parts[i] = load_early(from + i * PART);
    }
    return found;
  };
  auto send = [&](int tile, int row, int row_of_x, float value, HiddenParts before) {
    if (row_of_x >= batch) return;
    T rounded = round_to<T>(before.sum() + value);
#pragma unroll
    for (int to = 0; to < RANKS; ++to) {
      reinterpret_cast<T*>(peers.outbox(to))[row_of_x * HIDDEN + tile * TILE + row] = rounded;
    }
  };
  auto receive = [&] { hidden = Hidden{reinterpret_cast<const T*>(peers.inbox()), RANKS}; };
#pragma unroll 1
  for (int i = 0; i < config::LAYERS; ++i) {
    const Layer<T>& layer = layers[i];
    qkv(stream, finished, peers, grid, layer, hidden, batch, products);
    BatchCache<T> cache{layer.keys, layer.values, padding, *filled, capacity};
    attend(grid, cache, batch, products, attended);
    output(stream, finished, grid, peers, attended, batch, load, send);
    receive();
    gate_up(stream, finished, peers, grid, layer, hidden, batch, gated);
    down(stream, finished, grid, peers, gated, batch, load, send);
    receive();
  }
  peers.wait();
  for (int unit = blockIdx.x * config::THREADS + threadIdx.x; unit < batch * HIDDEN / 8;
       unit += gridDim.x * config::THREADS) {
    reinterpret_cast<uint4*>(out)[unit] = hidden(8 * unit);
  }
  peers.close();
}
