// Attention of all tokens of a picture to each other, both towers in one launch.
//
// A block has 64 queries of one head and goes through the keys 64 at a time, with a running
// softmax. Products are mma m16n8k16, as in towers.cu; a warp has 16 queries. HEAD is at least the
// heads' width and a multiple of 16; the rest is filled with zeros.

#include "towers.cu"

namespace moxin {

constexpr int QUERIES = 64;
constexpr int KEYS = 64;
constexpr int ATTENTION_THREADS = 128;

// qkv is [batch * tokens, 3, heads, width], out [batch * tokens, heads, width].
template <typename T>
struct Attention {
  const T* qkv;
  T* out;
  int batch, tokens, heads, width;
  float scale;
};

template <typename T, int HEAD>
__device__ void attend_head(const Attention<T>& own, int block) {
  constexpr int PITCH = HEAD * 2 + 16;  // bytes; shifts neighbouring rows by four banks at least
  constexpr float LOWEST = -1e30f, LOG2_E = 1.4426950408889634f;
  extern __shared__ __align__(128) unsigned char shared[];
  unsigned int queries = static_cast<unsigned int>(__cvta_generic_to_shared(shared));
  unsigned int keys = queries + QUERIES * PITCH, values = keys + KEYS * PITCH;
  int query_tiles = (own.tokens + QUERIES - 1) / QUERIES;
  int first_query = block % query_tiles * QUERIES;
  int head = block / query_tiles % own.heads;
  int first_token = block / query_tiles / own.heads * own.tokens;
  int lane = threadIdx.x % LANES, warp = threadIdx.x / LANES;

  // 64 rows from token `first` on; part 0, 1, 2 are queries, keys, values.
  auto copy = [&](unsigned int to, int part, int first) {
#pragma unroll 2
    for (int i = threadIdx.x; i < 64 * (HEAD / 8); i += ATTENTION_THREADS) {
      int row = i / (HEAD / 8), column = i % (HEAD / 8) * 8, token = first + row;
      bool inside = token < own.tokens && column < own.width;
      long long at = static_cast<long long>(first_token + token) * 3 + part;
      const T* from = inside ? own.qkv + (at * own.heads + head) * own.width + column : own.qkv;
      copy_async(to + row * PITCH + column * 2, from, inside);
    }
  };
  auto wait = [] {
    asm volatile("cp.async.commit_group;\n cp.async.wait_group 0;");
    __syncthreads();
  };

  copy(queries, 0, first_query);
  float outputs[HEAD / 8][4] = {};
  float highest[2] = {LOWEST, LOWEST}, weight[2] = {};
  for (int first = 0; first < own.tokens; first += KEYS) {
    __syncthreads();
    copy(keys, 1, first);
    copy(values, 2, first);
    wait();
    float scores[KEYS / 8][4] = {};
#pragma unroll 2
    for (int k = 0; k < HEAD / 16; ++k) {
      unsigned int a[4];
      load_matrices(a, queries + (warp * 16 + lane % 16) * PITCH + (k * 16 + lane / 16 * 8) * 2);
#pragma unroll
      for (int j = 0; j < KEYS / 16; ++j) {
        unsigned int b[4];
        int row = j * 16 + lane % 8 + lane / 16 * 8;
        load_matrices(b, keys + row * PITCH + (k * 16 + lane / 8 % 2 * 8) * 2);
        multiply_add<T>(scores[2 * j], a, b);
        multiply_add<T>(scores[2 * j + 1], a, b + 2);
      }
    }
    // Registers 0 and 1 belong to row lane / 4, 2 and 3 to the row eight further on.
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float top = highest[half];
#pragma unroll
      for (int j = 0; j < KEYS / 8; ++j) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          float& score = scores[j][2 * half + i];
          bool valid = first + j * 8 + lane % 4 * 2 + i < own.tokens;
          score = valid ? score * own.scale * LOG2_E : LOWEST;
          top = fmaxf(top, score);
        }
      }
      top = fmaxf(top, __shfl_xor_sync(ALL_LANES, top, 1));
      top = fmaxf(top, __shfl_xor_sync(ALL_LANES, top, 2));
      float factor = exp2f(highest[half] - top), sum = 0;
      highest[half] = top;
#pragma unroll
      for (int j = 0; j < KEYS / 8; ++j) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          float& score = scores[j][2 * half + i];
          score = exp2f(score - top);
          sum += score;
        }
      }
      weight[half] = weight[half] * factor + sum;
#pragma unroll
      for (int j = 0; j < HEAD / 8; ++j) {
        outputs[j][2 * half] *= factor;
        outputs[j][2 * half + 1] *= factor;
      }
    }
#pragma unroll
    for (int k = 0; k < KEYS / 16; ++k) {
      unsigned int a[4] = {
          pack<T>(scores[2 * k][0], scores[2 * k][1]), pack<T>(scores[2 * k][2], scores[2 * k][3]),
          pack<T>(scores[2 * k + 1][0], scores[2 * k + 1][1]),
          pack<T>(scores[2 * k + 1][2], scores[2 * k + 1][3])};
#pragma unroll
      for (int j = 0; j < HEAD / 16; ++j) {
        unsigned int b[4];
        int row = k * 16 + lane % 16;
        load_matrices_transposed(b, values + row * PITCH + (j * 16 + lane / 16 * 8) * 2);
        multiply_add<T>(outputs[2 * j], a, b);
        multiply_add<T>(outputs[2 * j + 1], a, b + 2);
      }
    }
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float sum = weight[half];
    sum += __shfl_xor_sync(ALL_LANES, sum, 1);
    sum += __shfl_xor_sync(ALL_LANES, sum, 2);
    int token = first_query + warp * 16 + lane / 4 + 8 * half;
    if (token >= own.tokens) continue;
    T* out = own.out + (static_cast<long long>(first_token + token) * own.heads + head) * own.width;
#pragma unroll
    for (int j = 0; j < HEAD / 8; ++j) {
      int column = j * 8 + lane % 4 * 2;
      if (column < own.width) {
        *reinterpret_cast<unsigned int*>(out + column) =
            pack<T>(outputs[j][2 * half] / sum, outputs[j][2 * half + 1] / sum);
      }
    }
  }
}

// The first blocks are the first tower's.
template <typename T, int HEAD>
__device__ void attention(const Attention<T>& first, const Attention<T>& second) {
  int blocks = (first.tokens + QUERIES - 1) / QUERIES * first.heads * first.batch;
  int block = blockIdx.x;
  bool is_first = block < blocks;
  Attention<T> own = is_first ? first : second;
  attend_head<T, HEAD>(own, is_first ? block : block - blocks);
}

}  // namespace moxin
