// Some optimizer steps on made-up gradients, through the store exactly as the trainer drives it.
// Gradients are a pure function of (step, micro-batch, tensor, element), so that any grouping of
// ranks and stages must end with the same bits.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "core/rng.h"
#include "optim/adamw.h"
#include "optim/clip.h"
#include "parallel/loss_sum.h"
#include "parallel/sharded_store.h"

namespace shardtune::parallel {

/// What a run leaves behind, compared with ==.
struct RunResult {
  std::vector<double> square_sums;
  std::vector<double> losses;
  std::vector<std::vector<float>> weights;  // whole tensors
  std::vector<std::vector<uint16_t>> bf16;
  std::vector<uint8_t> reached;  // per step and tensor
  bool operator==(const RunResult&) const = default;
};

class TrainingSteps {
 public:
  TrainingSteps(Communicator& comm, ZeroStage stage, const FrozenStorage& storage = {})
      : comm_(comm), store_(comm, stage, storage) {
    const UnitId embedding = store_.add_unit("embedding");
    const UnitId layer = store_.add_unit("layer 0");
    walk_ = {embedding, layer, embedding};
    frozen_ =
        store_.declare({"embedding", embedding, ParameterKind::kFrozen, DType::kUInt8, {999}});
    // Around the granule of 4,096, one longer than several, one of one element, one never reached.
    const std::vector<Shape> shapes{{64, 64}, {4097}, {17, 3}, {5, 4000}, {1}, {130, 63}, {7}};
    for (size_t t = 0; t < shapes.size(); ++t)
      ids_.push_back(store_.declare({"tensor" + std::to_string(t), layer, ParameterKind::kTrainable,
                                     DType::kFloat32, shapes[t]}));
    publish(ids_.front());  // one before seal(), the others after
    store_.seal();
    for (size_t t = 1; t < ids_.size(); ++t)
      publish(ids_[t]);
    std::vector<std::byte> bytes(store_.is_publisher(frozen_) ? 999 : 0);
    for (size_t i = 0; i < bytes.size(); ++i)
      bytes[i] = static_cast<std::byte>(i * 7);
    store_.publish(frozen_, bytes);
  }

  RunResult run(const std::vector<int64_t>& micro_batches_of_steps) {
    RunResult result;
    for (size_t step = 0; step < micro_batches_of_steps.size(); ++step)
      run_step(static_cast<int64_t>(step), micro_batches_of_steps[step], result);
    const UnitLease lease = store_.acquire(store_.spec(ids_[0]).unit, Pass::kForward);
    for (const ParameterId id : ids_) {
      const auto weights = store_.value(id).span<const float>();
      result.weights.emplace_back(weights.begin(), weights.end());
      auto& bf16 = result.bf16.emplace_back();
      for (const BFloat16 value : store_.value_bf16(id).span<const BFloat16>())
        bf16.push_back(value.bits);
    }
    return result;
  }

  ShardedParameterStore& store() { return store_; }
  const std::vector<ParameterId>& ids() const { return ids_; }
  ParameterId frozen() const { return frozen_; }

  /// Whether micro-batch m reaches tensor t: the last tensor never, others now and then.
  static bool reaches(int64_t step, int64_t m, size_t t) {
    return t != 6 && CounterRng(mix_key(77, {uint64_t(step), uint64_t(m), t})).below(0, 4) != 0;
  }
  static std::vector<float> leaf(int64_t step, int64_t m, size_t t, int64_t numel) {
    const CounterRng rng(mix_key(7, {uint64_t(step), uint64_t(m), t}));
    std::vector<float> values(static_cast<size_t>(numel));
    // Magnitudes far apart, so that another order of sums gives other bits.
    for (size_t i = 0; i < values.size(); ++i)
      values[i] = std::ldexp(rng.normal(i), static_cast<int>(rng.below(i + (1u << 20), 12)));
    return values;
  }

 private:
  void publish(ParameterId id) {
    const Shape& shape = store_.spec(id).shape;
    std::vector<float> values;
    if (store_.is_publisher(id))
      values = leaf(1000, 0, static_cast<size_t>(id), shape.numel());
    store_.publish(id, std::as_bytes(std::span(values)));
  }

  void run_step(int64_t step, int64_t num_micro_batches, RunResult& result) {
    LossSum losses(comm_);
    losses.begin(num_micro_batches);
    store_.begin_step(num_micro_batches);
    for (int64_t round = 0; round < store_.num_rounds(); ++round) {
      store_.begin_walk(walk_);
      if (const int64_t m = store_.micro_batch_of_round(round); m >= 0) {
        store_.begin_micro_batch(m);
        require_frozen_bytes();
        backward(step, m);
        losses.add(m, {std::exp(double(m)) / 3.0, double(m)});
      }
      store_.end_walk();
      store_.end_round();
    }
    store_.finish_gradients();
    result.losses.push_back(losses.finish().sum);
    result.square_sums.push_back(store_.gradient_square_sum());
    std::vector<uint8_t> reached(ids_.size(), 0);
    for (const auto& segment : store_.segments())
      reached[index_of(segment.id)] |= segment.has_gradient ? 1 : 0;
    for (const uint8_t mark : reached)
      result.reached.push_back(static_cast<uint8_t>(comm_.all_reduce_max(mark)));
    update(step, std::sqrt(result.square_sums.back()));
    store_.publish_updates();
  }

  size_t index_of(ParameterId id) const {
    return static_cast<size_t>(std::ranges::find(ids_, id) - ids_.begin());
  }

  void require_frozen_bytes() {
    const UnitLease lease = store_.acquire(walk_[0], Pass::kForward);
    const auto bytes = store_.value(frozen_).bytes();
    for (size_t i = 0; i < bytes.size(); ++i) {
      if (bytes[i] != static_cast<std::byte>(i * 7))
        throw ArgumentError("frozen byte " + std::to_string(i) + " is another");
    }
  }

  void backward(int64_t step, int64_t m) {
    const UnitLease lease = store_.acquire(walk_[1], Pass::kBackward);
    // Backward order: the last tensor first.
    for (size_t t = ids_.size(); t-- > 0;) {
      if (!reaches(step, m, t))
        continue;
      const Shape& shape = store_.spec(ids_[t]).shape;
      const auto values = leaf(step, m, t, shape.numel());
      store_.grad(ids_[t], TensorView(values.data(), DType::kFloat32, shape));
    }
  }

  void update(int64_t step, double norm) {
    std::vector<optim::OptimizerSegment> segments;
    for (auto& segment : store_.segments()) {
      optim::scale_gradient(segment.gradient, optim::clip_coefficient(norm, 1.0));
      if (!segment.has_gradient)
        continue;
      // States of a range live where the range is updated: the same place in every step.
      auto& states = states_[{static_cast<int64_t>(segment.id), segment.begin}];
      states.resize(2 * segment.parameter.size());
      const std::span<float> all(states);
      segments.push_back({segment.parameter,
                          segment.gradient,
                          {all.first(segment.parameter.size()), all.last(segment.parameter.size())},
                          1e-2,
                          0.1});
    }
    optim::AdamW({}).step(segments, step + 1);
  }

  Communicator& comm_;
  ShardedParameterStore store_;
  std::vector<UnitId> walk_;
  ParameterId frozen_{};
  std::vector<ParameterId> ids_;
  std::map<std::pair<int64_t, int64_t>, std::vector<float>> states_;
};

}  // namespace shardtune::parallel
