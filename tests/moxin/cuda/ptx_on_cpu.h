// PTX instructions on the CPU: functions of their names (threads_on_cpu.py).

#pragma once

#include "threads_on_cpu.h"

// Bits of two types of 16 bits as floats, and back, rounded to nearest even.
struct Bf16 {
  static float read(unsigned int bits) { return __uint_as_float(bits << 16); }
  static unsigned int round(float x) {
    unsigned int bits = __float_as_uint(x);
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  }
};

struct F16 {
  static float read(unsigned int bits) {
    unsigned short half = bits;
    _Float16 x;
    memcpy(&x, &half, 2);
    return x;
  }
  static unsigned int round(float x) {
    _Float16 half = x;
    unsigned short bits;
    memcpy(&bits, &half, 2);
    return bits;
  }
};

template <typename F, typename Function>
unsigned int of_pairs(unsigned int a, unsigned int b, unsigned int c, Function function) {
  unsigned int low = F::round(function(F::read(a & 0xffff), F::read(b & 0xffff), F::read(c & 0xffff)));
  return low | F::round(function(F::read(a >> 16), F::read(b >> 16), F::read(c >> 16))) << 16;
}

inline float multiply_add_once(float a, float b, float c) { return a * b + c; }
inline float larger(float a, float b, float) { return max(a, b); }

// sums [16, 8] += a [16, K] b [K, 8], by the fragments of a warp's lanes.
template <typename F, int K>
void multiply_fragments(float* sums, const unsigned int* a, const unsigned int* b) {
  Warp& warp = this_warp();
  int lane = threadIdx.x % WARP;
  memcpy(warp.a[lane], a, K / 4 * 4);
  memcpy(warp.b[lane], b, K / 8 * 4);
  wait_for_warp();
  for (int i = 0; i < 4; ++i) {
    int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
    float sum = 0;
    for (int k = 0; k < K; ++k) {
      unsigned int x = warp.a[row % 8 * 4 + k % 8 / 2][row / 8 + k / 8 * 2];
      unsigned int y = warp.b[column * 4 + k % 8 / 2][k / 8];
      sum += F::read(x >> k % 2 * 16 & 0xffff) * F::read(y >> k % 2 * 16 & 0xffff);
    }
    sums[i] += sum;
  }
  wait_for_warp();
}

// Address in shared memory of value `k` of a column of b, by its descriptor: in rows of 128 bytes, the
// chunks of which are swizzled, or in matrices of eight columns and eight values.
inline unsigned int address_of(unsigned long long descriptor, int column, int k) {
  auto field = [&](int shift) { return static_cast<unsigned int>(descriptor >> shift & 0x3fff) << 4; };
  unsigned int at = field(0) + column / 8 * field(32);
  if (descriptor >> 62 == 0) return at + column % 8 * 16 + k / 8 * field(16) + k % 8 * 2;
  at += column % 8 * 128 + k * 2;
  return at ^ (at >> 7 & 7) << 4;
}

// sums [64, N] += a [64, 16] b [16, N], a in the fragments of a warpgroup's lanes, b in shared memory.
template <typename F, int N>
void multiply_warpgroup(float* sums, const unsigned int* a, unsigned long long descriptor) {
  int thread = threadIdx.x % WARPGROUP, lane = thread % WARP, first = thread / WARP * WARP;
  Warpgroup& group = block->warpgroups[threadIdx.x / WARPGROUP];
  memcpy(group.a[thread], a, sizeof(group.a[thread]));
  wait_for(group.meeting, WARPGROUP);
  for (int i = 0; i < N / 2; ++i) {
    int row = lane / 4 + i % 4 / 2 * 8, column = i / 4 * 8 + lane % 4 * 2 + i % 2;
    for (int k = 0; k < 16; ++k) {
      unsigned int x = group.a[first + row % 8 * 4 + k % 8 / 2][row / 8 + k / 8 * 2];
      unsigned short y;
      memcpy(&y, shared_memory() + address_of(descriptor, column, k), 2);
      sums[i] += F::read(x >> k % 2 * 16 & 0xffff) * F::read(y);
    }
  }
  wait_for(group.meeting, WARPGROUP);
}

// The same with a in shared memory, as b.
template <typename F, int N>
void multiply_warpgroup(float* sums, unsigned long long a, unsigned long long b) {
  int thread = threadIdx.x % WARPGROUP, lane = thread % WARP, warp = thread / WARP;
  Warpgroup& group = block->warpgroups[threadIdx.x / WARPGROUP];
  wait_for(group.meeting, WARPGROUP);
  for (int i = 0; i < N / 2; ++i) {
    int row = warp * 16 + lane / 4 + i % 4 / 2 * 8, column = i / 4 * 8 + lane % 4 * 2 + i % 2;
    for (int k = 0; k < 16; ++k) {
      unsigned short x, y;
      memcpy(&x, shared_memory() + address_of(a, row, k), 2);
      memcpy(&y, shared_memory() + address_of(b, column, k), 2);
      sums[i] += F::read(x) * F::read(y);
    }
  }
  wait_for(group.meeting, WARPGROUP);
}

inline long long clock64() { return 0; }

namespace ptx {

inline void mbarrier_init_shared_cta_b64(unsigned int at, int count) {
  block->barriers[at] = {count, count};
}
inline void fence_mbarrier_init_release_cluster() {}
inline void mbarrier_arrive_expect_tx_shared_cta_b64(unsigned int at, int bytes) {
  Barrier& barrier = block->barriers.at(at);
  barrier.bytes += bytes;
  --barrier.pending;
  barrier.settle();
}
inline void mbarrier_arrive_shared_cta_b64(unsigned int at) {
  --block->barriers.at(at).pending;
  block->barriers.at(at).settle();
}
inline void mbarrier_try_wait_parity_shared_cta_b64(
    unsigned int& ended, unsigned int at, unsigned int parity) {
  ended = block->barriers.at(at).parity != parity;
  if (!ended) let_others_run();
}
inline void mbarrier_test_wait_parity_shared_cta_b64(
    unsigned int& ended, unsigned int at, unsigned int parity) {
  mbarrier_try_wait_parity_shared_cta_b64(ended, at, parity);
}
inline void cp_async_bulk_shared_cluster_global_mbarrier_complete_tx_bytes(
    unsigned int to, const void* from, int bytes, unsigned int barrier) {
  memcpy(shared_memory() + to, from, bytes);
  block->barriers.at(barrier).bytes -= bytes;
  block->barriers.at(barrier).settle();
}
inline void trap() { abort(); }
inline void setmaxnreg_dec_sync_aligned_u32(int) {}
inline void setmaxnreg_inc_sync_aligned_u32(int) {}
inline void wgmma_fence_sync_aligned() {}
inline void fence_proxy_async_shared_cta() {}
inline void wgmma_commit_group_sync_aligned() {}
inline void wgmma_wait_group_sync_aligned(int) {}

// From the pair of columns of a lane's row of an 8 x 8 matrix to the pair of rows of its column.
inline void movmatrix_sync_aligned_m8n8_trans_b16(unsigned int& pair) {
  Warp& warp = this_warp();
  int lane = threadIdx.x % WARP, column = lane / 4;
  warp.words[lane] = pair;
  wait_for_warp();
  unsigned int result = 0;
  for (int i = 0; i < 2; ++i) {
    unsigned int words = warp.words[(lane % 4 * 2 + i) * 4 + column / 2];
    result |= (words >> column % 2 * 16 & 0xffff) << 16 * i;
  }
  wait_for_warp();
  pair = result;
}

template <typename F>
void mma(float& s0, float& s1, float& s2, float& s3, unsigned int a0, unsigned int a1,
         unsigned int a2, unsigned int a3, unsigned int b0, unsigned int b1) {
  float sums[] = {s0, s1, s2, s3};
  const unsigned int a[] = {a0, a1, a2, a3}, b[] = {b0, b1};
  multiply_fragments<F, 16>(sums, a, b);
  s0 = sums[0], s1 = sums[1], s2 = sums[2], s3 = sums[3];
}

inline void mma_sync_aligned_m16n8k8_row_col_f32_bf16_bf16_f32(
    float& s0, float& s1, float& s2, float& s3, unsigned int a0, unsigned int a1, unsigned int b) {
  float sums[] = {s0, s1, s2, s3};
  const unsigned int a[] = {a0, a1};
  multiply_fragments<Bf16, 8>(sums, a, &b);
  s0 = sums[0], s1 = sums[1], s2 = sums[2], s3 = sums[3];
}

constexpr auto mma_sync_aligned_m16n8k16_row_col_f32_bf16_bf16_f32 = mma<Bf16>;
constexpr auto mma_sync_aligned_m16n8k16_row_col_f32_f16_f16_f32 = mma<F16>;

inline void fma_rn_bf16x2(unsigned int& d, unsigned int a, unsigned int b, unsigned int c) {
  d = of_pairs<Bf16>(a, b, c, multiply_add_once);
}
inline void fma_rn_f16x2(unsigned int& d, unsigned int a, unsigned int b, unsigned int c) {
  d = of_pairs<F16>(a, b, c, multiply_add_once);
}
inline void max_bf16x2(unsigned int& d, unsigned int a, unsigned int b) {
  d = of_pairs<Bf16>(a, b, 0, larger);
}
inline void ex2_approx_ftz_f32(float& y, float x) { y = exp2f(x); }
inline void cvt_f32_f16(float& y, unsigned short x) { y = F16::read(x); }
inline void cvt_rn_bf16_f32(unsigned short& y, float x) { y = Bf16::round(x); }
inline void cvt_rn_f16_f32(unsigned short& y, float x) { y = F16::round(x); }
inline void cvt_rn_bf16x2_f32(unsigned int& y, float high, float low) {
  y = Bf16::round(low) | Bf16::round(high) << 16;
}
inline void cvt_rn_f16x2_f32(unsigned int& y, float high, float low) {
  y = F16::round(low) | F16::round(high) << 16;
}

template <typename X>
void load(X& to, const void* from) { memcpy(&to, from, sizeof(X)); }
inline void ld_global_u16(unsigned short& x, const void* from) { load(x, from); }
inline void ld_global_nc_u16(unsigned short& x, const void* from) { load(x, from); }
inline void ld_global_nc_u16(unsigned int& x, const void* from) {
  unsigned short value;
  load(value, from);
  x = value;
}
inline void ld_global_nc_u32(unsigned int& x, const void* from) { load(x, from); }
inline void ld_global_nc_v2_u32(unsigned int& x, unsigned int& y, const void* from) {
  if (reinterpret_cast<size_t>(from) % 8) abort();  // misaligned
  load(x, from);
  load(y, static_cast<const unsigned int*>(from) + 1);
}
inline void ld_global_nc_L1_no_allocate_L2_128B_v4_u32(
    unsigned int& x, unsigned int& y, unsigned int& z, unsigned int& w, const void* from) {
  if (reinterpret_cast<size_t>(from) % 16) abort();  // misaligned
  const unsigned int* words = static_cast<const unsigned int*>(from);
  load(x, words), load(y, words + 1), load(z, words + 2), load(w, words + 3);
}
inline void ld_acquire_gpu_global_u32(unsigned int& x, const unsigned int* from) {
  x = __atomic_load_n(from, __ATOMIC_SEQ_CST);
  sched_yield();
}

inline void ld_global_f32(float& x, const void* from) { load(x, from); }
inline void ld_acquire_sys_global_u32(unsigned int& x, const void* from) {
  ld_acquire_gpu_global_u32(x, static_cast<const unsigned int*>(from));
}
inline void red_relaxed_sys_global_add_u32(void* to) {
  atomicAdd(static_cast<unsigned int*>(to), 1);
}
// Sixteen bytes of which eight arrive together.
inline void st_volatile_global_v4_u32(
    uint4* to, unsigned int x, unsigned int y, unsigned int z, unsigned int w) {
  auto words = reinterpret_cast<unsigned long long*>(to);
  __atomic_store_n(words, x | static_cast<unsigned long long>(y) << 32, __ATOMIC_SEQ_CST);
  __atomic_store_n(words + 1, z | static_cast<unsigned long long>(w) << 32, __ATOMIC_SEQ_CST);
}
inline void ld_volatile_global_v4_u32(
    unsigned int& x, unsigned int& y, unsigned int& z, unsigned int& w, const uint4* from) {
  auto words = reinterpret_cast<const unsigned long long*>(from);
  unsigned long long low = __atomic_load_n(words, __ATOMIC_SEQ_CST);
  unsigned long long high = __atomic_load_n(words + 1, __ATOMIC_SEQ_CST);
  x = low, y = low >> 32, z = high, w = high >> 32;
  sched_yield();
}
inline void mov_u64(unsigned long long& x) {  // %globaltimer
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  x = now.tv_sec * 1000000000ull + now.tv_nsec;
}
inline void ld_global_cg_v4_f32(float& x, float& y, float& z, float& w, const float4* from) {
  if (reinterpret_cast<size_t>(from) % 16) abort();  // misaligned
  x = from->x, y = from->y, z = from->z, w = from->w;
}

inline void copy(unsigned int to, const void* from, int bytes) {
  if (to % bytes || reinterpret_cast<size_t>(from) % bytes) abort();  // misaligned
  block->threads[threadIdx.x].open.push_back({to, from, bytes});
}
inline void cp_async_ca_shared_global(unsigned int to, const void* from, int bytes) {
  copy(to, from, bytes);
}
// Zeros if `bytes` is 0.
inline void cp_async_cg_shared_global(unsigned int to, const void* from, int bytes) {
  static constexpr unsigned char zeros[16] = {};
  copy(to, bytes ? from : zeros, 16);
}
inline void cp_async_cg_shared_global_L2_128B(unsigned int to, const void* from) {
  copy(to, from, 16);
}
inline void cp_async_ca_shared_global_L2_128B(unsigned int to, const void* from) { copy(to, from, 8); }
// Copies are done here.
inline void cp_async_mbarrier_arrive_noinc_shared_cta_b64(unsigned int at) {
  Context& context = block->threads[threadIdx.x];
  for (Copy& c : context.open) memcpy(shared_memory() + c.to, c.from, c.bytes);
  context.open.clear();
  mbarrier_arrive_shared_cta_b64(at);
}
inline void cp_async_commit_group() {
  Context& context = block->threads[threadIdx.x];
  context.groups.push_back(std::move(context.open));
  context.open.clear();
}
inline void cp_async_wait_group(int pending = 0) {  // the text of one without operand has 0
  auto& groups = block->threads[threadIdx.x].groups;
  for (; static_cast<int>(groups.size()) > pending; groups.pop_front()) {
    for (Copy& c : groups.front()) memcpy(shared_memory() + c.to, c.from, c.bytes);
  }
}

inline void bar_sync(int number, int threads) { wait_for(block->teams[number], threads); }

// Four 8 x 8 matrices, of which lane i gives the address of row i % 8 of matrix i / 8; a lane receives a
// pair of a row's columns, or of a column's rows.
template <bool IS_TRANSPOSED>
void load_matrices(unsigned int& a, unsigned int& b, unsigned int& c, unsigned int& d,
                   unsigned int address) {
  Warp& warp = this_warp();
  int lane = threadIdx.x % WARP, row = lane / 4, column = lane % 4 * 2;
  if (address % 16) abort();  // misaligned
  warp.words[lane] = address;
  wait_for_warp();
  unsigned int* results[] = {&a, &b, &c, &d};
  for (int matrix = 0; matrix < 4; ++matrix) {
    unsigned short pair[2];
    for (int i = 0; i < 2; ++i) {
      int from = IS_TRANSPOSED ? column + i : row, at = IS_TRANSPOSED ? row : column + i;
      memcpy(pair + i, shared_memory() + warp.words[matrix * 8 + from] + at * 2, 2);
    }
    *results[matrix] = pair[0] | static_cast<unsigned int>(pair[1]) << 16;
  }
  wait_for_warp();
}

constexpr auto ldmatrix_sync_aligned_m8n8_x4_shared_b16 = load_matrices<false>;
constexpr auto ldmatrix_sync_aligned_m8n8_x4_trans_shared_b16 = load_matrices<true>;

inline void mov_u32(int& x) { x = threadIdx.x; }  // %tid.x
inline void prefetch_global_L2(const void*) {}

template <typename... Operands>
void unsupported(Operands...) { abort(); }

}  // namespace ptx
