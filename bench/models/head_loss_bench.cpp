// Head and cross-entropy with the gradient of the hidden states, 2,048 tokens of width 576, the
// table frozen in bf16. Arguments: vocabulary, share of tokens that are trained in percent.
// `grown_bytes`: what the resident set grew by at its most in the process' first call.
#include <unistd.h>

#include <fstream>
#include <string>

#include "bench/kernels/bench_util.h"
#include "models/head.h"
#include "parallel/sharded_store.h"
#include "parallel/thread_communicator.h"

namespace shardtune::models {
namespace {

constexpr int64_t kTokens = 2048, kHidden = 576;

double resident_bytes() {
  std::ifstream file("/proc/self/statm");
  double size = 0.0, resident = 0.0;
  file >> size >> resident;
  return resident * static_cast<double>(sysconf(_SC_PAGESIZE));
}

// The kernel's mark of the largest resident set, and how to set it back to what there is now.
void forget_peak() { std::ofstream("/proc/self/clear_refs") << "5"; }
double peak_bytes() {  // getrusage's would also count what started this process
  std::ifstream file("/proc/self/status");
  for (std::string word; file >> word;) {
    double kibibytes = 0.0;
    if (word == "VmHWM:" && file >> kibibytes)
      return kibibytes * 1024.0;
  }
  return 0.0;
}

void head_loss_bench(benchmark::State& state) {
  const int64_t vocabulary = state.range(0), percent = state.range(1);
  const auto comm = parallel::make_single_communicator();
  parallel::ShardedParameterStore store(*comm, parallel::ZeroStage::k0, {});
  VocabularyTable table(store, "lm_head.weight", {vocabulary, kHidden, DType::kBFloat16, false});
  table.load([](int64_t begin, int64_t end, float* out) {
    for (int64_t i = begin * kHidden; i < end * kHidden; ++i)
      *out++ = 0.02f * CounterRng(5).normal(static_cast<uint64_t>(i));
  });
  store.seal();
  const Tensor hidden = kernels::filled({kTokens, kHidden}, DType::kBFloat16, 1);
  std::vector<int32_t> labels(kTokens, kIgnoreLabel);
  for (int64_t t = 0; t < kTokens; ++t) {
    if (t * percent / 100 != (t + 1) * percent / 100)
      labels[static_cast<size_t>(t)] = static_cast<int32_t>(t * 7919 % vocabulary);
  }
  const auto call = [&] {
    autograd::Tape tape(store, autograd::Recording::kOn);
    benchmark::DoNotOptimize(head_cross_entropy(
        tape, table, autograd::Variable::leaf(hidden.clone()), labels, 1.0f / kTokens));
  };
  static const double grown = [&] {
    forget_peak();
    const double before = resident_bytes();
    call();
    return std::max(0.0, peak_bytes() - before);
  }();
  for (auto _ : state)
    call();
  state.counters["grown_bytes"] = grown;
}
BENCHMARK(head_loss_bench)
    ->UseRealTime()
    ->Unit(benchmark::kMillisecond)
    ->ArgNames({"V", "percent"})
    ->ArgsProduct({{49152, 128256}, {100, 50, 10}});

}  // namespace
}  // namespace shardtune::models
