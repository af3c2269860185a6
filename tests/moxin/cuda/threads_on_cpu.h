// CUDA's threads on the CPU: those of a block are contexts of one thread, which switch where they
// wait; blocks are threads.

#pragma once

#include <sched.h>
#include <setjmp.h>
#include <time.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <thread>
#include <vector>

#define __device__
#define __host__
#define __global__
#define __noinline__
#define __shared__ static thread_local
#define __align__(bytes) alignas(bytes)
#define __launch_bounds__(...)
#define __syncthreads wait_for_block
#define __syncwarp wait_for_warp
#define __expf expf
#define __fdividef(a, b) ((a) / (b))
using std::max, std::min;

inline int min(int a, unsigned int b) { return min(a, static_cast<int>(b)); }

struct uint2 { unsigned int x, y; };
struct alignas(16) uint4 { unsigned int x, y, z, w; };
struct float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct Dimension { unsigned int x; };
inline thread_local Dimension threadIdx, blockIdx, gridDim;

constexpr int WARP = 32, STACK = 96 << 10, SHARED = 240000;

struct Copy { unsigned int to; const void* from; int bytes; };

// Only the first switch to a context uses its ucontext_t: swapcontext calls the kernel to exchange
// signal masks, _setjmp and _longjmp do not.
struct Context {
  ucontext_t start;
  jmp_buf state;
  bool has_begun = false;
  std::vector<char> stack = std::vector<char>(STACK);
  bool is_done = false;
  std::deque<std::vector<Copy>> groups;  // of asynchronous copies, which are done when waited for
  std::vector<Copy> open;
};

struct Meeting {
  int arrived = 0;
  unsigned int round = 0;
};

struct Warp {
  Meeting meeting;
  unsigned int words[WARP], a[WARP][4], b[WARP][2];
};

constexpr int WARPGROUP = 128;

struct Warpgroup {
  Meeting meeting;
  unsigned int a[WARPGROUP][4];
};

// An mbarrier.
struct Barrier {
  int count = 0, pending = 0, bytes = 0;
  unsigned int parity = 0;

  void settle() {
    if (pending < 0) abort();  // more arrivals than expected
    if (pending || bytes) return;
    pending = count;
    parity ^= 1;
  }
};

struct Block {
  std::vector<Context> threads;
  std::vector<Warp> warps;
  std::vector<Warpgroup> warpgroups;
  std::map<unsigned int, Barrier> barriers;  // by their address
  std::map<int, Meeting> teams;  // by the number of their barrier
  Meeting meeting;
  jmp_buf scheduler;
};

inline thread_local Block* block;
unsigned char* shared_memory();

inline Warp& this_warp() { return block->warps[threadIdx.x / WARP]; }

inline void let_others_run() {
  int index = threadIdx.x;
  if (!_setjmp(block->threads[index].state)) _longjmp(block->scheduler, 1);
  threadIdx.x = index;
}

inline void wait_for(Meeting& meeting, int count) {
  unsigned int round = meeting.round;
  if (++meeting.arrived == count) {
    meeting.arrived = 0;
    ++meeting.round;
  }
  while (meeting.round == round) let_others_run();
}

inline void wait_for_warp() { wait_for(this_warp().meeting, WARP); }
inline void wait_for_block() { wait_for(block->meeting, block->threads.size()); }

inline unsigned int __float_as_uint(float x) { unsigned int y; memcpy(&y, &x, 4); return y; }
inline float __uint_as_float(unsigned int x) { float y; memcpy(&y, &x, 4); return y; }
inline float rsqrtf(float x) { return 1 / sqrtf(x); }
inline void __threadfence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
inline void __threadfence_system() { __threadfence(); }
inline unsigned int atomicAdd(unsigned int* at, unsigned int x) {
  return __atomic_fetch_add(at, x, __ATOMIC_SEQ_CST);
}
inline size_t __cvta_generic_to_shared(const void* p) {
  return static_cast<const unsigned char*>(p) - shared_memory();
}

inline unsigned int __byte_perm(unsigned int a, unsigned int b, unsigned int selector) {
  unsigned long long both = a | static_cast<unsigned long long>(b) << 32;
  unsigned int result = 0;
  for (int i = 0; i < 4; ++i) {
    result |= static_cast<unsigned int>(both >> (selector >> 4 * i & 7) * 8 & 255) << 8 * i;
  }
  return result;
}

template <typename X>
X __shfl_sync(unsigned int, X x, int lane) {
  unsigned int* words = this_warp().words;
  memcpy(words + threadIdx.x % WARP, &x, 4);
  wait_for_warp();
  X result;
  memcpy(&result, words + lane, 4);
  wait_for_warp();
  return result;
}

template <typename X>
X __shfl_xor_sync(unsigned int mask, X x, int distance) {
  return __shfl_sync(mask, x, threadIdx.x % WARP ^ distance);
}

inline bool __any_sync(unsigned int, bool x) {
  unsigned int* words = this_warp().words;
  words[threadIdx.x % WARP] = x;
  wait_for_warp();
  bool any = std::any_of(words, words + WARP, [](unsigned int word) { return word; });
  wait_for_warp();
  return any;
}

void run_thread();

inline void enter_thread() {
  run_thread();
  Context& context = block->threads[threadIdx.x];
  context.is_done = true;
  _longjmp(block->scheduler, 1);
}

// Runs a thread of the block until it waits or is done.
inline void run_until_it_waits(Context& context) {
  if (_setjmp(block->scheduler)) return;
  if (context.has_begun) _longjmp(context.state, 1);
  context.has_begun = true;
  setcontext(&context.start);
}

inline void run_block(int index, int blocks, int threads) {
  Block here;
  block = &here;
  blockIdx.x = index;
  gridDim.x = blocks;
  here.threads = std::vector<Context>(threads);
  here.warps.resize(threads / WARP);
  here.warpgroups.resize(threads / WARPGROUP);
  memset(shared_memory(), 0xff, SHARED);
  for (Context& context : here.threads) {
    getcontext(&context.start);
    context.start.uc_stack = {context.stack.data(), 0, context.stack.size()};
    context.start.uc_link = nullptr;
    makecontext(&context.start, enter_thread, 0);
  }
  for (int left = threads; left;) {
    for (int i = 0; i < threads; ++i) {
      if (here.threads[i].is_done) continue;
      threadIdx.x = i;
      run_until_it_waits(here.threads[i]);
      left -= here.threads[i].is_done;
    }
  }
}

inline void run_grid(int blocks, int threads) {
  std::vector<std::thread> running;
  for (int i = 0; i < blocks; ++i) running.emplace_back(run_block, i, blocks, threads);
  for (std::thread& thread : running) thread.join();
}

// A parameter of a kernel: a pointer, or the number that it points to.
struct Argument {
  void* address;
  template <typename X>
  operator X*() const { return static_cast<X*>(address); }
  operator int() const { return *static_cast<int*>(address); }
};
