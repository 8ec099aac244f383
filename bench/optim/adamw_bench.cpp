// AdamW over flat fp32 arrays: bytes read and written per second (parameter, both moments and the
// gradient read, the first three written). Argument: elements.
#include "bench/kernels/bench_util.h"
#include "optim/adamw.h"

namespace shardtune::optim {
namespace {

void adamw_bench(benchmark::State& state) {
  const int64_t count = state.range(0);
  const Tensor parameter = kernels::filled({count}, DType::kFloat32, 1);
  const Tensor gradient = kernels::filled({count}, DType::kFloat32, 2);
  const Tensor mean = Tensor::zeros({count}, DType::kFloat32);
  const Tensor square = Tensor::zeros({count}, DType::kFloat32);
  const AdamW optimizer(AdamWOptions{});
  const std::vector<OptimizerSegment> segments = {
      {parameter.view().span<float>(),
       gradient.view().span<float>(),
       {mean.view().span<float>(), square.view().span<float>()},
       1e-4,
       0.01}};
  int64_t step = 0;
  for (auto _ : state)
    optimizer.step(segments, ++step);
  state.SetBytesProcessed(state.iterations() * count * 7 * size_of(DType::kFloat32));
}
BENCHMARK(adamw_bench)
    ->UseRealTime()
    ->Unit(benchmark::kMillisecond)
    ->ArgName("N")
    ->Arg(4884480)
    ->Arg(1 << 26)
    ->Arg(67000003);

}  // namespace
}  // namespace shardtune::optim
