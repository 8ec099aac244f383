// Both forms of the products of few rows against plain sums, on odd shapes inside larger matrices
// whose other elements are NaN.
#include <cmath>
#include <limits>

#include "core/rng.h"
#include "kernels/few_rows_task.h"
#include "kernels/gemm.h"
#include "tests/kernels/kernel_test_util.h"

namespace shardtune::kernels {
namespace {

enum class Kind { kDot, kSpread };

struct Problem {
  int64_t m, n, k;
  DType a_dtype, b_dtype;
};

// rows x columns of random values in a matrix of `stride` columns, NaN beside them.
Tensor surrounded(int64_t rows, int64_t columns, int64_t stride, DType dtype, uint64_t seed) {
  Tensor tensor({rows, stride}, dtype);
  const CounterRng rng(seed);
  for (int64_t i = 0; i < tensor.numel(); ++i)
    store_element(tensor, i,
                  i % stride < columns ? rng.normal(static_cast<uint64_t>(i))
                                       : std::numeric_limits<float>::quiet_NaN());
  return tensor;
}

void check(const few_rows::Functions& functions, Kind kind, const Problem& p) {
  const bool dot = kind == Kind::kDot;
  const int64_t b_rows = dot ? p.n : p.k, b_columns = dot ? p.k : p.n;
  const Tensor a = surrounded(p.m, p.k, p.k + 3, p.a_dtype, 1);
  const Tensor b = surrounded(b_rows, b_columns, b_columns + 5, p.b_dtype, 2);
  const int64_t stride = few_rows::round_to_step(p.n);
  const Tensor sums = random_tensor({p.m, stride}, DType::kFloat32, 3);
  const Tensor before = sums.clone();
  few_rows::Task task;
  task.a = a.view().raw();
  task.b = b.view().raw();
  task.sums = sums.data<float>();
  task.m = p.m;
  task.n = p.n;
  task.k = p.k;
  task.a_stride = p.k + 3;
  task.b_stride = b_columns + 5;
  task.sums_stride = stride;
  task.b_is_bf16 = p.b_dtype == DType::kBFloat16 ? 1 : 0;
  (dot ? functions.dot : functions.spread)(task);
  for (int64_t i = 0; i < p.m; ++i) {
    for (int64_t j = 0; j < p.n; ++j) {
      double sum = dot ? 0.0 : before.data<float>()[i * stride + j], magnitude = std::abs(sum);
      for (int64_t q = 0; q < p.k; ++q) {
        const double product = double{load_element(a, i * task.a_stride + q)} *
                               load_element(b, dot ? j * task.b_stride + q : q * task.b_stride + j);
        sum += product;
        magnitude += std::abs(product);
      }
      // k additions and as many products in f32, in an order of their own.
      ASSERT_NEAR(sums.data<float>()[i * stride + j], sum,
                  static_cast<double>(2 * p.k + 2) * kRoundoffF32 * magnitude)
          << (dot ? "dot " : "spread ") << p.m << "x" << p.n << "x" << p.k << " at " << i << ", "
          << j;
    }
  }
}

void check_shapes(const few_rows::Functions& functions, DType a_dtype, DType b_dtype) {
  for (const Kind kind : {Kind::kDot, Kind::kSpread}) {
    for (int64_t m = 1; m <= 14; ++m)
      check(functions, kind, {m, 7, 65, a_dtype, b_dtype});
    for (const auto& [n, k] :
         {std::pair<int64_t, int64_t>{1, 1}, {8, 64}, {31, 33}, {33, 31}, {129, 17}, {66, 130}})
      for (const int64_t m : {1, 2, 5, 11, 25})
        check(functions, kind, {m, n, k, a_dtype, b_dtype});
  }
}

TEST(FewRows, TheFloatFormEqualsPlainSums) {
  check_shapes(few_rows::float_functions(), DType::kFloat32, DType::kFloat32);
  check_shapes(few_rows::float_functions(), DType::kFloat32, DType::kBFloat16);
}

TEST(FewRows, TheMachinesFormEqualsPlainSums) {
  if (!has_fast_bfloat16() || few_rows::machine_functions() == nullptr)
    GTEST_SKIP() << "no bf16 instructions on this machine";
  check_shapes(*few_rows::machine_functions(), DType::kBFloat16, DType::kBFloat16);
}

}  // namespace
}  // namespace shardtune::kernels
