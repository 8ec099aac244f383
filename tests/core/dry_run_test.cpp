// A dry run counts what code allocates, touches none of it and runs no loop.
#include "core/dry_run.h"

#include <gtest/gtest.h>

#include "core/error.h"
#include "core/parallel_for.h"

namespace shardtune {
namespace {

TEST(DryRun, TensorsComeFromItsOwnPool) {
  const int64_t before = BufferPool::process().bytes_in_use();
  DryRun dry_run;
  const Tensor tensor(Shape{1 << 20}, DType::kFloat32);
  EXPECT_EQ(dry_run.pool().bytes_in_use(), 4 << 20);
  EXPECT_EQ(BufferPool::process().bytes_in_use(), before);
}

TEST(DryRun, AllocatesWhatNoMachineHas) {
  DryRun dry_run;
  constexpr int64_t kBytes = int64_t{1} << 44;
  {
    const Tensor huge = Tensor::zeros(Shape{kBytes / 4}, DType::kFloat32);
    EXPECT_EQ(dry_run.pool().bytes_in_use(), kBytes);
  }
  EXPECT_EQ(dry_run.pool().bytes_in_use(), 0);
  EXPECT_EQ(dry_run.pool().peak_bytes_in_use(), kBytes);
}

TEST(DryRun, LoopsDoNotRunTheirBodies) {
  int calls = 0;
  {
    const DryRun dry_run;
    parallel_for(10, 1, [&](int64_t, int64_t) { ++calls; });
    parallel_tasks(10, [&](int64_t) { ++calls; });
  }
  EXPECT_EQ(calls, 0);
  parallel_tasks(1, [&](int64_t) { ++calls; });
  EXPECT_EQ(calls, 1);
}

// A buffer that is handed out again makes nothing more resident.
TEST(DryRun, TellsPurposesWhenMostWasResident) {
  DryRun dry_run;
  const Tensor kept(Shape{1000}, DType::kUInt8);
  {
    const PurposeScope outer(Purpose::kHead);
    const Tensor logits(Shape{3000}, DType::kUInt8);
    const PurposeScope inner(Purpose::kDequantised);
    const Tensor dense(Shape{2000}, DType::kUInt8);
  }
  const Tensor later(Shape{2000}, DType::kUInt8);
  const auto& bytes = dry_run.bytes_at_peak();
  EXPECT_EQ(bytes[static_cast<size_t>(Purpose::kActivations)], 1000);
  EXPECT_EQ(bytes[static_cast<size_t>(Purpose::kHead)], 3000);
  EXPECT_EQ(bytes[static_cast<size_t>(Purpose::kDequantised)], 2000);
}

TEST(DryRun, CountsTheScratchOfEveryThread) {
  const int threads = num_threads();
  set_num_threads(3);
  DryRun dry_run;
  count_task_scratch(8, 1 << 20);
  EXPECT_EQ(dry_run.pool().peak_bytes_in_use(), 3 << 20);
  count_task_scratch(2, 8 << 20);
  EXPECT_EQ(dry_run.pool().peak_bytes_in_use(), 16 << 20);
  set_num_threads(threads);
}

TEST(DryRun, OnlyOneInAThread) {
  const DryRun dry_run;
  EXPECT_THROW(DryRun(), ArgumentError);
}

TEST(BufferPool, ResidentBytesArePagesThatWereAskedFor) {
  BufferPool pool;
  constexpr int64_t kBytes = (1 << 20) + 4096;  // its size class is an eighth above 1 MiB
  void* const pointer = pool.allocate(kBytes);
  EXPECT_EQ(pool.peak_resident_bytes(), kBytes);
  EXPECT_GT(pool.peak_bytes_in_use(), kBytes);
  pool.release(pointer, kBytes);
  // The kept buffer serves a longer request of its class and then covers more.
  pool.release(pool.allocate(kBytes + 8192), kBytes + 8192);
  EXPECT_EQ(pool.peak_resident_bytes(), kBytes + 8192);
}

}  // namespace
}  // namespace shardtune
