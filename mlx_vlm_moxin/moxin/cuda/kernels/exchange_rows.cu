// sum = residual + the products of all processes and normed = RMS norm of sum, [rows, WIDTH] each, as
// exchange_norm.cu, for few rows: a thread block per row, which needs that row of the other processes
// alone. So there is no barrier: each eight bytes of a row are sent together with the number of the
// message, and a thread waits until it reads this number.
//
// A process's memory has, after what peers.cuh describes, a number for each row, which its kernels
// count up, and two halves of mail [RANKS, MAIL_ROWS, MAIL_BYTES], which take turns. A row of mail is
// not written before its reader has finished with it: its writer has received the row after it, which
// the reader's next kernel sends.
//
// Cost: the partial products (`splits` floats per value), and twice the bytes of rows * WIDTH values
// through NVLink to each other process.
//
// Constants that exchange.py defines in namespace config: T, Product (as in add_norm.cu), WIDTH,
// EPS, THREADS, RANKS (processes), PATIENCE (seconds).

#include "partial_products.cuh"
#include "peers.cuh"

namespace moxin {

constexpr int MAIL_NUMBERS = 1024;  // offset of the rows' numbers in a process's memory
constexpr int MAIL_ROWS = 64, MAIL_BYTES = 32 << 10;  // as in peers.py

// Sixteen bytes of a message: eight of its contents, and its number twice, because eight bytes arrive
// together.
__device__ inline void send(uint4* to, unsigned int first, unsigned int second, unsigned int number) {
  asm volatile("st.volatile.global.v4.u32 [%0], {%1, %2, %3, %4};"
               : : "l"(to), "r"(first), "r"(number), "r"(second), "r"(number) : "memory");
}

__device__ inline uint4 peek(const uint4* from) {
  uint4 found;
  asm volatile("ld.volatile.global.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(found.x), "=r"(found.y), "=r"(found.z), "=r"(found.w) : "l"(from) : "memory");
  return found;
}

// Waits for the message at `from`, whose second half is `distance` units later.
__device__ inline uint4 receive(const uint4* from, int distance, unsigned int number) {
  unsigned long long start = 0;
  for (unsigned int polls = 1;; ++polls) {
    uint4 low = peek(from), high = peek(from + distance);
    bool is_here = low.y == number && low.w == number && high.y == number && high.w == number;
    if (is_here) return uint4{low.x, low.z, high.x, high.z};
    if (polls % 1024) continue;
    unsigned long long now = Peers<config::RANKS>::nanoseconds();
    if (!start) start = now;
    if (now - start > config::PATIENCE * 1000000000ull) asm volatile("trap;");
  }
}

}  // namespace moxin

extern "C" __global__ void __launch_bounds__(config::THREADS, 1) exchange_rows(
    const config::Product* product,  // as in add_norm.cu, of this process
    const config::T* residual, const config::T* weight,
    const unsigned int* addresses,   // [RANKS, 2], as in peers.cuh
    config::T* sum, config::T* normed,
    int rows, int splits, int rank, int half_bytes) {
  using namespace moxin;
  using config::T;
  constexpr int RANKS = config::RANKS, WIDTH = config::WIDTH, UNITS = WIDTH / 8;
  constexpr int ROUNDS = (UNITS + config::THREADS - 1) / config::THREADS;
  int row = blockIdx.x;
  auto memory = reinterpret_cast<unsigned char* const*>(addresses);
  auto numbers = reinterpret_cast<unsigned int*>(memory[rank] + MAIL_NUMBERS);
  unsigned int number = numbers[row] + 1;
  // This row of process `of` in the memory of process `in`.
  auto mail = [&](int in, int of) {
    long long at = (number % 2 * RANKS + of) * MAIL_ROWS + row;
    return reinterpret_cast<uint4*>(memory[in] + PEER_PARTS + 2ll * half_bytes + at * MAIL_BYTES);
  };
  long long first = static_cast<long long>(row) * WIDTH;
  uint4 mine[ROUNDS], residuals[ROUNDS], weights[ROUNDS];
#pragma unroll
  for (int round = 0; round < ROUNDS; ++round) {
    int unit = round * config::THREADS + threadIdx.x;
    if (unit >= UNITS) continue;
    residuals[round] = reinterpret_cast<const uint4*>(residual + first)[unit];
    weights[round] = reinterpret_cast<const uint4*>(weight)[unit];
    float values[1][8];
    long long stride = static_cast<long long>(rows) * WIDTH;
    sum_parts<T, 4>(product + first + 8 * unit, stride, splits, 0, values);
    uint4 part = mine[round] = pack_eight<T>(values[0]);
#pragma unroll
    for (int to = 0; to < RANKS; ++to) {
      if (to == rank) continue;
      send(mail(to, rank) + unit, part.x, part.y, number);
      send(mail(to, rank) + UNITS + unit, part.z, part.w, number);
    }
  }
  float values[ROUNDS][8] = {}, squares = 0;
#pragma unroll
  for (int round = 0; round < ROUNDS; ++round) {
    int unit = round * config::THREADS + threadIdx.x;
    if (unit >= UNITS) continue;
    // All processes add the same parts in the same order.
#pragma unroll
    for (int of = 0; of < RANKS; ++of) {
      uint4 part = of == rank ? mine[round] : receive(mail(rank, of) + unit, UNITS, number);
      float added[8];
      unpack<T>(part, added);
#pragma unroll
      for (int i = 0; i < 8; ++i) values[round][i] += added[i];
    }
    float before[8];
    unpack<T>(residuals[round], before);
#pragma unroll
    for (int i = 0; i < 8; ++i) values[round][i] += before[i];
    uint4 rounded = pack_eight<T>(values[round]);
    reinterpret_cast<uint4*>(sum + first)[unit] = rounded;
    unpack<T>(rounded, values[round]);
#pragma unroll
    for (float value : values[round]) squares += value * value;
  }
  float scale = rsqrtf(block_sum<config::THREADS>(squares) / WIDTH + config::EPS);
#pragma unroll
  for (int round = 0; round < ROUNDS; ++round) {
    int unit = round * config::THREADS + threadIdx.x;
    if (unit >= UNITS) continue;
    float factors[8];
    unpack<T>(weights[round], factors);
#pragma unroll
    for (int i = 0; i < 8; ++i) values[round][i] *= scale * factors[i];
    reinterpret_cast<uint4*>(normed + first)[unit] = pack_eight<T>(values[round]);
  }
  if (threadIdx.x == 0) numbers[row] = number;  // all threads have read it: block_sum waits
}
