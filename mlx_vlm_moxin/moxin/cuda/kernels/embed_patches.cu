// A picture's pixels to the input of the first layer of both vision towers, in one launch.
//
// Cost: for one picture 0.65 GFLOPs in tensor cores, and 2.6 MB of weights, which are read, padded and
// read again.
//
// The first step lays out each patch as a row, in the order of the weight, rounds pixels to T, pads
// these rows and those of the weight to 16 bytes, and copies class and register tokens. The second
// multiplies, and adds bias and position embedding.
//
// Constants that patch_embedding.py defines in namespace config: T; Pixel, the type of pixels; PATCH,
// an even side in pixels; THREADS, TILE_K and those of tower_matmul.cuh.

#include "tower_matmul.cuh"

namespace moxin {

using config::PATCH;
using config::T;

template <>
__device__ inline float to_float(float x) {
  return x;
}

constexpr int CHANNELS = 3;
constexpr int TOWERS = 2;
constexpr int K = CHANNELS * PATCH * PATCH;
constexpr int K_VECTORS = (K + 7) / 8;
static_assert(K % 4 == 0, "rows of the weight are aligned to 8 bytes");

// weight is [width, PATCH, PATCH, CHANNELS], bias [width], position [patches, width]. The prefix of
// [prefix_tokens, width] consists of class tokens and register tokens, either of which may be null. out is
// [batch, prefix_tokens + patches, width]; patches and padded [.., K_VECTORS * 8] are scratch.
struct Embedding {
  const T *weight, *bias, *position, *class_token, *register_tokens;
  T *patches, *padded, *out;
  int width, class_tokens, prefix_tokens;
};

// pixels is [batch, TOWERS * CHANNELS, height, width].
struct Picture {
  const config::Pixel* pixels;
  int batch, height, width;
  __device__ int columns() const { return width / PATCH; }
  __device__ int patches() const { return height / PATCH * columns(); }
};

// Vector `vector` of patch `patch` of all pictures.
__device__ inline uint4 read_patch(const Picture& picture, int tower, int patch, int vector) {
  int in_picture = patch % picture.patches();
  int first_y = in_picture / picture.columns() * PATCH, first_x = in_picture % picture.columns() * PATCH;
  long long first_channel = patch / picture.patches() * TOWERS * CHANNELS + tower * CHANNELS;
  float values[8] = {};
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    int k = vector * 8 + i, pixel = k / CHANNELS;
    if (k >= K) break;
    long long y = (first_channel + k % CHANNELS) * picture.height + first_y + pixel / PATCH;
    values[i] = to_float(picture.pixels[y * picture.width + first_x + pixel % PATCH]);
  }
  return pack_eight<T>(values);
}

// Vector `vector` of row `row` of a weight whose rows are not padded.
__device__ inline uint4 read_weight(const T* weight, int row, int vector) {
  const uint2* from = reinterpret_cast<const uint2*>(weight + static_cast<long long>(row) * K) + vector * 2;
  uint2 low = from[0], high = vector * 8 + 4 < K ? from[1] : uint2{0, 0};
  return {low.x, low.y, high.x, high.y};
}

__device__ inline void copy_prefix(const Embedding& to, int token, int vector, int tokens) {
  int picture = token / to.prefix_tokens, in_picture = token % to.prefix_tokens;
  bool is_class = in_picture < to.class_tokens;
  const T* from = is_class ? to.class_token : to.register_tokens;
  int row = is_class ? in_picture : in_picture - to.class_tokens, vectors = to.width / 8;
  long long out_row = static_cast<long long>(picture) * tokens + in_picture;
  reinterpret_cast<uint4*>(to.out)[out_row * vectors + vector] =
      reinterpret_cast<const uint4*>(from)[row * vectors + vector];
}

}  // namespace moxin

// Each tower's weights are one parameter that contains them (joined_arrays.py). FILL_TOWERS(table) stores
// where they are, the first five members of moxin::Embedding.
extern "C" __global__ void __launch_bounds__(config::THREADS, 1) embed_patches(
    unsigned int* arrivals,         // [4] zeros, the barrier's counter
    const config::Pixel* pixels,    // [batch, 6, height, width]
    const unsigned int* weights_0, const unsigned int* weights_1,
    config::T* out_0, config::T* out_1,
    config::T* patches_0, config::T* padded_0, config::T* patches_1, config::T* padded_1,
    int batch, int height, int width,
    int width_0, int class_tokens_0, int prefix_tokens_0,
    int width_1, int class_tokens_1, int prefix_tokens_1) {
  using namespace moxin;
  __shared__ Embedding towers[TOWERS];
  FILL_TOWERS(towers)
  __syncthreads();
  if (threadIdx.x < TOWERS) {
    bool is_second = threadIdx.x;
    Embedding& to = towers[threadIdx.x];
    to.patches = is_second ? patches_1 : patches_0;
    to.padded = is_second ? padded_1 : padded_0;
    to.out = is_second ? out_1 : out_0;
    to.width = is_second ? width_1 : width_0;
    to.class_tokens = is_second ? class_tokens_1 : class_tokens_0;
    to.prefix_tokens = is_second ? prefix_tokens_1 : prefix_tokens_0;
  }
  __syncthreads();
  Picture picture{pixels, batch, height, width};
  int patches = picture.patches();
  int first_thread = blockIdx.x * config::THREADS + threadIdx.x;
  int threads = gridDim.x * config::THREADS;
#pragma unroll 1
  for (int which = 0; which < TOWERS; ++which) {
    const Embedding& to = towers[which];
    uint4* rows = reinterpret_cast<uint4*>(to.patches);
    for (int i = first_thread; i < batch * patches * K_VECTORS; i += threads) {
      rows[i] = read_patch(picture, which, i / K_VECTORS, i % K_VECTORS);
    }
    uint4* padded = reinterpret_cast<uint4*>(to.padded);
    for (int i = first_thread; i < to.width * K_VECTORS; i += threads) {
      padded[i] = read_weight(to.weight, i / K_VECTORS, i % K_VECTORS);
    }
    int vectors = to.width / 8;
    for (int i = first_thread; i < batch * to.prefix_tokens * vectors; i += threads) {
      copy_prefix(to, i / vectors, i % vectors, to.prefix_tokens + patches);
    }
  }
  GridBarrier barrier{arrivals};
  barrier.arrive();
  barrier.wait();

  using TILE = typename TileOf<NARROW>::type;
  static_assert(TILE::THREADS == config::THREADS, "a thread block computes one tile");
  auto product = [&](int which, int index) {
    const Embedding& to = towers[which];
    long long tokens = to.prefix_tokens + patches;
    return Product<T>{to.patches + static_cast<long long>(index) * patches * K_VECTORS * 8,
                      to.padded, to.bias, nullptr, to.position,
                      to.out + (index * tokens + to.prefix_tokens) * to.width, nullptr,
                      patches, K_VECTORS * 8, to.width, false};
  };
  int first = count_tiles<TILE>(product(0, 0)), count = first + count_tiles<TILE>(product(1, 0));
  for (int tile = blockIdx.x; tile < batch * count; tile += gridDim.x) {
    int index = tile / count, of_picture = tile % count;
    bool is_second = of_picture >= first;
    multiply_tile<T, BIAS_SCALE_ADD, TILE>(
        product(is_second, index), is_second ? of_picture - first : of_picture, 0, barrier);
    __syncthreads();
  }
}
