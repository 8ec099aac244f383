// Products in int8 of one layer of a 135M and a 1.1B model, with quantising the rows and decoding
// and packing a dense bf16 weight. Arguments: M, out, in, backward.
#include "bench/kernels/bench_util.h"
#include "kernels/gemm_int8.h"

namespace shardtune::kernels {
namespace {

void gemm_int8_bench(benchmark::State& state) {
  const int64_t m = state.range(0), out = state.range(1), in = state.range(2);
  const bool backward = state.range(3) != 0;
  const Tensor weight = filled({out, in}, DType::kBFloat16, 1);
  const Tensor x =
      filled({m, backward ? out : in}, backward ? DType::kFloat32 : DType::kBFloat16, 2);
  const Tensor y(Shape{m, backward ? in : out}, DType::kFloat32);
  Tensor columns(Shape{in}, DType::kFloat32), rows(Shape{out}, DType::kFloat32);
  std::fill_n(columns.data<float>(), in, 1.0f);
  std::fill_n(rows.data<float>(), out, 200.0f);
  Int8Weight w{out, in, {}, columns.data<float>(), rows.data<float>()};
  w.blocks = [&](const Block& block, const TensorView& to) {
    const auto* values = weight.data<BFloat16>();
    for (int64_t r = 0; r < block.num_rows; ++r) {
      const BFloat16* row = values + (block.first_row + r) * in + block.first_column;
      for (int64_t i = 0; i < block.num_columns; ++i)
        to.data<float>()[r * block.num_columns + i] = static_cast<float>(row[i]);
    }
  };
  for (auto _ : state) {
    const Int8Rows codes = quantize_rows_int8(x, backward ? rows : columns);
    gemm_int8(codes, w, backward ? Transpose::kNo : Transpose::kYes, backward ? columns : rows, y,
              Accumulate::kNo);
  }
  count_flops(state, 2.0 * static_cast<double>(m * out * in));
}
BENCHMARK(gemm_int8_bench)
    ->UseRealTime()
    ->Unit(benchmark::kMicrosecond)
    ->ArgNames({"M", "out", "in", "back"})
    ->ArgsProduct({{2048}, {576}, {576}, {0, 1}})
    ->ArgsProduct({{2048}, {1536}, {576}, {0, 1}})
    ->ArgsProduct({{2048}, {576}, {1536}, {0, 1}})
    ->ArgsProduct({{2048}, {192}, {576}, {0, 1}})
    ->ArgsProduct({{512}, {5632}, {2048}, {0, 1}})
    ->ArgsProduct({{512}, {2048}, {5632}, {0, 1}});

void quantize_rows_bench(benchmark::State& state) {
  const Tensor x = filled({state.range(0), state.range(1)}, dtype_of_range(state.range(2)), 2);
  const Tensor factors = filled({state.range(1)}, DType::kFloat32, 3);
  for (auto _ : state)
    benchmark::DoNotOptimize(quantize_rows_int8(x, factors));
  state.SetItemsProcessed(state.iterations() * x.view().numel());
}
BENCHMARK(quantize_rows_bench)
    ->UseRealTime()
    ->Unit(benchmark::kMicrosecond)
    ->ArgNames({"M", "K", "bf16"})
    ->ArgsProduct({{2048}, {576, 1536}, {0, 1}});

}  // namespace
}  // namespace shardtune::kernels
