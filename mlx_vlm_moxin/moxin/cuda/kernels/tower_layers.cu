// A picture's tokens through LAYERS layers of both vision towers, in one launch.
//
// Cost: for one picture, DINOv2's 23 and SigLIP's 26 layers are 0.29e9 and 0.40e9 weights:
// 1.4 GB at 16 bits, and 0.36 TFLOPs in tensor cores.
//
// A layer is seven steps of the whole grid, each of which computes both towers. While a thread
// block waits for the others, the first weights of its next product are in flight.
//
// Constants that tower_kernel.py defines in namespace config: T; WIDTH and HEAD, the larger of both
// towers' widths and, rounded up to 16, of their heads' widths; LAYERS; EPS; THREADS, SHARED_MEMORY,
// TILE_K, PARTS, and those of TOWER_PRODUCTS, the file of the products.

#include "scratch_memory.cuh"
#include "tower_attention.cuh"
#include "tower_norm.cuh"
#include TOWER_PRODUCTS

namespace moxin {

using config::T;

struct Affine {
  const T *weight, *bias;
};

// One layer of one tower. gamma1 and gamma2 (LayerScale) may be null.
struct TowerLayer {
  Affine norm1, qkv, proj;
  const T* gamma1;
  Affine norm2, fc1, fc2;
  const T* gamma2;
};

// x, out, normed and attended are [batch * tokens, width], qkv [.., 3 * width], hidden
// [.., intermediate] and sums [PARTS, .., width]. The tower has `depth` layers; in later ones it has no rows.
struct Tower {
  const T* x;
  T* out;
  int batch, tokens, width, heads, intermediate, depth;
  T *normed, *qkv, *attended, *hidden;
  float* sums;
};

// Gives the tower its scratch memory.
__device__ inline void add_scratch(Tower& tower, ScratchMemory& memory) {
  long long rows = static_cast<long long>(tower.batch) * tower.tokens;
  tower.normed = memory.take<T>(rows * tower.width);
  tower.qkv = memory.take<T>(rows * 3 * tower.width);
  tower.attended = memory.take<T>(rows * tower.width);
  tower.hidden = memory.take<T>(rows * tower.intermediate);
  tower.sums = memory.take<float>(config::PARTS * rows * tower.width);
}

// The norms of both towers' rows; make(tower) returns the LayerNorm of tower 0 or 1.
template <int PARTS, typename Make>
__device__ void normalise_both(GridBarrier& barrier, int rows_0, int rows_1, Make make) {
  int thread = thread_of_step() % ROW_THREADS, team = thread_of_step() / ROW_THREADS;
  int first = team * gridDim.x + blockIdx.x;
  prefetch(make(first >= rows_0), thread);
  barrier.wait();
  for (int row = first; row < rows_0 + rows_1; row += gridDim.x * ROWS_AT_ONCE) {
    bool is_second = row >= rows_0;
    layer_norm<T, config::WIDTH, PARTS>(
        make(is_second), is_second ? row - rows_0 : row, thread, team, config::EPS);
  }
  barrier.arrive();
}

}  // namespace moxin

// LAYER_PARAMETERS declares an array for each tower that has layers here, which contains all of theirs
// (joined_arrays.py). LAYER_0(i) and LAYER_1(i) are the members of moxin::TowerLayer for layer i of a
// tower, after its last layer those of that; nothing for a tower without layers.
extern "C" __global__ void __launch_bounds__(config::THREADS, 1) tower_layers(
    unsigned int* arrivals,  // [4] zeros, the barrier's counter
    const config::T* x_0,    // [batch_0, tokens_0, width_0]
    const config::T* x_1,
    LAYER_PARAMETERS,
    config::T* out_0,        // as x_0
    config::T* out_1,
    unsigned int* scratch,   // see moxin::add_scratch
    int batch_0, int tokens_0, int width_0, int heads_0, int intermediate_0, int depth_0,
    int batch_1, int tokens_1, int width_1, int heads_1, int intermediate_1, int depth_1) {
  using namespace moxin;
  __shared__ TowerLayer layers[config::LAYERS][2];
  __shared__ Tower towers[2];
  if (threadIdx.x < 2 * config::LAYERS) {
    int i = threadIdx.x / 2;
    if (threadIdx.x % 2 == 0) {
      layers[i][0] = {LAYER_0(i)};
    } else {
      layers[i][1] = {LAYER_1(i)};
    }
  }
  if (threadIdx.x == 0) {
    towers[0] = {x_0, out_0, batch_0, tokens_0, width_0, heads_0, intermediate_0, depth_0};
    towers[1] = {x_1, out_1, batch_1, tokens_1, width_1, heads_1, intermediate_1, depth_1};
    ScratchMemory memory(scratch);
    add_scratch(towers[0], memory);
    add_scratch(towers[1], memory);
  }
  GridBarrier barrier{arrivals};
  barrier.arrive();

  // Narrow products add to their residual, or leave that to the next norm; then an additional step
  // after the last layer does it.
  constexpr int PARTS = config::PARTS;
  constexpr Epilogue NARROW_EPILOGUE = PARTS > 0 ? PARTIAL_SUMS : BIAS_SCALE_ADD;
  // A layer is twice the same: norm, wide product, in the first half attention, narrow product. One loop
  // over halves has half the machine code of one over layers, which instruction caches would not hold.
#pragma unroll 1
  for (int half = 0; half < 2 * config::LAYERS + (PARTS > 0); ++half) {
    int i = half / 2;
    bool is_mlp = half % 2;
    auto all_rows = [&](int which) { return towers[which].batch * towers[which].tokens; };
    auto rows = [&](int which) { return i < towers[which].depth ? all_rows(which) : 0; };
    auto norm_rows = [&](int which) {
      int depth = towers[which].depth;
      return depth > 0 && half < 2 * depth + (PARTS > 0) ? all_rows(which) : 0;
    };
    auto norm = [&](int which) {
      const Tower& tower = towers[which];
      bool is_end = half == 2 * tower.depth;
      const TowerLayer& layer = layers[i < config::LAYERS ? i : 0][which];
      const TowerLayer& before = layers[half ? (half - 1) / 2 : 0][which];
      const Affine& affine = is_mlp ? layer.norm2 : layer.norm1;
      // PARTS > 0: the first norm's input is still to be added in the second.
      return LayerNorm<T>{half <= (PARTS > 0) ? tower.x : tower.out, affine.weight, affine.bias,
                          is_end ? nullptr : tower.normed, tower.width,
                          {tower.sums, is_mlp ? before.proj.bias : before.fc2.bias,
                           is_mlp ? before.gamma1 : before.gamma2, all_rows(which)},
                          tower.out};
    };
    if (PARTS == 0 || half == 0) {
      normalise_both<0>(barrier, norm_rows(0), norm_rows(1), norm);
    } else {
      normalise_both<PARTS>(barrier, norm_rows(0), norm_rows(1), norm);
    }
    if (i == config::LAYERS) break;
    multiply_both<T, BIAS, WIDE>(barrier, [&](int which) {
      const Tower& tower = towers[which];
      const Affine& affine = is_mlp ? layers[i][which].fc1 : layers[i][which].qkv;
      return Product<T>{tower.normed, affine.weight, affine.bias, nullptr, nullptr,
                        is_mlp ? tower.hidden : tower.qkv, nullptr, rows(which), tower.width,
                        is_mlp ? tower.intermediate : 3 * tower.width, is_mlp};
    });
    if (!is_mlp) {
      barrier.wait();
      auto attention = [&](int which) {
        const Tower& tower = towers[which];
        int width = tower.width / tower.heads;
        return TowerAttention<T>{tower.qkv, tower.attended, i < tower.depth ? tower.batch : 0,
                                 tower.tokens, tower.heads, width, rsqrtf(width)};
      };
      // Tower 0 is last: its class token makes a tile of few queries for each head. These share thread
      // blocks with whole tiles, where one picture has more tiles than there are blocks.
      int first = count_tiles(attention(1)), count = first + count_tiles(attention(0));
      int team = thread_of_step() / ATTENTION_THREADS;
      for (int tile = team * gridDim.x + blockIdx.x; tile < count;
           tile += gridDim.x * (config::THREADS / ATTENTION_THREADS)) {
        bool is_second_tower = tile < first;
        attend_head<T, config::HEAD>(
            attention(is_second_tower), is_second_tower ? tile : tile - first, team);
      }
      barrier.arrive();
    }
    multiply_both<T, NARROW_EPILOGUE, NARROW>(barrier, [&](int which) {
      const Tower& tower = towers[which];
      const TowerLayer& layer = layers[i][which];
      const Affine& affine = is_mlp ? layer.fc2 : layer.proj;
      return Product<T>{is_mlp ? tower.hidden : tower.attended, affine.weight, affine.bias,
                        is_mlp ? layer.gamma2 : layer.gamma1, half ? tower.out : tower.x, tower.out,
                        tower.sums, rows(which), is_mlp ? tower.intermediate : tower.width,
                        tower.width, false};
    });
  }
}
