// sum = residual + product and normed = RMS norm of sum, [rows, WIDTH] each; a thread block per row.
// normed is in `Order`, for the next product (arranged.cuh).
//
// Cost: 4 * rows * WIDTH values read and written, plus the product's parts (`splits` values each).
//
// Constants that layerwise_kernels.py defines in namespace config: T, Product (T or float),
// WIDTH, EPS, Order, THREADS.

#include "partial_products.cuh"

extern "C" __global__ void __launch_bounds__(
    config::THREADS, moxin::MIN_BLOCKS<config::Product>) add_norm(
    const config::Product* product,  // [splits, rows, WIDTH]; splits 0: [rows, WIDTH]
    const config::T* residual, const config::T* weight, config::T* sum, config::T* normed,
    int rows, int splits) {
  moxin::add_and_norm<config::T, config::WIDTH, config::THREADS, config::Order>(
      product, residual, weight, splits, rows, config::EPS, sum, normed, blockIdx.x);
}
