// One token of one sequence through LAYERS layers of a decoder that is sharded over GPUs: heads and
// MLP columns of this process, in one launch. o_proj and down_proj give parts of a sum, which every
// process writes into the memory of all (peers.cuh).
//
// Cost: as in fused_step.cu for this process's weights. Each of the two sums of a layer also sends
// HIDDEN floats to each other process, and its barrier takes a round trip.
//
// Constants that fused_step.py defines in namespace config: those of fused_step.cu for this
// process's heads and columns; RANKS (processes), PATIENCE (seconds).

#include "peers.cuh"
#include "scratch_memory.cuh"
#include "step_products.cuh"

namespace moxin {

// A hidden state as it is loaded.
struct HiddenParts {
  float parts[config::RANKS];
};

template <>
__device__ inline float to_float(HiddenParts x) {
  float sum = 0;
#pragma unroll
  for (float part : x.parts) sum += part;
  return to_float(round_to<T>(sum));
}

// Hidden states: an array, or the sum of the parts of all processes, rounded to T.
struct Hidden {
  const T* array;  // null for a sum
  const unsigned char* parts;
  int part_bytes;

  // Eight values.
  __device__ uint4 operator()(int i) const {
    if (array) return reinterpret_cast<const uint4*>(array)[i];
    float values[8] = {};
#pragma unroll
    for (int rank = 0; rank < config::RANKS; ++rank) {
      auto from = reinterpret_cast<const float4*>(parts + static_cast<long long>(rank) * part_bytes);
      float4 low = from[2 * i], high = from[2 * i + 1];
      const float added[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
      for (int k = 0; k < 8; ++k) values[k] += added[k];
    }
    return pack_eight<T>(values);
  }

  // One value.
  __device__ HiddenParts load(int i) const {
    HiddenParts found = {};
    if (array) {
      found.parts[0] = to_float(load_early(array + i));
    } else {
#pragma unroll
      for (int rank = 0; rank < config::RANKS; ++rank) {
        const void* from = parts + static_cast<long long>(rank) * part_bytes + i * sizeof(float);
        asm volatile("ld.global.f32 %0, [%1];" : "=f"(found.parts[rank]) : "l"(from));
      }
    }
    return found;
  }
};

}  // namespace moxin

extern "C" __global__ void __launch_bounds__(config::THREADS, 1) sharded_step(
    const config::T* x,             // [HIDDEN]
    const int* position,            // position[0]: tokens in the cache, where this one goes
    unsigned int* arrivals,         // [4] zeros, the barrier's counter
    const int* padding,             // padding[0]: masked positions at the start of the cache
    const unsigned int* addresses,  // [RANKS, 2], as in peers.cuh
    LAYER_PARAMETERS,               // as in fused_step.cu
    config::T* out,                 // [HIDDEN]
    unsigned int* scratch,          // see below
    int capacity,                   // positions of the cache
    int rank, int half_bytes) {     // rank of this process; half_bytes as in peers.cuh
  using namespace moxin;
  __shared__ Layer<T> layers[config::LAYERS];
  FILL_LAYERS(layers)
  skip_padding(layers, *padding);
  __syncthreads();
  StepWeights weights(layers, shared + config::STAGED);
  GridBarrier grid{arrivals};
  constexpr int PART_BYTES = config::HIDDEN * sizeof(float);
  Peers<config::RANKS> peers{addresses, rank, half_bytes, PART_BYTES};
  int last = *position - *padding;
  ScratchMemory memory(scratch);
  T* queries = memory.take<T>(ATTENDED);
  Attended attended{memory.take<float>(config::HEADS * config::SPLITS * (config::HEAD_DIM + 2))};
  T* gated = memory.take<T>(config::INTERMEDIATE);
  Hidden hidden{x, nullptr, PART_BYTES};
  // The first process adds the residual, so that the parts add up to the new hidden states.
  auto load = [&](int i) { return rank == 0 ? hidden.load(i) : HiddenParts{}; };
  auto send = [&](int i, int lane, float value) {
#pragma unroll
    for (int to = 0; to < config::RANKS; ++to) {
      if (lane == to) reinterpret_cast<float*>(peers.outbox(to))[i] = value;
    }
  };
  auto receive = [&] { hidden = Hidden{nullptr, peers.inbox(), PART_BYTES}; };
#pragma unroll 1
  for (int i = 0; i < config::LAYERS; ++i) {
    const Layer<T>& layer = layers[i];
    qkv(weights, peers, grid, layer, hidden, last, capacity, queries);
    attend(weights, grid, layer, last, capacity, queries, attended);
    project<OUTPUT>(weights, grid, peers, layer, attended, load, send);
    receive();
    gate_up(weights, peers, grid, layer, hidden, gated);
    project<DOWN>(weights, grid, peers, layer, Vector{gated}, load, send);
    receive();
  }
  peers.wait();
  int unit = blockIdx.x * config::THREADS + threadIdx.x;
  if (unit < config::HIDDEN / 8) reinterpret_cast<uint4*>(out)[unit] = hidden(unit);
  peers.close();
}
