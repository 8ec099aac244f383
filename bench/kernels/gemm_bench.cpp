// Products of one layer of a 135M model at 2,048 tokens, of decoding, and over tokens.
// Arguments: M, N, K, transpose of b, bf16.
#include "bench/kernels/bench_util.h"
#include "kernels/gemm.h"

namespace shardtune::kernels {
namespace {

void gemm_bench(benchmark::State& state) {
  const int64_t m = state.range(0), n = state.range(1), k = state.range(2);
  const Transpose transpose = state.range(3) == 0 ? Transpose::kNo : Transpose::kYes;
  const DType dtype = dtype_of_range(state.range(4));
  const Tensor a = filled({m, k}, dtype, 1);
  const Tensor b = filled(transpose == Transpose::kYes ? Shape{n, k} : Shape{k, n}, dtype, 2);
  const Tensor c(Shape{m, n}, dtype);
  for (auto _ : state)
    gemm(a, b, transpose, c, Accumulate::kNo);
  count_flops(state, 2.0 * static_cast<double>(m * n * k));
}
BENCHMARK(gemm_bench)
    ->UseRealTime()
    ->Unit(benchmark::kMicrosecond)
    ->ArgNames({"M", "N", "K", "T", "bf16"})
    ->ArgsProduct({{1024, 2048}, {576}, {576}, {0, 1}, {0, 1}})
    ->ArgsProduct({{2048}, {1536}, {576}, {0, 1}, {0, 1}})
    ->ArgsProduct({{2048}, {576}, {1536}, {0, 1}, {0, 1}})
    ->ArgsProduct({{2048}, {192}, {576}, {1}, {0, 1}})
    ->ArgsProduct({{512}, {8192}, {576}, {1}, {0, 1}})
    ->ArgsProduct({{512}, {576}, {8192}, {0}, {0, 1}})
    ->ArgsProduct({{2048}, {16}, {576}, {1}, {0, 1}})
    ->ArgsProduct({{2048}, {576}, {16}, {1}, {0, 1}})
    ->ArgsProduct({{1, 8, 64}, {1536}, {576}, {1}, {0, 1}});

// The second half of a LoRA update, on the base's f32 output, and its gradient into x.
void gemm_onto_bench(benchmark::State& state) {
  const int64_t m = state.range(0), n = state.range(1), k = state.range(2);
  const Tensor y = filled({m, n}, DType::kFloat32, 1);
  const Tensor a = filled({m, k}, DType::kBFloat16, 2), b = filled({n, k}, DType::kBFloat16, 3);
  const Tensor out(Shape{m, n}, DType::kBFloat16);
  for (auto _ : state)
    gemm_onto(y, a, b, out);
  count_flops(state, 2.0 * static_cast<double>(m * n * k));
}
BENCHMARK(gemm_onto_bench)
    ->UseRealTime()
    ->Unit(benchmark::kMicrosecond)
    ->ArgNames({"M", "N", "K"})
    ->ArgsProduct({{2048}, {192, 576, 1536}, {16}});

// A LoRA linear forward: in one pass, and as a product in f32 with gemm_onto after it.
void gemm_with_low_rank_bench(benchmark::State& state) {
  const int64_t m = state.range(0), n = state.range(1), k = state.range(2);
  const bool one_pass = state.range(3) != 0;
  const Tensor a = filled({m, k}, DType::kBFloat16, 1), b = filled({n, k}, DType::kBFloat16, 2);
  const Tensor u = filled({m, 16}, DType::kBFloat16, 3), low = filled({n, 16}, DType::kBFloat16, 4);
  const Tensor y(Shape{m, n}, DType::kFloat32), c(Shape{m, n}, DType::kBFloat16);
  for (auto _ : state) {
    if (one_pass) {
      gemm_with_low_rank(a, b, {u, low, 1.0f}, c);
    } else {
      gemm(a, b, Transpose::kYes, y, Accumulate::kNo);
      gemm_onto(y, u, low, c);
    }
  }
  count_flops(state, 2.0 * static_cast<double>(m * n * (k + 16)));
}
BENCHMARK(gemm_with_low_rank_bench)
    ->UseRealTime()
    ->Unit(benchmark::kMicrosecond)
    ->ArgNames({"M", "N", "K", "one_pass"})
    ->ArgsProduct({{2048}, {192, 576, 1536}, {576}, {0, 1}})
    ->ArgsProduct({{2048}, {576}, {1536}, {0, 1}});

void gemm_accumulate_bench(benchmark::State& state) {
  const int64_t m = state.range(0), n = state.range(1), k = state.range(2);
  const Tensor a = filled({m, k}, DType::kBFloat16, 2), b = filled({k, n}, DType::kBFloat16, 3);
  const Tensor c(Shape{m, n}, DType::kBFloat16);
  for (auto _ : state)
    gemm(a, b, Transpose::kNo, c, Accumulate::kYes);
  count_flops(state, 2.0 * static_cast<double>(m * n * k));
}
BENCHMARK(gemm_accumulate_bench)
    ->UseRealTime()
    ->Unit(benchmark::kMicrosecond)
    ->ArgNames({"M", "N", "K"})
    ->ArgsProduct({{2048}, {576, 1536}, {16}});

void gemm_over_tokens_bench(benchmark::State& state) {
  const int64_t tokens = state.range(0), n = state.range(1), k = state.range(2);
  const DType dtype = dtype_of_range(state.range(3));
  const Tensor dy = filled({tokens, n}, dtype, 1), x = filled({tokens, k}, dtype, 2);
  const Tensor out(Shape{n, k}, DType::kFloat32);
  for (auto _ : state)
    gemm_over_tokens(dy, x, out, Accumulate::kNo);
  count_flops(state, 2.0 * static_cast<double>(tokens * n * k));
}
BENCHMARK(gemm_over_tokens_bench)
    ->UseRealTime()
    ->Unit(benchmark::kMicrosecond)
    ->ArgNames({"T", "N", "K", "bf16"})
    ->ArgsProduct({{2048}, {16}, {576, 1536}, {0, 1}})
    ->ArgsProduct({{2048}, {576, 1536}, {16}, {0, 1}});

}  // namespace
}  // namespace shardtune::kernels
