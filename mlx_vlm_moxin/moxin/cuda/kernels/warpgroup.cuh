// Products of a warpgroup (128 threads) on Hopper GPUs, sm_90a: both operands come from shared memory, and
// the tensor cores read them while the threads go on.

#pragma once

#include "dtypes.cuh"

namespace moxin {

constexpr int WARPGROUP_THREADS = 128;
// Rows and columns of one product.
constexpr int WARPGROUP_ROWS = 64;
constexpr int WARPGROUP_COLUMNS = 136;
constexpr int WARPGROUP_SUMS = WARPGROUP_ROWS * WARPGROUP_COLUMNS / WARPGROUP_THREADS;

// Descriptor of a tile in shared memory whose rows have 128 bytes, aligned to 1,024 bytes, in which the
// index of every 16 bytes of a row is exclusive-ored with row % 8. The next 16 values of all rows
// have a descriptor that is NEXT_VALUES higher.
__device__ inline unsigned long long describe_tile(unsigned int tile) {
  constexpr unsigned long long SWIZZLE_128_BYTES = 1ull << 62, EIGHT_ROWS = 1024 >> 4;
  return SWIZZLE_128_BYTES | EIGHT_ROWS << 32 | 1ull << 16 | tile >> 4;
}

constexpr int NEXT_VALUES = 2;

// Before the first multiply_tiles after sums were written.
__device__ inline void begin_products() {
  asm volatile("wgmma.fence.sync.aligned;" : : : "memory");
}

// Ends a group of products.
__device__ inline void commit_products() {
  asm volatile("wgmma.commit_group.sync.aligned;" : : : "memory");
}

// Waits until all but the last PENDING groups are done.
template <int PENDING>
__device__ inline void wait_products() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" : : "n"(PENDING) : "memory");
}

// Keeps the compiler from reading the sums earlier.
__device__ inline void use_sums(float (&sums)[WARPGROUP_SUMS]) {
#pragma unroll
  for (float& sum : sums) asm volatile("" : "+f"(sum) : : "memory");
}

// sums [64, 136] += a [64, 16] times the transpose of b [136, 16]. Of a thread of warp w of the
// warpgroup, sums[4 * j + 2 * h + i] is in row 16 * w + lane / 4 + 8 * h and column 8 * j + lane % 4 * 2 + i.
template <typename T>
__device__ inline void multiply_tiles(
    float (&sums)[WARPGROUP_SUMS], unsigned long long a, unsigned long long b);

#define MOXIN_MULTIPLY_TILES(T, NAME)                                                              \
  template <>                                                                                      \
  __device__ inline void multiply_tiles<T>(                                                        \
      float (&d)[WARPGROUP_SUMS], unsigned long long a, unsigned long long b) {                    \
    asm volatile(                                                                                  \
        "{ .reg .pred add;\n setp.ne.b32 add, 1, 0;\n"                                             \
        "wgmma.mma_async.sync.aligned.m64n136k16.f32." NAME "." NAME " {"                          \
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, "              \
        "%17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, "    \
        "%34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, "    \
        "%51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, %64, %65, %66, %67"      \
        "}, %68, %69, add, 1, 1, 0, 0; }"                                                          \
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]),                              \
          "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), "+f"(d[8]), "+f"(d[9]),                              \
          "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]),                         \
          "+f"(d[15]), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]),                         \
          "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]),                         \
          "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]),                         \
          "+f"(d[30]), "+f"(d[31]), "+f"(d[32]), "+f"(d[33]), "+f"(d[34]),                         \
          "+f"(d[35]), "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]),                         \
          "+f"(d[40]), "+f"(d[41]), "+f"(d[42]), "+f"(d[43]), "+f"(d[44]),                         \
          "+f"(d[45]), "+f"(d[46]), "+f"(d[47]), "+f"(d[48]), "+f"(d[49]),                         \
          "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]),                         \
          "+f"(d[55]), "+f"(d[56]), "+f"(d[57]), "+f"(d[58]), "+f"(d[59]),                         \
          "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63]), "+f"(d[64]),                         \
          "+f"(d[65]), "+f"(d[66]), "+f"(d[67])                                                    \
        : "l"(a), "l"(b));                                                                         \
  }

MOXIN_MULTIPLY_TILES(bfloat16, "bf16")
MOXIN_MULTIPLY_TILES(float16, "f16")
#undef MOXIN_MULTIPLY_TILES

}  // namespace moxin
