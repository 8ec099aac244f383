// Checks of operations and of what adapters build from them against central differences.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "parallel/communicator.h"
#include "parallel/sharded_store.h"
#include "tests/autograd/finite_difference.h"

namespace shardtune::testing {

using autograd::Recording;
using autograd::Tape;
using autograd::Variable;

/// A store of one rank with trainables that tests can move.
class OpsFixture : public ::testing::Test {
 protected:
  void SetUp() override { unit_ = store_.add_unit("layer"); }

  ParameterId trainable(const std::string& name, Shape shape, uint64_t key) {
    const ParameterId id =
        store_.declare({name, unit_, ParameterKind::kTrainable, DType::kFloat32, shape});
    ids_.push_back(id);
    const Tensor values = random_tensor(shape, key, 0.5f);
    store_.publish(id, values.view().bytes());
    return id;
  }

  /// Runs f on a recording tape inside the unit, goes back from weights, checks every input and
  /// every trainable.
  using Function = std::function<Variable(Tape&, const std::vector<Variable>&)>;
  void check(const std::vector<Shape>& shapes, const Function& f, double third = 40.0) {
    for (size_t i = 0; i < shapes.size(); ++i)
      inputs_.push_back(random_tensor(shapes[i], 100 + i));
    store_.seal();
    Tensor weights;
    const auto forward = [&](Tape& tape, std::vector<Variable>& variables, Recording recording) {
      for (const Tensor& input : inputs_)
        variables.push_back(recording == Recording::kOn ? Variable::leaf(input.clone())
                                                        : Variable::constant(input.clone()));
      Variable y;
      tape.in_unit(unit_, [&] { y = f(tape, variables); });
      if (weights.empty())
        weights = random_tensor(y.shape(), 7);
      return y;
    };
    store_.begin_step(1);
    store_.begin_micro_batch(0);
    Tape tape(store_, Recording::kOn);
    std::vector<Variable> variables;
    const Variable y = forward(tape, variables, Recording::kOn);
    double size = 0.0;
    for (int64_t i = 0; i < y.numel(); ++i)
      size += std::abs(y.value().data<const float>()[i] * weights.data<float>()[i]);
    tape.backward(y, weights.clone());
    store_.end_round();
    store_.finish_gradients();
    const auto run = [&] {
      Tape still(store_, Recording::kOff);
      std::vector<Variable> constants;
      return weighted_sum(forward(still, constants, Recording::kOff).value(), weights);
    };
    for (size_t i = 0; i < inputs_.size(); ++i) {
      ASSERT_FALSE(variables[i].grad().empty()) << "input " << i;
      expect_gradient(inputs_[i].span<float>(), variables[i].grad().span<const float>(), run, size,
                      third);
    }
    for (const auto& segment : store_.segments()) {
      const std::vector<float> gradient(segment.gradient.begin(), segment.gradient.end());
      expect_gradient(segment.parameter, gradient, run, size, third);
    }
  }

  std::unique_ptr<parallel::Communicator> comm_ = parallel::make_single_communicator();
  parallel::ShardedParameterStore store_{*comm_, parallel::ZeroStage::k0};
  UnitId unit_{};
  std::vector<ParameterId> ids_;
  std::vector<Tensor> inputs_;
};

}  // namespace shardtune::testing
