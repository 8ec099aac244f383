// What the store refuses: misuse that would pass unseen at one stage and break at another.
#include <gtest/gtest.h>

#include "parallel/sharded_store.h"
#include "parallel/thread_communicator.h"

namespace shardtune::parallel {
namespace {

struct SmallStore {
  explicit SmallStore(Communicator& comm) : store(comm, ZeroStage::k2) {
    unit = store.add_unit("layer 0");
    frozen = store.declare({"codes", unit, ParameterKind::kFrozen, DType::kUInt8, {4}});
    trained = store.declare({"lora_A", unit, ParameterKind::kTrainable, DType::kFloat32, {2, 2}});
  }
  void fill() {
    const std::vector<std::byte> codes(4, std::byte{7});
    const std::vector<float> weights{1.0f, 2.0f, 3.0f, 4.0f};
    store.publish(frozen, codes);
    store.publish(trained, std::as_bytes(std::span(weights)));
  }
  ShardedParameterStore store;
  UnitId unit{};
  ParameterId frozen{}, trained{};
};

class StoreContract : public testing::Test {
 protected:
  std::unique_ptr<Communicator> comm_ = make_single_communicator();
  SmallStore small_{*comm_};
};

TEST_F(StoreContract, ValuesNeedALease) {
  small_.fill();
  small_.store.seal();
  EXPECT_THROW(small_.store.value(small_.trained), ArgumentError);
  {
    const UnitLease outer = small_.store.acquire(small_.unit, Pass::kForward);
    { const UnitLease inner = small_.store.acquire(small_.unit, Pass::kBackward); }
    EXPECT_EQ(small_.store.value(small_.trained).data<float>()[3], 4.0f);
    EXPECT_EQ(float(small_.store.value_bf16(small_.trained).data<BFloat16>()[2]), 3.0f);
    EXPECT_EQ(small_.store.value(small_.frozen).data<uint8_t>()[0], 7);
    EXPECT_THROW(small_.store.value_bf16(small_.frozen), ArgumentError);
  }
  EXPECT_THROW(small_.store.value(small_.trained), ArgumentError);
}

TEST_F(StoreContract, ValuesNeedToBePublished) {
  small_.store.seal();
  const UnitLease lease = small_.store.acquire(small_.unit, Pass::kForward);
  EXPECT_THROW(small_.store.value(small_.frozen), ArgumentError);
  EXPECT_THROW(small_.store.value(small_.trained), ArgumentError);
}

TEST_F(StoreContract, DeclarationsAreChecked) {
  const auto declare = [&](std::string name, UnitId unit, DType dtype) {
    return small_.store.declare({name, unit, ParameterKind::kTrainable, dtype, {2}});
  };
  EXPECT_THROW(declare("codes", small_.unit, DType::kFloat32), ArgumentError);
  EXPECT_THROW(declare("x", UnitId{9}, DType::kFloat32), ArgumentError);
  EXPECT_THROW(declare("x", small_.unit, DType::kBFloat16), ArgumentError);
  EXPECT_EQ(small_.store.find("x"), kNoParameter);
  EXPECT_EQ(small_.store.find("lora_A"), small_.trained);
  small_.store.seal();
  EXPECT_THROW(declare("x", small_.unit, DType::kFloat32), ArgumentError);
  EXPECT_THROW(small_.store.seal(), ArgumentError);
  EXPECT_THROW(small_.store.spec(ParameterId{17}), ArgumentError);
  EXPECT_THROW(small_.store.acquire(UnitId{-1}, Pass::kForward), ArgumentError);
}

TEST_F(StoreContract, PublishedBytesHaveTheSizeOfTheSpec) {
  const std::vector<std::byte> three(3);
  EXPECT_THROW(small_.store.publish(small_.frozen, three), ArgumentError);
}

TEST_F(StoreContract, PublishingAgainReplacesTheBytes) {
  small_.fill();
  small_.store.seal();
  const std::vector<float> weights{9.0f, 8.0f, 7.0f, 6.0f};
  small_.store.publish(small_.trained, std::as_bytes(std::span(weights)));
  const UnitLease lease = small_.store.acquire(small_.unit, Pass::kForward);
  EXPECT_EQ(small_.store.value(small_.trained).data<float>()[0], 9.0f);
  EXPECT_EQ(float(small_.store.value_bf16(small_.trained).data<BFloat16>()[0]), 9.0f);
}

TEST_F(StoreContract, GradientsComeOncePerMicroBatchAndFit) {
  small_.fill();
  small_.store.seal();
  const Tensor leaf = Tensor::zeros({2, 2}, DType::kFloat32);
  const Tensor other = Tensor::zeros({4}, DType::kFloat32);
  EXPECT_THROW(small_.store.grad(small_.trained, leaf), ArgumentError);
  small_.store.begin_step(1);
  EXPECT_THROW(small_.store.grad(small_.trained, leaf), ArgumentError);
  small_.store.begin_micro_batch(0);
  EXPECT_THROW(small_.store.grad(small_.frozen, leaf), ArgumentError);
  EXPECT_THROW(small_.store.grad(small_.trained, other), ArgumentError);
  small_.store.grad(small_.trained, leaf);
  EXPECT_THROW(small_.store.grad(small_.trained, leaf), ArgumentError);
}

TEST_F(StoreContract, StepsRunInOrder) {
  EXPECT_THROW(small_.store.begin_step(1), ArgumentError);  // before seal()
  small_.store.seal();
  EXPECT_THROW(small_.store.end_round(), ArgumentError);
  EXPECT_THROW(small_.store.begin_step(0), ArgumentError);
  small_.store.begin_step(2);
  EXPECT_THROW(small_.store.begin_step(2), ArgumentError);
  EXPECT_THROW(small_.store.begin_micro_batch(1), ArgumentError);
  EXPECT_THROW(small_.store.end_round(), ArgumentError);  // micro-batch 0 was not run
  small_.store.begin_micro_batch(0);
  EXPECT_THROW(small_.store.begin_micro_batch(0), ArgumentError);
  small_.store.end_round();
  EXPECT_THROW(small_.store.finish_gradients(), ArgumentError);
  EXPECT_THROW(small_.store.gradient_square_sum(), ArgumentError);
  small_.store.begin_micro_batch(1);
  small_.store.end_round();
  small_.store.finish_gradients();
  EXPECT_EQ(small_.store.gradient_square_sum(), 0.0);
}

TEST_F(StoreContract, StagesAreZeroToThree) {
  EXPECT_EQ(zero_stage_from(3), ZeroStage::k3);
  EXPECT_THROW(zero_stage_from(4), ConfigError);
  EXPECT_THROW(zero_stage_from(-1), ConfigError);
}

TEST_F(StoreContract, RanksMustDeclareTheSame) {
  EXPECT_THROW(run_on_threads(3,
                              [](Communicator& comm) {
                                ShardedParameterStore store(comm, ZeroStage::k2);
                                const UnitId unit = store.add_unit("layer 0");
                                store.declare({"w",
                                               unit,
                                               ParameterKind::kTrainable,
                                               DType::kFloat32,
                                               {2, comm.rank() == 2 ? 3 : 2}});
                                store.seal();
                              }),
               RankMismatchError);
}

TEST_F(StoreContract, RanksMustAgreeOnTheNumberOfMicroBatches) {
  EXPECT_THROW(run_on_threads(2,
                              [](Communicator& comm) {
                                SmallStore small(comm);
                                small.fill();
                                small.store.seal();
                                small.store.begin_step(comm.rank() == 0 ? 4 : 3);
                                small.store.begin_micro_batch(comm.rank());
                                small.store.end_round();
                              }),
               RankMismatchError);
}

TEST_F(StoreContract, WithoutTrainablesAStepIsEmpty) {
  ShardedParameterStore store(*comm_, ZeroStage::k2);
  store.add_unit("layer 0");
  store.seal();
  store.begin_step(1);
  store.begin_micro_batch(0);
  store.end_round();
  store.finish_gradients();
  EXPECT_TRUE(store.segments().empty());
  EXPECT_EQ(store.gradient_square_sum(), 0.0);
  store.publish_updates();
}

}  // namespace
}  // namespace shardtune::parallel
