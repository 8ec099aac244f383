#include "kernels/gemm_rate.h"

#include <algorithm>
#include <chrono>
#include <vector>

#include "core/parallel_for.h"
#include "core/tensor.h"
#include "kernels/gemm.h"

namespace shardtune::kernels {

namespace {

// Memory of its own: the pool would keep it for products of a shape that does not come again.
class Matrix {
 public:
  Matrix(int64_t rows, int64_t columns, DType dtype)
      : bytes_(static_cast<size_t>(rows * columns * size_of(dtype))),
        view_(bytes_.data(), dtype, {rows, columns}) {
    // Not zero: some processors multiply zeros with less power, hence faster.
    for (int64_t i = 0; i < view_.numel(); ++i) {
      const float value = static_cast<float>(i * 40503 % 1024 - 512) / 512.0f;
      if (dtype == DType::kFloat32)
        view_.data<float>()[i] = value;
      else
        view_.data<BFloat16>()[i] = BFloat16(value);
    }
  }
  const TensorView& view() const { return view_; }

 private:
  std::vector<std::byte> bytes_;
  TensorView view_;
};

}  // namespace

double measure_gemm_rate(DType dtype) {
  constexpr int64_t kRowsOfThread = 256, kColumns = 512, kDepth = 576;  // one block of gemm()
  constexpr double kSpanSeconds = 0.01;
  const int64_t rows = kRowsOfThread * num_threads();
  const Matrix a(rows, kDepth, dtype), b(kColumns, kDepth, dtype), c(rows, kColumns, dtype);
  const double flops = 2.0 * static_cast<double>(rows * kColumns * kDepth);
  const auto multiply = [&] {
    gemm(a.view(), b.view(), Transpose::kYes, c.view(), Accumulate::kNo);
  };
  multiply();  // makes the product, wakes the threads
  double best = 0.0;
  for (int span = 0; span < 3; ++span) {
    const auto start = std::chrono::steady_clock::now();
    double seconds = 0.0;
    double done = 0.0;
    while (seconds < kSpanSeconds) {
      multiply();
      done += flops;
      seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    }
    best = std::max(best, done / seconds);
  }
  return best;
}

}  // namespace shardtune::kernels
