// Signals while oneDNN's generated code runs: see trainer/signals.h for why the handlers need a
// stack of their own.
#include "trainer/signals.h"

#include <gtest/gtest.h>
#include <pthread.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstring>
#include <thread>

#include "core/parallel_for.h"
#include "kernels/gemm.h"

namespace shardtune::trainer {
namespace {

Tensor filled(Shape shape) {
  Tensor tensor(shape, DType::kFloat32);
  for (int64_t i = 0; i < tensor.numel(); ++i)
    tensor.data<float>()[i] = static_cast<float>(i * 7919 % 1000) / 1000.0f - 0.5f;
  return tensor;
}

// Sends USR1 to this thread every 50 microseconds. Signals within 100 ms of the first count as one
// signal, so a burst of 30 ms does not end the process.
TEST(Signals, LeaveProductsAndHeapAsTheyAre) {
  const int threads_before = num_threads();
  set_num_threads(1);
  const Tensor a = filled({256, 1536});
  const Tensor b = filled({1536, 576});
  Tensor expected({256, 576}, DType::kFloat32);
  kernels::gemm(a, b, kernels::Transpose::kNo, expected, kernels::Accumulate::kNo);
  const pthread_t target = pthread_self();
  for (int round = 0; round < 30; ++round) {
    SignalGuard guard;
    std::atomic<bool> stop = false;
    std::thread sender([&] {
      const auto end = std::chrono::steady_clock::now() + std::chrono::milliseconds(30);
      while (!stop && std::chrono::steady_clock::now() < end) {
        pthread_kill(target, SIGUSR1);
        usleep(50);
      }
      stop = true;
    });
    while (!stop) {
      Tensor found({256, 576}, DType::kFloat32);
      kernels::gemm(a, b, kernels::Transpose::kNo, found, kernels::Accumulate::kNo);
      ASSERT_EQ(std::memcmp(found.data<float>(), expected.data<float>(),
                            static_cast<size_t>(found.num_bytes())),
                0);
    }
    sender.join();
    EXPECT_EQ(guard.received(), SIGUSR1);
  }
  set_num_threads(threads_before);
}

}  // namespace
}  // namespace shardtune::trainer
