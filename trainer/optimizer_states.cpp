#include "trainer/optimizer_states.h"

#include <algorithm>
#include <map>

namespace shardtune::trainer {
namespace {

using parallel::ShardedParameterStore;

NamedTensor tensor_like(const ParameterSpec& spec, const std::string& name) {
  const auto extents = spec.shape.extents();
  return {name,
          {extents.begin(), extents.end()},
          std::vector<float>(static_cast<size_t>(spec.shape.numel()))};
}

std::map<std::string, const NamedTensor*> by_name(const std::vector<NamedTensor>& tensors) {
  std::map<std::string, const NamedTensor*> map;
  for (const NamedTensor& tensor : tensors)
    map.emplace(tensor.name, &tensor);
  return map;
}

const NamedTensor& find(const std::map<std::string, const NamedTensor*>& tensors,
                        const std::string& name, const Shape& shape) {
  const auto it = tensors.find(name);
  if (it == tensors.end())
    throw DataError("checkpoint: " + name + ": expected the tensor, found none.");
  const auto extents = shape.extents();
  if (!std::equal(extents.begin(), extents.end(), it->second->shape.begin(),
                  it->second->shape.end()))
    throw DataError("checkpoint: " + name + ": expected " + shape.to_string() +
                    ", found another shape. Use the configuration the checkpoint was made with.");
  return *it->second;
}

}  // namespace

OptimizerStates::OptimizerStates(ShardedParameterStore& store, const optim::Optimizer& optimizer)
    : store_(store), optimizer_(optimizer), names_(optimizer.state_names()) {
  for (const auto& segment : store.segments()) {
    const auto size = static_cast<size_t>(segment.end - segment.begin);
    states_.emplace_back(names_.size(), std::vector<float>(size));
  }
}

void OptimizerStates::step(double learning_rate, double weight_decay, int64_t step) {
  std::vector<optim::OptimizerSegment> segments;
  const auto ranges = store_.segments();
  for (size_t i = 0; i < ranges.size(); ++i) {
    if (!ranges[i].has_gradient)
      continue;
    auto& segment = segments.emplace_back();
    segment.parameter = ranges[i].parameter;
    segment.gradient = ranges[i].gradient;
    segment.states.assign(states_[i].begin(), states_[i].end());
    segment.learning_rate = learning_rate;
    segment.weight_decay = weight_decay;
  }
  optimizer_.step(segments, step);
}

std::vector<NamedTensor> OptimizerStates::gather(parallel::Communicator& comm) const {
  const auto own = store_.segments();
  const bool root = comm.rank() == 0;
  const bool whole = store_.stage() == parallel::ZeroStage::k0;
  std::vector<NamedTensor> result;
  std::map<ParameterId, size_t> first_tensor;
  if (root) {
    for (const ParameterId id : store_.trainables()) {
      first_tensor[id] = result.size();
      for (const std::string& name : names_)
        result.push_back(tensor_like(store_.spec(id), store_.spec(id).name + "." + name));
    }
  }
  std::vector<parallel::Send> sends;
  std::vector<parallel::Receive> receives;
  for (size_t i = 0; i < own.size(); ++i) {
    for (size_t s = 0; s < names_.size(); ++s) {
      const std::vector<float>& state = states_[i][s];
      if (root)
        std::copy(state.begin(), state.end(),
                  result[first_tensor[own[i].id] + s].values.begin() + own[i].begin);
      else if (!whole && !state.empty())
        sends.push_back({0, std::as_bytes(std::span<const float>(state))});
    }
  }
  for (int peer = 1; root && !whole && peer < comm.world_size(); ++peer) {
    for (const parallel::ShardRange& range : store_.layout().ranges(peer)) {
      for (size_t s = 0; s < names_.size() && range.end > range.begin; ++s) {
        const std::span<float> values(result[first_tensor[range.id] + s].values);
        receives.push_back({peer, std::as_writable_bytes(values.subspan(
                                      static_cast<size_t>(range.begin),
                                      static_cast<size_t>(range.end - range.begin)))});
      }
    }
  }
  comm.exchange(sends, receives, DType::kFloat32);
  return result;
}

void OptimizerStates::restore(const std::vector<NamedTensor>& tensors) {
  const auto map = by_name(tensors);
  const auto ranges = store_.segments();
  for (size_t i = 0; i < ranges.size(); ++i) {
    const ParameterSpec& spec = store_.spec(ranges[i].id);
    for (size_t s = 0; s < names_.size(); ++s) {
      const NamedTensor& tensor = find(map, spec.name + "." + names_[s], spec.shape);
      std::copy(tensor.values.begin() + ranges[i].begin, tensor.values.begin() + ranges[i].end,
                states_[i][s].begin());
    }
  }
}

int64_t OptimizerStates::num_bytes() const {
  int64_t total = 0;
  for (const auto& segment : states_) {
    for (const auto& state : segment)
      total += static_cast<int64_t>(state.size() * sizeof(float));
  }
  return total;
}

std::vector<NamedTensor> read_trainables(ShardedParameterStore& store,
                                         const parallel::Communicator& comm) {
  std::vector<NamedTensor> tensors;
  for (const ParameterId id : store.trainables()) {
    std::span<float> values;
    if (comm.rank() == 0)
      values = tensors.emplace_back(tensor_like(store.spec(id), store.spec(id).name)).values;
    store.read(id, values);
  }
  return tensors;
}

void restore_trainables(ShardedParameterStore& store, const std::vector<NamedTensor>& tensors) {
  const auto map = by_name(tensors);
  const auto trainables = store.trainables();
  if (map.size() != trainables.size()) {
    throw DataError("checkpoint: expected " + std::to_string(trainables.size()) +
                    " adapter tensors, found " + std::to_string(map.size()) + ".");
  }
  for (const ParameterId id : trainables)
    store.write(id, 0, find(map, store.spec(id).name, store.spec(id).shape).values);
  store.publish_updates();
}

}  // namespace shardtune::trainer
