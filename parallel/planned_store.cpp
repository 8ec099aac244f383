#include "parallel/planned_store.h"

#include <algorithm>
#include <bit>
#include <utility>

#include "core/checked.h"
#include "core/dry_run.h"

namespace shardtune::parallel {

void PlannedStore::publish(ParameterId id, std::span<const std::byte> bytes) {
  residency_.publish(id, bytes);
  const DeclaredParameter& parameter = table_.at(id);
  if (parameter.is_trainable())
    return;
  published_ = parameter.num_bytes + (parameter.spec.part_of != kNoParameter ? published_ : 0);
  largest_published_ = std::max(largest_published_, published_);
}

UnitLease PlannedStore::acquire(UnitId unit, Pass) {
  walk_.acquire(unit);
  return UnitLease(*this, unit);
}

void PlannedStore::seal() {
  std::vector<ShardedTensor> tensors;
  for (const ParameterId id : table_.trainables())
    tensors.push_back({id, table_.at(id).spec.shape.numel()});
  shards_ = ShardLayout(std::move(tensors), table_.world_size());
  flat_ = FlatLayout(shards_);
  residency_.seal(shards_, flat_);
}

void PlannedStore::begin_step(int64_t num_micro_batches) { gradient_ = Tensor(); }

void PlannedStore::begin_micro_batch() {
  const PurposeScope purpose(Purpose::kParameters);
  if (leaf_.empty() && flat_.size() > 0)
    leaf_ = Tensor::zeros(Shape{flat_.size()}, DType::kFloat32);
}

void PlannedStore::end_round(int64_t num_leaves) {
  for (int peer = 0; peer < table_.world_size(); ++peer) {
    if (peer != rank_)
      traffic_.gradients.sent += flat_.shard(peer).length() * size_of(DType::kFloat32);
  }
  if (shard().empty())
    return;
  traffic_.gradients.received += (num_leaves - 1) * shard().length() * size_of(DType::kFloat32);
  const PurposeScope purpose(Purpose::kParameters);
  std::vector<Tensor> received;
  for (int64_t i = 1; i < num_leaves; ++i)
    received.emplace_back(Shape{shard().length()}, DType::kFloat32);
  if (table_.world_size() == 1) {
    counter_.push(std::move(leaf_));
    leaf_ = Tensor();
  } else {
    counter_.push(Tensor(Shape{shard().length()}, DType::kFloat32));
  }
  for (Tensor& term : received)
    counter_.push(std::move(term));
}

void PlannedStore::finish_gradients() {
  const PurposeScope purpose(Purpose::kParameters);
  const bool is_shard = stage_ >= ZeroStage::k2 || table_.world_size() == 1;
  if (!is_shard)
    count_shards_to_all(traffic_.gradients);
  std::optional<Tensor> own = counter_.fold();
  if (!own)
    return;
  if (is_shard)
    gradient_ = std::move(*own);
  else
    gradient_ = Tensor(Shape{flat_.size()}, DType::kFloat32);
}

void PlannedStore::publish_updates() {
  if (stage_ == ZeroStage::k1 || stage_ == ZeroStage::k2)
    count_shards_to_all(traffic_.weights);
}

void PlannedStore::cancel_step() { counter_.clear(); }

int PlannedStore::num_slots(int64_t num_leaves) {
  return std::popcount(static_cast<uint64_t>(num_leaves));
}

int64_t PlannedStore::take_largest_published() {
  published_ = 0;
  return std::exchange(largest_published_, 0);
}

int64_t PlannedStore::num_trainable_elements() const {
  int64_t total = 0;
  for (const ShardedTensor& tensor : shards_.tensors())
    total += tensor.numel;
  return total;
}

std::vector<int64_t> PlannedStore::owned_ranges(int rank) const {
  std::vector<int64_t> lengths;
  for (const ShardRange& range :
       stage_ == ZeroStage::k0 ? shards_.all_ranges() : shards_.ranges(rank))
    lengths.push_back(range.end - range.begin);
  return lengths;
}

/// An all-gather of the shards of a flat buffer.
void PlannedStore::count_shards_to_all(Traffic& traffic) const {
  const int64_t fp32 = size_of(DType::kFloat32);
  traffic.sent += shard().length() * (table_.world_size() - 1) * fp32;
  for (int peer = 0; peer < table_.world_size(); ++peer) {
    if (peer != rank_)
      traffic.received += flat_.shard(peer).length() * fp32;
  }
}

int64_t PlannedStore::sent_shards(int num_ranks, int64_t num_groups) const {
  int64_t elements = 0;
  for (int rank = 0; rank < num_ranks; ++rank)
    elements += flat_.shard(rank).length();
  return elements * num_groups * size_of(DType::kFloat32);
}

int64_t PlannedStore::sent_leaves(int num_ranks, int64_t num_leaves) const {
  return std::min<int64_t>(num_ranks, num_leaves) *
         (flat_.size() * size_of(DType::kFloat32) - sent_shards(num_ranks, 1));
}

StoreTraffic PlannedStore::traffic() const {
  StoreTraffic traffic = residency_.traffic();
  traffic.gradients = traffic_.gradients;
  traffic.weights = traffic_.weights;
  return traffic;
}

}  // namespace shardtune::parallel
