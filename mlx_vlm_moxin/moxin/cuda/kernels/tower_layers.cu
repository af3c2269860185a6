// A picture's tokens through LAYERS layers of both vision towers, in one launch.
//
// Cost: for one picture, DINOv2's 23 and SigLIP's 26 layers are 0.29e9 and 0.40e9 weights:
// 1.4 GB at 16 bits, and 0.36 TFLOPs in tensor cores.
//
// A layer is seven steps of the whole grid, each of which computes both towers. While a thread
// block waits for the others, the first weights of its next product are in flight.
//
// Constants that tower_kernel.py defines in namespace config: T; WIDTH and HEAD, the larger of both
// towers' widths and, rounded up to 16, of their heads' widths; LAYERS; EPS; THREADS, TILE_ROWS, TILE_K,
// WIDE_WIDTH, WIDE_STAGES, WIDE_GROUPS, NARROW_WIDTH, NARROW_STAGES, NARROW_GROUPS.

#include "tower_attention.cuh"
#include "tower_matmul.cuh"
#include "tower_norm.cuh"

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

// x, out, normed and attended are [batch * tokens, width], qkv [.., 3 * width] and hidden
// [.., intermediate]. The tower has `depth` layers; in later ones it has no rows.
struct Tower {
  const T* x;
  T *out, *normed, *qkv, *attended, *hidden;
  int batch, tokens, width, heads, intermediate, depth;
};

// The tiles of both towers' products; make(tower) returns the Product of tower 0 or 1.
template <Epilogue EPILOGUE, typename TILE, typename Make>
__device__ void multiply_both(GridBarrier& barrier, Make make) {
  int first = count_tiles<TILE>(make(0)), count = first + count_tiles<TILE>(make(1));
  int team = thread_of_step() / TILE::THREADS;
  int teams = gridDim.x * (config::THREADS / TILE::THREADS);
  for (int tile = team * gridDim.x + blockIdx.x; tile < count; tile += teams) {
    bool is_first = tile < first;
    multiply_tile<T, EPILOGUE, TILE>(
        make(!is_first), is_first ? tile : tile - first, team, barrier);
    sync_team<TILE::THREADS>(team);
  }
  barrier.wait();
  barrier.arrive();
}

}  // namespace moxin

// LAYER_PARAMETERS declares the layers' arrays, in the order of moxin::TowerLayer: tower 0's first
// layer, tower 1's first layer, tower 0's second layer and so on. FILL_LAYERS(layers) stores them in
// a table in shared memory: dynamically indexed kernel parameters would be copied to local memory by
// every thread.
extern "C" __global__ void __launch_bounds__(config::THREADS, 1) tower_layers(
    unsigned int* arrivals,  // [4] zeros, the barrier's counter
    const config::T* x_0,    // [batch_0, tokens_0, width_0]
    const config::T* x_1,
    LAYER_PARAMETERS,
    config::T* out_0,        // as x_0
    config::T* out_1,
    // Scratch of each tower, see moxin::Tower.
    config::T* normed_0, config::T* qkv_0, config::T* attended_0, config::T* hidden_0,
    config::T* normed_1, config::T* qkv_1, config::T* attended_1, config::T* hidden_1,
    int batch_0, int tokens_0, int width_0, int heads_0, int intermediate_0, int depth_0,
    int batch_1, int tokens_1, int width_1, int heads_1, int intermediate_1, int depth_1) {
  using namespace moxin;
  // Wide: products with more tiles than multiprocessors. Narrow: the others.
  using WideTile = Tile<config::WIDE_WIDTH, config::WIDE_STAGES, config::WIDE_GROUPS>;
  using NarrowTile = Tile<config::NARROW_WIDTH, config::NARROW_STAGES, config::NARROW_GROUPS>;
  __shared__ TowerLayer layers[config::LAYERS][2];
  __shared__ Tower towers[2];
  FILL_LAYERS(layers)
  if (threadIdx.x == 0) {
    towers[0] = {x_0, out_0, normed_0, qkv_0, attended_0, hidden_0,
                 batch_0, tokens_0, width_0, heads_0, intermediate_0, depth_0};
    towers[1] = {x_1, out_1, normed_1, qkv_1, attended_1, hidden_1,
                 batch_1, tokens_1, width_1, heads_1, intermediate_1, depth_1};
  }
  GridBarrier barrier{arrivals};
  barrier.arrive();

#pragma unroll 1
  for (int i = 0; i < config::LAYERS; ++i) {
    auto rows = [&](int which) {
      const Tower& tower = towers[which];
      return i < tower.depth ? tower.batch * tower.tokens : 0;
    };
    auto layer_norms = [&](Affine TowerLayer::*affine, bool is_input) {
      barrier.wait();
      int thread = thread_of_step(), first = rows(0), count = first + rows(1);
      int warps = gridDim.x * (config::THREADS / LANES);
      for (int row = grid_warp(thread); row < count; row += warps) {
        bool is_second = row >= first;
        const Tower& tower = towers[is_second];
        const Affine& norm = layers[i][is_second].*affine;
        layer_norm<T, config::WIDTH>(
            LayerNorm<T>{is_input ? tower.x : tower.out, norm.weight, norm.bias, tower.normed,
                         tower.width},
            is_second ? row - first : row, thread % LANES, config::EPS);
      }
      barrier.arrive();
    };
    layer_norms(&TowerLayer::norm1, i == 0);
    multiply_both<BIAS, WideTile>(barrier, [&](int which) {
      const Tower& tower = towers[which];
      const Affine& qkv = layers[i][which].qkv;
      return Product<T>{tower.normed, qkv.weight, qkv.bias, nullptr, nullptr, tower.qkv,
                        rows(which), tower.width, 3 * tower.width};
    });
    barrier.wait();
    auto attention = [&](int which) {
      const Tower& tower = towers[which];
      int width = tower.width / tower.heads;
      return TowerAttention<T>{tower.qkv, tower.attended, i < tower.depth ? tower.batch : 0,
                               tower.tokens, tower.heads, width, rsqrtf(width)};
    };
    int first = count_tiles(attention(0)), count = first + count_tiles(attention(1));
    int team = thread_of_step() / ATTENTION_THREADS;
    for (int tile = team * gridDim.x + blockIdx.x; tile < count;
         tile += gridDim.x * (config::THREADS / ATTENTION_THREADS)) {
      bool is_first = tile < first;
      attend_head<T, config::HEAD>(attention(!is_first), is_first ? tile : tile - first, team);
    }
    barrier.arrive();
    multiply_both<BIAS_SCALE_ADD, NarrowTile>(barrier, [&](int which) {
      const Tower& tower = towers[which];
      const TowerLayer& layer = layers[i][which];
      return Product<T>{tower.attended, layer.proj.weight, layer.proj.bias, layer.gamma1,
                        i ? tower.out : tower.x, tower.out, rows(which), tower.width, tower.width};
    });
    layer_norms(&TowerLayer::norm2, false);
    multiply_both<BIAS_GELU, WideTile>(barrier, [&](int which) {
      const Tower& tower = towers[which];
      const Affine& fc1 = layers[i][which].fc1;
      return Product<T>{tower.normed, fc1.weight, fc1.bias, nullptr, nullptr, tower.hidden,
                        rows(which), tower.width, tower.intermediate};
    });
    multiply_both<BIAS_SCALE_ADD, NarrowTile>(barrier, [&](int which) {
      const Tower& tower = towers[which];
      const TowerLayer& layer = layers[i][which];
      return Product<T>{tower.hidden, layer.fc2.weight, layer.fc2.bias, layer.gamma2, tower.out,
                        tower.out, rows(which), tower.intermediate, tower.width};
    });
  }
}
