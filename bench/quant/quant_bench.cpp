// Quantising and decoding in GB/s of fp32 read or output written, and what decoding adds to a
// product of training size.
#include <benchmark/benchmark.h>

#include <vector>

#include "quant/double_quant.h"
#include "quant/frozen_weight.h"
#include "quant/int8.h"
#include "quant/nf4.h"
#include "tests/quant/weight_fixture.h"

namespace shardtune::quant {
namespace {

constexpr int64_t kOut = 1536;
constexpr int64_t kIn = 576;

const QuantizationOptions kFormats[] = {{"none", 64, false},
                                        {"nf4", 64, false},
                                        {"nf4", 64, true},
                                        {"int8", 64, false},
                                        {"fp4", 64, true}};

void set_rate(benchmark::State& state, int64_t num_bytes) {
  state.SetBytesProcessed(state.iterations() * num_bytes);
}

// Range 0: MiB of fp32; range 1: with double quantisation.
void quantize_nf4(benchmark::State& state) {
  const int64_t n = state.range(0) << 18;
  const std::vector<float> x = normal_values(n, 0.02f, 1);
  std::vector<uint8_t> codes(static_cast<size_t>(n / 2));
  std::vector<float> absmax(static_cast<size_t>(n / 64));
  std::vector<uint8_t> absmax_codes(absmax.size());
  std::vector<float> nested(static_cast<size_t>(ceil_div(n / 64, kNestedBlockSize)));
  for (auto _ : state) {
    benchmark::DoNotOptimize(nf4_quantize(x, 64, codes, absmax));
    if (state.range(1) != 0)
      quantize_absmax(absmax, absmax_offset(absmax), absmax_codes, nested);
  }
  set_rate(state, n * size_of(DType::kFloat32));
}
BENCHMARK(quantize_nf4)->ArgsProduct({{4, 64}, {0, 1}})->ArgNames({"MiB", "double"})->UseRealTime();

void quantize_int8(benchmark::State& state) {
  const int64_t n = state.range(0) << 18;
  const std::vector<float> x = normal_values(n, 0.02f, 1);
  std::vector<int8_t> codes(x.size());
  std::vector<float> absmax(static_cast<size_t>(n / 1024));
  for (auto _ : state)
    benchmark::DoNotOptimize(int8_quantize_rows(x, 1024, codes, absmax));
  set_rate(state, n * size_of(DType::kFloat32));
}
BENCHMARK(quantize_int8)->Arg(4)->Arg(64)->ArgName("MiB")->UseRealTime();

// Range 0: format; range 1: bf16 (1) or fp32 output.
void decode(benchmark::State& state) {
  const DType dtype = state.range(1) != 0 ? DType::kBFloat16 : DType::kFloat32;
  const LoadedWeight loaded(kFormats[state.range(0)], kOut, kIn, dtype);
  const Tensor out({kOut, kIn}, dtype);
  for (auto _ : state)
    loaded.weight->dequantize_rows(0, kOut, out);
  set_rate(state, out.num_bytes());
  state.SetLabel(kFormats[state.range(0)].method);
}
BENCHMARK(decode)->ArgsProduct({{0, 1, 2, 3}, {0, 1}})->ArgNames({"format", "bf16"})->UseRealTime();

// The MLP of a 1.1B model, as the peers' measurements have it. Range 0: format; range 1:
// transposed; range 2: rows of the left side. Compare with format 0, the dense weight.
void product(benchmark::State& state) {
  constexpr int64_t kProductOut = 5632, kProductIn = 2048;
  const int64_t tokens = state.range(2);
  const LoadedWeight loaded(kFormats[state.range(0)], kProductOut, kProductIn, DType::kBFloat16);
  const Tensor x = tensor_of(normal_values(tokens * kProductIn, 1.0f, 2), {tokens, kProductIn},
                             DType::kBFloat16);
  const Tensor y = tensor_of(normal_values(tokens * kProductOut, 1.0f, 3), {tokens, kProductOut},
                             DType::kBFloat16);
  for (auto _ : state) {
    if (state.range(1) != 0)
      loaded.weight->matmul_transposed(y, x, Accumulate::kNo);
    else
      loaded.weight->matmul(x, y, Accumulate::kNo);
  }
  const double values = static_cast<double>(kProductOut * kProductIn);
  state.counters["FLOP/s"] = benchmark::Counter(2.0 * static_cast<double>(tokens) * values,
                                                benchmark::Counter::kIsIterationInvariantRate);
  state.SetLabel(kFormats[state.range(0)].method);
}
BENCHMARK(product)
    ->ArgsProduct({{0, 1, 2, 3}, {0, 1}, {1, 8, 16, 32, 48, 64, 96, 128, 512, 1024}})
    ->ArgNames({"format", "transposed", "tokens"})
    ->UseRealTime();

}  // namespace
}  // namespace shardtune::quant

BENCHMARK_MAIN();
