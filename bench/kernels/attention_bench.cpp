// Attention of one layer of a 135M model: 9 heads, 3 K/V heads of 64, samples of S tokens, 2,048
// tokens in all. FLOPs are those of the causal half (2 products forward, 5 backward).
#include "bench/kernels/bench_util.h"
#include "kernels/attention.h"

namespace shardtune::kernels {
namespace {

constexpr int64_t kTokens = 2048, kHeads = 9, kKvHeads = 3, kDim = 64;

struct Problem {
  std::vector<int32_t> offsets;
  Tensor q, k, v, out, lse, dout, dq, dk, dv;
  AttentionForward forward;
  AttentionBackward backward;

  Problem(int64_t length, DType dtype)
      : q(filled({kTokens, kHeads * kDim}, dtype, 1)),
        k(filled({kTokens, kKvHeads * kDim}, dtype, 2)),
        v(filled({kTokens, kKvHeads * kDim}, dtype, 3)),
        out(q.shape(), dtype),
        lse(Shape{kTokens, kHeads}, DType::kFloat32),
        dout(filled(q.shape(), dtype, 4)),
        dq(q.shape(), dtype),
        dk(k.shape(), dtype),
        dv(v.shape(), dtype) {
    for (int64_t token = 0; token <= kTokens; token += length)
      offsets.push_back(static_cast<int32_t>(token));
    forward = {{kHeads, kKvHeads, kDim, 0.125f, 0}, offsets, q, k, v, {}, {}, out, lse};
    backward = {forward, dout, dq, dk, dv, {}, {}};
  }
};

double product_flops(int64_t length) {
  return 2.0 * kTokens * static_cast<double>(length) / 2 * kDim * kHeads;
}

void attention_forward_bench(benchmark::State& state) {
  const Problem p(state.range(0), dtype_of_range(state.range(1)));
  for (auto _ : state)
    attention(p.forward);
  count_flops(state, 2 * product_flops(state.range(0)));
}
void attention_backward_bench(benchmark::State& state) {
  const Problem p(state.range(0), dtype_of_range(state.range(1)));
  attention(p.forward);
  for (auto _ : state)
    attention_backward(p.backward);
  count_flops(state, 5 * product_flops(state.range(0)));
}
BENCHMARK(attention_forward_bench)
    ->UseRealTime()
    ->Unit(benchmark::kMillisecond)
    ->ArgNames({"S", "bf16"})
    ->ArgsProduct({{128, 512, 2048}, {0, 1}});
BENCHMARK(attention_backward_bench)
    ->UseRealTime()
    ->Unit(benchmark::kMillisecond)
    ->ArgNames({"S", "bf16"})
    ->ArgsProduct({{128, 512, 2048}, {0, 1}});

void attention_decode_bench(benchmark::State& state) {
  const int64_t length = state.range(0);
  const DType dtype = dtype_of_range(state.range(1));
  const Tensor q = filled({4, kHeads * kDim}, dtype, 1), out(q.shape(), dtype);
  const Tensor cache = filled({length, kKvHeads * kDim}, dtype, 2);
  const std::vector<CachedSequence> sequences(4, {cache.view().raw(), cache.view().raw(), length});
  for (auto _ : state)
    attention_decode({kHeads, kKvHeads, kDim, 0.125f, 0}, sequences, q, out);
  state.SetBytesProcessed(state.iterations() * 4 * 2 * cache.num_bytes());
}
BENCHMARK(attention_decode_bench)
    ->UseRealTime()
    ->Unit(benchmark::kMicrosecond)
    ->ArgNames({"S", "bf16"})
    ->ArgsProduct({{512, 2048}, {0, 1}});

}  // namespace
}  // namespace shardtune::kernels
