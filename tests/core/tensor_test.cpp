#include "core/tensor.h"

#include <gtest/gtest.h>

#include <utility>
#include <vector>

namespace shardtune {
namespace {

TEST(Shape, CountsElementsAndPrints) {
  EXPECT_EQ(Shape().numel(), 1);
  EXPECT_EQ((Shape{2, 3, 4}).numel(), 24);
  EXPECT_EQ((Shape{2048, 576}).to_string(), "[2048, 576]");
  EXPECT_TRUE((Shape{2, 3}) == (Shape{2, 3}));
  EXPECT_FALSE((Shape{2, 3}) == (Shape{3, 2}));
  EXPECT_FALSE((Shape{2}) == (Shape{2, 1}));
  EXPECT_THROW((Shape{1, 1, 1, 1, 1}), ArgumentError);
  EXPECT_THROW((Shape{-1}), ArgumentError);
  EXPECT_THROW((Shape{int64_t{1} << 42, int64_t{1} << 42}), ArgumentError);
}

TEST(Tensor, OwnsMovesAndClones) {
  const std::vector<float> values = {1, 2, 3, 4, 5, 6};
  Tensor a = Tensor::from(values, {2, 3});
  EXPECT_EQ(reinterpret_cast<uintptr_t>(a.data<float>()) % 64, 0u);
  const float* memory = a.data<float>();
  Tensor b = std::move(a);
  EXPECT_TRUE(a.empty());
  EXPECT_EQ(b.data<float>(), memory);
  Tensor c = b.clone();
  c.data<float>()[0] = 9;
  EXPECT_EQ(b.data<float>()[0], 1.0f);
  EXPECT_EQ(c.span<float>()[5], 6.0f);
  b = std::move(c);
  EXPECT_EQ(b.data<float>()[0], 9.0f);
  for (const float value : Tensor::zeros({3, 5}, DType::kFloat32).span<float>())
    EXPECT_EQ(value, 0.0f);
}

TEST(TensorView, ChecksTypesShapesAndRows) {
  const Tensor tensor = Tensor::from(std::vector<float>{1, 2, 3, 4, 5, 6}, {3, 2});
  const TensorView& view = tensor.view();
  EXPECT_THROW(view.data<int32_t>(), ArgumentError);
  EXPECT_EQ(view.data<const float>()[1], 2.0f);
  EXPECT_EQ(view.rows(1, 3).data<float>()[0], 3.0f);
  EXPECT_EQ(view.rows(1, 3).shape().to_string(), "[2, 2]");
  EXPECT_EQ(view.rows(3, 3).numel(), 0);
  EXPECT_THROW(view.rows(2, 4), ArgumentError);
  EXPECT_THROW(view.rows(2, 1), ArgumentError);
  EXPECT_EQ(view.reshaped({6}).dim(0), 6);
  EXPECT_THROW(view.reshaped({5}), ArgumentError);
  EXPECT_EQ(view.num_bytes(), 24);
}

TEST(BufferPool, ReusesFreedBuffersAndCounts) {
  BufferPool pool;
  void* const first = pool.allocate(10'000);
  EXPECT_GE(pool.bytes_in_use(), 10'000);
  pool.release(first, 10'000);
  EXPECT_EQ(pool.bytes_in_use(), 0);
  EXPECT_GE(pool.bytes_kept(), 10'000);
  EXPECT_EQ(pool.allocate(10'000), first);
  void* const second = pool.allocate(10'000);
  EXPECT_NE(second, first);
  EXPECT_GE(pool.peak_bytes_in_use(), 20'000);
  pool.release(first, 10'000);
  pool.release(second, 10'000);
  pool.trim();
  EXPECT_EQ(pool.bytes_kept(), 0);
  void* const empty = pool.allocate(0);
  EXPECT_NE(empty, nullptr);
  pool.release(empty, 0);
}

TEST(BufferPool, AnImpossibleRequestIsATypedError) {
#if defined(__SANITIZE_ADDRESS__)
  GTEST_SKIP() << "the address sanitizer ends the program instead";
#else
  BufferPool pool;
  EXPECT_THROW(pool.allocate(int64_t{1} << 60), OutOfMemoryError);
  EXPECT_EQ(pool.peak_bytes_in_use(), 0);
#endif
}

TEST(BufferPool, HoldsNoMoreThanTheMostEverInUseAndSomeScratch) {
  BufferPool pool;
  const auto run_batch = [&](int64_t bytes) {
    std::vector<void*> buffers;
    for (int i = 0; i < 8; ++i)
      buffers.push_back(pool.allocate(bytes));
    for (void* const buffer : buffers)
      pool.release(buffer, bytes);
  };
  run_batch(16 << 20);  // the longest: the probe
  const int64_t most = pool.peak_bytes_in_use();
  for (int64_t bytes = 16 << 20; bytes > 10'000; bytes -= 400'000) {
    run_batch(bytes);
    EXPECT_LE(pool.bytes_in_use() + pool.bytes_kept(), most + BufferPool::kAlwaysKeptBytes)
        << bytes;
  }
  EXPECT_EQ(pool.peak_bytes_in_use(), most);
}

// Loops walk buffers of one size side by side: at the same place in the caches and in the banks of
// memory they would take turns (AdamW over 67 million values took twice as long).
TEST(BufferPool, LargeBuffersOfOneSizeDoNotLieAMultipleOfACacheWayApart) {
  constexpr int64_t kBytes = 1 << 22, kCacheWay = 1 << 17;
  const Tensor a(Shape{kBytes}, DType::kUInt8), b(Shape{kBytes}, DType::kUInt8);
  const auto place = [](const Tensor& x) {
    return static_cast<int64_t>(reinterpret_cast<uintptr_t>(x.view().raw()) % kCacheWay);
  };
  EXPECT_NE(place(a), place(b));
}

TEST(Tensor, MovesCarryTheWholeBufferBack) {
  const int64_t before = BufferPool::process().bytes_in_use();
  {
    Tensor a({1000}, DType::kFloat32);
    Tensor b({10}, DType::kFloat32);
    b = std::move(a);
    const Tensor c = std::move(b);
    EXPECT_EQ(c.numel(), 1000);
  }
  EXPECT_EQ(BufferPool::process().bytes_in_use(), before);
}

}  // namespace
}  // namespace shardtune
