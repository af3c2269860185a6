// sum = residual + the products of all processes and normed = RMS norm of sum, [rows, WIDTH] each,
// for a decoder that is sharded over GPUs (peers.cuh). A process's product is rounded to T. normed is
// in `Order`, for the next product (arranged.cuh). For many rows; exchange_rows.cu is for few.
//
// Cost: the partial products (`splits` floats per value), RANKS * rows * WIDTH values written, of
// which all but this process's go through NVLink, and twice as many read; the barrier.
//
// Constants that exchange.py defines in namespace config: T, Product (as in add_norm.cu), WIDTH,
// EPS, Order, THREADS, RANKS (processes), PATIENCE (seconds).

#include "partial_products.cuh"
#include "peers.cuh"

extern "C" __global__ void __launch_bounds__(config::THREADS, 1) exchange_norm(
    const config::Product* product,  // as in add_norm.cu, of this process
    const config::T* residual, const config::T* weight,
    const unsigned int* addresses,   // [RANKS, 2], as in peers.cuh
    config::T* sum, config::T* normed,
    int rows, int splits, int rank, int half_bytes) {
  using namespace moxin;
  using config::T;
  constexpr int RANKS = config::RANKS, UNITS = config::WIDTH / 8;
  long long values_of_part = static_cast<long long>(rows) * config::WIDTH;
  Peers<RANKS> peers{addresses, rank, half_bytes, static_cast<int>(values_of_part * sizeof(T))};
  for (int unit = blockIdx.x * config::THREADS + threadIdx.x; unit < rows * UNITS;
       unit += gridDim.x * config::THREADS) {
    float values[1][8];
    sum_parts<T, 4>(product + 8ll * unit, values_of_part, splits, 0, values);
    uint4 rounded = pack_eight<T>(values[0]);
#pragma unroll
    for (int to = 0; to < RANKS; ++to) {
      reinterpret_cast<uint4*>(peers.outbox(to))[unit] = rounded;
    }
  }
  peers.arrive();
  peers.wait();
  auto parts = reinterpret_cast<const T*>(peers.inbox());
  for (int row = blockIdx.x; row < rows; row += gridDim.x) {
    add_and_norm<T, config::WIDTH, config::THREADS, config::Order>(
        parts, residual, weight, RANKS, rows, config::EPS, sum, normed, row);
    __syncthreads();
  }
  peers.close();
}
