// Packed weights of a decoding step, in a stream that runs through all products of all layers.
//
// A warp multiplies two rows at a time. It copies them in pieces to slots of its own in shared memory,
// and after a product's last piece goes on with the next product's: while thread blocks wait for each
// other and compute attention, weights still arrive. But few are in flight at a time, since what a
// thread block reads meanwhile would wait for them, as would others' weights of the current product.

#pragma once

#include "packed_multiply.cuh"
#include "step_rows.cuh"

namespace moxin {

template <int SLOTS>
class PackedStream {
  using Weights = config::QKV;  // the format of all matrices
  static constexpr int BITS = Weights::BITS;
  using Piece = PackedPiece<BITS>;
  static constexpr int ROW_BYTES = Piece::ROW_BYTES, SCALE_BYTES = Piece::SCALE_BYTES;
  static constexpr int SCALE_LANES = SCALE_BYTES / 8;  // that copy a row's scales of a piece
  static constexpr int RATIO = ROW_BYTES / SCALE_BYTES;

 public:
  template <int PRODUCT>
  using Layout = PackedLayout<BITS, WIDTH<PRODUCT>>;
  template <int PRODUCT>
  static constexpr int ROWS = 2;

  // Begins to copy, to `slots` in shared memory: SLOTS pieces of each warp.
  __device__ PackedStream(const Layer<T>* layers, unsigned char* slots) : layer_(layers) {
    __shared__ unsigned long long barriers[config::THREADS / LANES * SLOTS];
    int thread = thread_of_step(), first = thread / LANES * SLOTS;
    slots_ = slots + first * Piece::BYTES;
    landings_ = static_cast<unsigned int>(__cvta_generic_to_shared(barriers + first));
    if (lane_of_step() == 0) {
#pragma unroll 1
      for (int i = 0; i < SLOTS; ++i) {
        asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;"
                     :
                     : "r"(landings_ + i * 8), "n"(LANES)
                     : "memory");
      }
    }
    __syncwarp();
    set_ = grid_warp(thread);
    begin_set();
    fill();
  }

  // Begins to copy further pieces, while `product` is computed.
  __device__ void fill(int product = PRODUCTS) {
    while (landed_ < ahead_ && has_landed()) land();
    while (left_ > 0 && ahead_ < SLOTS &&
           ahead_ - landed_ < (product == product_ ? config::IN_FLIGHT : config::NEXT_IN_FLIGHT)) {
      copy_piece(lane_of_step());
    }
  }

  // Waits at a barrier.
  __device__ void wait(GridBarrier& barrier) {
    barrier.wait([&] { fill(); });
  }
  template <typename Barrier>
  __device__ void wait(Barrier& barrier) {
    barrier.wait();
  }

  // As multiply_rows in matvec.cuh.
  template <int PRODUCT, typename Prepare, typename Begin, typename Finish>
  __device__ void multiply(
      const StagedInput<Layout<PRODUCT>>& input, const Layer<T>&, Prepare prepare, Begin begin,
      Finish finish) {
    using L = Layout<PRODUCT>;
    prepare();
    int thread = thread_of_step(), lane = lane_of_step();
    int warps = gridDim.x * (config::THREADS / LANES);
    for (int set = grid_warp(thread); set < SETS<PRODUCT, 2>; set += warps) {
      begin(set);
      PackedSums sums = {};
#pragma unroll 1
      for (int first = 0; first < L::CHUNKS; first += Piece::CHUNKS) {
        while (!landed_) {
          if (has_landed()) land();
        }
        multiply_piece<T, BITS>(input, slots_ + slot_ * Piece::BYTES, first, lane, sums);
        __syncwarp();
        --landed_;
        --ahead_;
        slot_ = slot_ + 1 == SLOTS ? 0 : slot_ + 1;
        fill(PRODUCT);
      }
      float totals[2] = {sums.total(0, lane), sums.total(1, lane)};
      finish(set, totals);
    }
  }

 private:
  // Whether the first piece that had not landed has.
  __device__ bool has_landed() const {
    unsigned int has;
    asm volatile(
        "{.reg .pred p; mbarrier.test_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p;}"
        : "=r"(has)
        : "r"(landings_ + landing_ * 8), "r"(parity_)
        : "memory");
    return !__any_sync(ALL_LANES, !has);
  }

  __device__ void land() {
    ++landed_;
    if (++landing_ == SLOTS) {
      landing_ = 0;
      parity_ ^= 1;
    }
  }

  // Begins to copy the next piece.
  __device__ void copy_piece(int lane) {
    auto to = static_cast<unsigned int>(__cvta_generic_to_shared(slots_ + empty_ * Piece::BYTES));
#pragma unroll
    for (int r = 0; r < 2; ++r) {
#pragma unroll
      for (int at = 0; at < ROW_BYTES; at += LANES * 16) {
        if (ARE_EVEN || at + lane * 16 < left_) {
          copy_once(to + r * ROW_BYTES + at + lane * 16, rows_[r] + at);
        }
      }
      rows_[r] += ROW_BYTES;
    }
    if (lane < 4 * SCALE_LANES && (ARE_EVEN || lane % SCALE_LANES * 8 * RATIO < left_)) {
      copy_scales(to + 2 * ROW_BYTES + lane * 8, scales_);
    }
    asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];"
                 :
                 : "r"(landings_ + empty_ * 8)
                 : "memory");
    scales_ += SCALE_BYTES;
    left_ -= ROW_BYTES;
    if (left_ <= 0) next_set();
    ++ahead_;
    empty_ = empty_ + 1 == SLOTS ? 0 : empty_ + 1;
  }

  __device__ static constexpr bool is_even(int width) {
    return width % (Piece::CHUNKS * Piece::CHUNK) == 0;
  }
  static constexpr bool ARE_EVEN =
      is_even(config::HIDDEN) && is_even(ATTENDED) && is_even(config::INTERMEDIATE);

  static __device__ int lane_of_step() { return thread_of_step() & (LANES - 1); }

  // Goes on with the warp's next set.
  __device__ void next_set() {
    set_ += gridDim.x * (config::THREADS / LANES);
    if (set_ >= regular_) return begin_set();
    rows_[0] += jump_;
    rows_[1] += jump_;
    scales_ += scale_jump_;
    left_ = row_bytes_;
  }

  // Finds the rows of the set or, after the last one, of the next product's first one.
  __device__ void begin_set() {
    left_ = 0;
    while (layers_ > 0 && !find<QKV>() && !find<OUTPUT>() && !find<GATE_UP>() && !find<DOWN>()) {
      product_ = 0;
      ++layer_;
      --layers_;
    }
  }

  // Finds the rows of the set, if it is of PRODUCT and there is one.
  template <int PRODUCT>
  __device__ bool find() {
    if (product_ != PRODUCT) return false;
    if (set_ >= SETS<PRODUCT, 2>) {
      set_ = grid_warp(thread_of_step());
      ++product_;
      return false;
    }
    constexpr int K = WIDTH<PRODUCT>;
    int lane = lane_of_step();
    constexpr int BYTES_OF_ROW = K * BITS / 8, PIECES = (BYTES_OF_ROW + ROW_BYTES - 1) / ROW_BYTES;
    left_ = row_bytes_ = BYTES_OF_ROW;
    int rows = gridDim.x * (config::THREADS / LANES) * (PRODUCT == GATE_UP ? 1 : 2);
    regular_ = PRODUCT == QKV ? 0 : SETS<PRODUCT, 2>;
    jump_ = rows * BYTES_OF_ROW - PIECES * ROW_BYTES;
    scale_jump_ = rows * (K / 64 * 2) - PIECES * SCALE_BYTES;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      Row row = row_of<PRODUCT, 2>(*layer_, set_, r);
      rows_[r] = static_cast<const unsigned char*>(row.matrix->weight)
          + static_cast<size_t>(row.index) * (K * BITS / 8) + lane * 16;
      if (lane / SCALE_LANES % 2 == r) {
        const T* values = lane / SCALE_LANES < 2 ? row.matrix->scales : row.matrix->biases;
        scales_ = reinterpret_cast<const unsigned char*>(values)
            + static_cast<size_t>(row.index) * (K / 64 * 2) + lane % SCALE_LANES * 8;
      }
    }
    return true;
  }

  const Layer<T>* layer_;
  unsigned char* slots_;
  int layers_ = config::LAYERS;
  unsigned int landings_;  // the slots' barriers
  // Slots: of the next piece to multiply, of the next one to land, and the next empty one; pieces
  // that are copied or being copied, and those of them that have landed.
  int slot_ = 0, landing_ = 0, empty_ = 0, ahead_ = 0, landed_ = 0;
  unsigned int parity_ = 0;
  int product_ = 0, set_, left_ = 0;
  const unsigned char *rows_[2], *scales_;
  // Sets below `regular_` follow the warp's previous one at these distances.
  int regular_ = 0, row_bytes_ = 0, jump_ = 0, scale_jump_ = 0;
};

}  // namespace moxin
