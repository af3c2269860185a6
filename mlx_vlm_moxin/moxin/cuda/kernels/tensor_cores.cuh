// Instructions around tensor cores: asynchronous copies to shared memory, loads in the order of a
// fragment, and the product.

#pragma once

#include "dtypes.cuh"

namespace moxin {

// Copies 16 bytes to shared memory, or 16 zero bytes if the source is not `inside`.
__device__ inline void copy_async(unsigned int to, const void* from, bool inside) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
               :
               : "r"(to), "l"(from), "r"(inside ? 16 : 0));
}

// The same for weights, which are read once.
__device__ inline void copy_once(unsigned int to, const void* from) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;" : : "r"(to), "l"(from));
}

// Copies 4 or 8 bytes.
template <int BYTES>
__device__ inline void copy_few(unsigned int to, const void* from) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" : : "r"(to), "l"(from), "n"(BYTES));
}

// Copies 8 bytes, and brings the line of 128 bytes into L2.
__device__ inline void copy_scales(unsigned int to, const void* from) {
  asm volatile("cp.async.ca.shared.global.L2::128B [%0], [%1], 8;" : : "r"(to), "l"(from));
}

// Ends a group of copies, which may be empty.
__device__ inline void commit_copies() { asm volatile("cp.async.commit_group;" : : : "memory"); }

// Waits until all but the last PENDING groups of this thread's copies are done.
template <int PENDING>
__device__ inline void wait_copies() {
  asm volatile("cp.async.wait_group %0;" : : "n"(PENDING) : "memory");
}

// Four 8 x 8 matrices of 16-bit values; lane i gives the address of row i % 8 of matrix i / 8.
__device__ inline void load_matrices(unsigned int* registers, unsigned int address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(registers[0]), "=r"(registers[1]), "=r"(registers[2]), "=r"(registers[3])
               : "r"(address));
}

__device__ inline void load_matrices_transposed(unsigned int* registers, unsigned int address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(registers[0]), "=r"(registers[1]), "=r"(registers[2]), "=r"(registers[3])
               : "r"(address));
}

// sums [16, 8] += a [16, 16] b [16, 8] (mma m16n8k16 with float sums).
template <typename T>
__device__ inline void multiply_add(
    float* sums, const unsigned int* a, const unsigned int* b);

template <>
__device__ inline void multiply_add<bfloat16>(
    float* sums, const unsigned int* a, const unsigned int* b) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

template <>
__device__ inline void multiply_add<float16>(
    float* sums, const unsigned int* a, const unsigned int* b) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// The same for b [8, 8] (mma m16n8k8).
__device__ inline void multiply_add_short(float* sums, const unsigned int* a, unsigned int b) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 "
      "{%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(a[0]), "r"(a[1]), "r"(b));
}

}  // namespace moxin
