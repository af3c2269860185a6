// The products of one decoding step, each with what stands in front of and behind it.

#include "matvec.cu"
#include "rotary.cu"

namespace moxin {

// Queries, keys and values of RMS norm(x), queries and keys rotated.
template <typename T, int BITS, int GROUP, int K, int HEAD_DIM, int HEADS, int KV_HEADS,
          int THREADS, int PER_WARP>
__device__ void qkv(
    const T* x, const T* norm_weight, Matrix<T> q_proj, Matrix<T> k_proj, Matrix<T> v_proj,
    const int* position, float eps, float log2_theta, T* queries, T* keys, T* values) {
  constexpr int HALF = HEAD_DIM / 2;
  constexpr int TOTAL = (HEADS + 2 * KV_HEADS) * HALF;
  __shared__ Input<Format<T, BITS, GROUP, K>> input;
  int first = first_set<THREADS>(PER_WARP);
  int at = 0;
  auto locate = [&](int set, Matrix<T>* matrices, int* rows) {
    int head = (first + set) / HALF;
    bool is_query = head < HEADS, is_key = !is_query && head < HEADS + KV_HEADS;
    matrices[0] = matrices[1] = is_query ? q_proj : is_key ? k_proj : v_proj;
    int own = is_query ? head : is_key ? head - HEADS : head - HEADS - KV_HEADS;
    rows[0] = own * HEAD_DIM + (first + set) % HALF;
    rows[1] = rows[0] + HALF;
  };
  auto finish = [&](int set, float* totals) {
    if (threadIdx.x % LANES) return;
    int head = (first + set) / HALF, dim = (first + set) % HALF;
    bool is_query = head < HEADS, is_key = !is_query && head < HEADS + KV_HEADS;
    T* out = is_query ? queries + head * HEAD_DIM
        : is_key      ? keys + (head - HEADS) * HEAD_DIM
                      : values + (head - HEADS - KV_HEADS) * HEAD_DIM;
    float2 r = is_query || is_key ? rotation<HALF>(at, dim, log2_theta) : float2{1, 0};
    out[dim] = round_to<T>(totals[0] * r.x - totals[1] * r.y);
    out[dim + HALF] = round_to<T>(totals[0] * r.y + totals[1] * r.x);
  };
  auto prepare = [&] {
    at = *position;
    stage<T, Format<T, BITS, GROUP, K>, K, THREADS, true>(input, x, norm_weight, eps);
  };
  multiply_rows<T, BITS, GROUP, K, 2>(
      input, clamp_count(first, PER_WARP, TOTAL), prepare, locate, finish);
}

// silu(gate_proj(n)) * up_proj(n) with n = RMS norm(x), N rows.
template <typename T, int BITS, int GROUP, int K, int N, int THREADS, int PER_WARP>
__device__ void gate_up(
    const T* x, const T* norm_weight, Matrix<T> gate_proj, Matrix<T> up_proj,
    float eps, T* out) {
  __shared__ Input<Format<T, BITS, GROUP, K>> input;
  int first = first_set<THREADS>(PER_WARP);
  auto locate = [&](int set, Matrix<T>* matrices, int* rows) {
    matrices[0] = gate_proj;
    matrices[1] = up_proj;
    rows[0] = rows[1] = first + set;
  };
  auto finish = [&](int set, float* totals) {
    if (threadIdx.x % LANES == 0) {
      out[first + set] = round_to<T>(totals[0] / (1 + __expf(-totals[0])) * totals[1]);
    }
  };
  auto prepare = [&] {
    stage<T, Format<T, BITS, GROUP, K>, K, THREADS, true>(input, x, norm_weight, eps);
  };
  multiply_rows<T, BITS, GROUP, K, 2>(
      input, clamp_count(first, PER_WARP, N), prepare, locate, finish);
}

// residual + proj(x), N rows.
template <typename T, int BITS, int GROUP, int K, int N, int THREADS>
__device__ void project(const T* x, Matrix<T> proj, const T* residual, T* out) {
  __shared__ Input<Format<T, BITS, GROUP, K>> input;
  int first = first_set<THREADS>(1);
  auto locate = [&](int set, Matrix<T>* matrices, int* rows) {
    matrices[0] = proj;
    rows[0] = first + set;
  };
  auto finish = [&](int set, float* totals) {
    if (threadIdx.x % LANES == 0) {
      out[first + set] = round_to<T>(to_float(residual[first + set]) + totals[0]);
    }
  };
  auto prepare = [&] {
    stage<T, Format<T, BITS, GROUP, K>, K, THREADS, false>(input, x, nullptr, 0);
  };
  multiply_rows<T, BITS, GROUP, K, 1>(input, clamp_count(first, 1, N), prepare, locate, finish);
}

}  // namespace moxin
