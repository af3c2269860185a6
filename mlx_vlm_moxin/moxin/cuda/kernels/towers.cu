// The way of a picture's tokens through blocks of both vision towers, in one launch.
//
// A block is seven steps of all of the grid, each of which does both towers. While a multiprocessor
// waits for the others, the first weights of its next product are on their way.

#include "tower_attention.cu"
#include "tower_norm.cu"
#include "tower_product.cu"

namespace moxin {

constexpr int TOWER_THREADS = 256;

template <typename T>
struct Affine {
  const T *weight, *bias;
};

// Of one tower. gamma1 and gamma2 may be null.
template <typename T>
struct TowerBlock {
  Affine<T> norm1, qkv, proj;
  const T* gamma1;
  Affine<T> norm2, fc1, fc2;
  const T* gamma2;
};

// x, out, normed and attended are [batch * tokens, width], qkv [.., 3 * width] and hidden
// [.., intermediate]; only the first `depth` blocks are the tower's.
template <typename T>
struct Tower {
  const T* x;
  T *out, *normed, *qkv, *attended, *hidden;
  int batch, tokens, width, heads, intermediate, depth;
  float scale;
};

// Both towers' products, of which make(tower) tells.
template <typename T, Epilogue EPILOGUE, typename TILE, typename M>
__device__ void products(GridBarrier& barrier, M make) {
  int first = count_tiles<TILE>(make(0)), count = first + count_tiles<TILE>(make(1));
  int team = thread_of_step() / TILE::THREADS, teams = gridDim.x * (TOWER_THREADS / TILE::THREADS);
  for (int tile = team * gridDim.x + blockIdx.x; tile < count; tile += teams) {
    bool is_first = tile < first;
    multiply_tile<T, EPILOGUE, TILE>(
        make(!is_first), is_first ? tile : tile - first, team, barrier);
    sync_team<TILE::THREADS>(team);
  }
  barrier.wait();
  barrier.arrive();
}

// Both towers' x through COUNT blocks, to their `out`. fill(blocks, towers) puts them into shared
// memory: of parameters that are indexed every thread would make a copy. WIDE_GROUPS is 1 if there
// is shared memory for two tiles of the wide products, otherwise 2.
template <typename T, int WIDTH, int HEAD, int COUNT, int WIDE_GROUPS, int NARROW_STAGES,
          typename F>
__device__ void towers(F fill, unsigned int* arrivals, float eps) {
  using WideTile = Tile<128, 3, WIDE_GROUPS>;  // of products with more tiles than multiprocessors
  using NarrowTile = Tile<64, NARROW_STAGES, 2>;  // of the others
  __shared__ TowerBlock<T> blocks[COUNT][2];
  __shared__ Tower<T> towers[2];
  fill(blocks, towers);
  GridBarrier barrier{arrivals};
  barrier.arrive();

#pragma unroll 1
  for (int i = 0; i < COUNT; ++i) {
    auto rows = [&](int which) {
      const Tower<T>& tower = towers[which];
      return i < tower.depth ? tower.batch * tower.tokens : 0;
    };
    auto layer_norms = [&](Affine<T> TowerBlock<T>::*norm, bool is_input) {
      barrier.wait();
      int thread = thread_of_step(), first = rows(0), count = first + rows(1);
      int warps = gridDim.x * (TOWER_THREADS / LANES);
      for (int row = grid_warp(thread); row < count; row += warps) {
        bool is_second = row >= first;
        const Tower<T>& tower = towers[is_second];
        const Affine<T>& own = blocks[i][is_second].*norm;
        Norm<T> made{is_input ? tower.x : tower.out, own.weight, own.bias, tower.normed,
                     tower.width};
        layer_norm<T, WIDTH>(made, is_second ? row - first : row, thread % LANES, eps);
      }
      barrier.arrive();
    };
    layer_norms(&TowerBlock<T>::norm1, i == 0);
    products<T, BIAS, WideTile>(barrier, [&](int which) {
      const Tower<T>& tower = towers[which];
      const Affine<T>& own = blocks[i][which].qkv;
      return Product<T>{tower.normed, own.weight, own.bias, nullptr, nullptr, tower.qkv,
                        rows(which), tower.width, 3 * tower.width};
    });
    barrier.wait();
    auto attention = [&](int which) {
      const Tower<T>& tower = towers[which];
      return Attention<T>{tower.qkv, tower.attended, i < tower.depth ? tower.batch : 0,
                          tower.tokens, tower.heads, tower.width / tower.heads, tower.scale};
    };
    int first = count_tiles(attention(0)), count = first + count_tiles(attention(1));
    int team = thread_of_step() / ATTENTION_THREADS;
    for (int tile = team * gridDim.x + blockIdx.x; tile < count;
         tile += gridDim.x * (TOWER_THREADS / ATTENTION_THREADS)) {
      bool is_first = tile < first;
      attend_head<T, HEAD>(attention(!is_first), is_first ? tile : tile - first, team);
    }
    barrier.arrive();
    products<T, BIAS_SCALE_ADD, NarrowTile>(barrier, [&](int which) {
      const Tower<T>& tower = towers[which];
      const TowerBlock<T>& block = blocks[i][which];
      return Product<T>{tower.attended, block.proj.weight, block.proj.bias, block.gamma1,
                        i ? tower.out : tower.x, tower.out, rows(which), tower.width, tower.width};
    });
    layer_norms(&TowerBlock<T>::norm2, false);
    products<T, BIAS_GELU, WideTile>(barrier, [&](int which) {
      const Tower<T>& tower = towers[which];
      const Affine<T>& own = blocks[i][which].fc1;
      return Product<T>{tower.normed, own.weight, own.bias, nullptr, nullptr, tower.hidden,
                        rows(which), tower.width, tower.intermediate};
    });
    products<T, BIAS_SCALE_ADD, NarrowTile>(barrier, [&](int which) {
      const Tower<T>& tower = towers[which];
      const TowerBlock<T>& block = blocks[i][which];
      return Product<T>{tower.hidden, block.fc2.weight, block.fc2.bias, block.gamma2, tower.out,
                        tower.out, rows(which), tower.intermediate, tower.width};
    });
  }
}

}  // namespace moxin
