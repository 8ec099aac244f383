// Row operations: bytes read and written per second. Head: statistics and gradient of 512 rows of
// one chunk of 8,192 vocabulary entries.
#include "bench/kernels/bench_util.h"
#include "kernels/cross_entropy.h"
#include "kernels/norm.h"
#include "kernels/rope.h"

namespace shardtune::kernels {
namespace {

void softmax_merge_bench(benchmark::State& state) {
  const Tensor logits = filled({512, 8192}, DType::kFloat32, 1);
  const std::vector<int32_t> labels(512, 77);
  for (auto _ : state) {
    SoftmaxStats stats(512);
    softmax_stats_merge(logits, 0, labels, stats);
  }
  state.SetBytesProcessed(state.iterations() * logits.num_bytes());
}
BENCHMARK(softmax_merge_bench)->UseRealTime()->Unit(benchmark::kMicrosecond);

void dlogits_bench(benchmark::State& state) {
  const Tensor logits = filled({512, 8192}, DType::kFloat32, 1);
  const Tensor dlogits(logits.shape(), dtype_of_range(state.range(0)));
  const std::vector<int32_t> labels(512, 77);
  SoftmaxStats stats(512);
  softmax_stats_merge(logits, 0, labels, stats);
  for (auto _ : state)
    cross_entropy_dlogits(logits, 0, labels, stats, 1.0f, dlogits);
  state.SetBytesProcessed(state.iterations() * (logits.num_bytes() + dlogits.num_bytes()));
}
BENCHMARK(dlogits_bench)
    ->UseRealTime()
    ->Unit(benchmark::kMicrosecond)
    ->ArgName("bf16")
    ->Arg(0)
    ->Arg(1);

void row_bench(benchmark::State& state) {
  const DType dtype = dtype_of_range(state.range(1));
  const Tensor x = filled({2048, 1536}, dtype, 1), y = filled(x.shape(), dtype, 2);
  const Tensor z(x.shape(), dtype), w(x.shape(), dtype), rstd(Shape{2048}, DType::kFloat32);
  const Tensor weight = filled({1536}, DType::kFloat32, 3);
  const std::vector<float> frequencies = rope_inverse_frequencies(64, 1e4);
  std::vector<int32_t> positions(2048);
  for (size_t t = 0; t < positions.size(); ++t)
    positions[t] = static_cast<int32_t>(t);
  const std::vector<uint64_t> samples(2048, 5);
  int64_t arrays = 2;
  for (auto _ : state) {
    switch (state.range(0)) {
      case 0:
        rms_norm(x, weight, 1e-5f, z, rstd);
        break;
      case 1:
        arrays = 3;
        rms_norm_backward({y, x, weight, rstd, z, {}}, Accumulate::kNo);
        break;
      case 2:
        arrays = 3;
        swiglu(x, y, z);
        break;
      case 3:
        arrays = 5;
        swiglu_backward({y, x, y, z, w});
        break;
      case 4:
        rope(z, {positions, frequencies}, RopeDirection::kForward);
        break;
      case 5:
        dropout(x, 0.1f, {3, samples, positions}, z, Accumulate::kNo);
        break;
      default:
        copy_scaled(x, z, Accumulate::kNo, 0.5f);
    }
  }
  state.SetLabel(std::vector<const char*>{"rms_norm", "rms_norm_backward", "swiglu",
                                          "swiglu_backward", "rope", "dropout",
                                          "copy"}[static_cast<size_t>(state.range(0))]);
  state.SetBytesProcessed(state.iterations() * arrays * x.num_bytes());
}
BENCHMARK(row_bench)
    ->UseRealTime()
    ->Unit(benchmark::kMicrosecond)
    ->ArgNames({"op", "bf16"})
    ->ArgsProduct({{0, 1, 2, 3, 4, 5, 6}, {0, 1}});

}  // namespace
}  // namespace shardtune::kernels
