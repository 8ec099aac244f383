#include "trainer/optimizer_states.h"

#include <algorithm>

namespace shardtune::trainer {
namespace {

using parallel::ShardedParameterStore;

NamedTensor tensor_like(const ParameterSpec& spec, const std::string& name) {
  const auto extents = spec.shape.extents();
  return {name,
          {extents.begin(), extents.end()},
          std::vector<float>(static_cast<size_t>(spec.shape.numel()))};
}

std::vector<StateSwap::Segment> segments_of(ShardedParameterStore& store) {
  std::vector<StateSwap::Segment> segments;
  for (const auto& segment : store.segments())
    segments.push_back({store.spec(segment.id).name, segment.end - segment.begin});
  return segments;
}

}  // namespace

std::vector<std::string> element_states(const RunConfig& config) {
  std::vector<std::string> names = config.optimizer.optimizer->state_names();
  for (const std::string& name : config.adapter.options->element_states())
    names.push_back(name);
  return names;
}

OptimizerStates::OptimizerStates(ShardedParameterStore& store, const optim::Optimizer& optimizer,
                                 std::vector<std::string> names)
    : store_(store),
      optimizer_(optimizer),
      names_(std::move(names)),
      num_own_(optimizer.state_names().size()) {
  for (const auto& segment : store.segments()) {
    const auto size = static_cast<size_t>(segment.end - segment.begin);
    states_.emplace_back(names_.size(), std::vector<float>(size));
  }
}

OptimizerStates::OptimizerStates(ShardedParameterStore& store, const optim::Optimizer& optimizer,
                                 std::vector<std::string> names, io::SwapFile& file)
    : store_(store),
      optimizer_(optimizer),
      names_(std::move(names)),
      num_own_(optimizer.state_names().size()) {
  swap_ = std::make_unique<StateSwap>(file, segments_of(store), names_);
}

int64_t OptimizerStates::swap_bytes(ShardedParameterStore& store,
                                    const std::vector<std::string>& names) {
  return StateSwap::bytes_of(segments_of(store), static_cast<int64_t>(names.size()));
}

void OptimizerStates::step(double learning_rate, double weight_decay, int64_t step) {
  optim::OptimizerSegment rates;
  rates.learning_rate = learning_rate;
  rates.weight_decay = weight_decay;
  if (swap_ == nullptr)
    step_in_memory(rates, step);
  else
    step_swapped(rates, step);
}

optim::OptimizerSegment OptimizerStates::rates_of(ParameterId id,
                                                  const optim::OptimizerSegment& rates) const {
  optim::OptimizerSegment scaled = rates;
  if (scale_)
    scaled.learning_rate *= scale_(id);
  return scaled;
}

void OptimizerStates::update(const optim::OptimizerSegment& rates,
                             const models::UpdatedRange& piece, int64_t step) {
  optim::OptimizerSegment segment = rates_of(piece.id, rates);
  segment.parameter = piece.parameter;
  segment.gradient = piece.clipped_gradient;
  const auto end_of_own = piece.states.begin() + static_cast<std::ptrdiff_t>(num_own_);
  segment.states.assign(piece.states.begin(), end_of_own);
  optimizer_.step({&segment, 1}, step);
  if (hooks_ == nullptr || num_own_ == names_.size())
    return;
  models::UpdatedRange seen = piece;
  seen.states.assign(end_of_own, piece.states.end());
  hooks_->on_update(step - 1, seen);
}

void OptimizerStates::step_in_memory(const optim::OptimizerSegment& rates, int64_t step) {
  const auto ranges = store_.segments();
  for (size_t i = 0; i < ranges.size(); ++i) {
    const auto& range = ranges[i];
    if (!range.has_gradient)
      continue;
    update(rates,
           {range.id, range.begin, range.parameter, range.gradient,
            std::vector<std::span<float>>(states_[i].begin(), states_[i].end())},
           step);
  }
}

void OptimizerStates::step_swapped(const optim::OptimizerSegment& rates, int64_t step) {
  const auto ranges = store_.segments();
  try {
    swap_->update([&](size_t i) { return ranges[i].has_gradient; },
                  [&](const StateSwap::Piece& piece, std::span<const std::span<float>> states) {
                    const auto& range = ranges[piece.segment];
                    const auto begin = static_cast<size_t>(piece.begin);
                    const auto count = static_cast<size_t>(piece.end - piece.begin);
                    update(
                        rates,
                        {range.id, range.begin + piece.begin, range.parameter.subspan(begin, count),
                         range.gradient.subspan(begin, count),
                         std::vector<std::span<float>>(states.begin(), states.end())},
                        step);
                  });
  } catch (const Error& error) {
    throw Error(error.exit_code(),
                std::string(error.what()) + " The update of step " + std::to_string(step) +
                    " was under way, so nothing of it is saved: the last committed checkpoint is "
                    "what a resume goes on from.");
  }
}

const OptimizerStates::Values& OptimizerStates::values_of(size_t segment, Values& scratch) {
  if (swap_ == nullptr)
    return states_[segment];
  scratch.assign(names_.size(), {});
  swap_->read(segment, [&](const StateSwap::Piece&, std::span<const std::span<float>> states) {
    for (size_t s = 0; s < states.size(); ++s)
      scratch[s].insert(scratch[s].end(), states[s].begin(), states[s].end());
  });
  return scratch;
}

std::vector<NamedTensor> OptimizerStates::gather(parallel::Communicator& comm) {
  std::vector<NamedTensor> result;
  for (const ParameterId id : store_.trainables()) {
    const size_t first = result.size();
    for (size_t s = 0; comm.rank() == 0 && s < names_.size(); ++s)
      result.push_back(tensor_like(store_.spec(id), store_.spec(id).name + "." + names_[s]));
    gather_tensor(comm, id, std::span(result).subspan(first));
  }
  return result;
}

void OptimizerStates::gather_tensor(parallel::Communicator& comm, ParameterId id,
                                    std::span<NamedTensor> whole) {
  const bool root = comm.rank() == 0;
  const bool is_sharded = store_.stage() != parallel::ZeroStage::k0;
  std::vector<parallel::Send> sends;
  std::vector<parallel::Receive> receives;
  Values scratch;
  const auto own = store_.segments();
  for (size_t i = 0; i < own.size(); ++i) {
    if (own[i].id != id || own[i].begin == own[i].end || !(root || is_sharded))
      continue;
    const Values& values = values_of(i, scratch);
    for (size_t s = 0; s < names_.size(); ++s) {
      if (root)
        std::ranges::copy(values[s], whole[s].values.begin() + own[i].begin);
      else
        sends.push_back({0, std::as_bytes(std::span<const float>(values[s]))});
    }
  }
  for (int peer = 1; root && is_sharded && peer < comm.world_size(); ++peer) {
    for (const parallel::ShardRange& range : store_.layout().ranges(peer)) {
      for (size_t s = 0; range.id == id && s < names_.size() && range.end > range.begin; ++s) {
        const std::span<float> values(whole[s].values);
        receives.push_back({peer, std::as_writable_bytes(values.subspan(
                                      static_cast<size_t>(range.begin),
                                      static_cast<size_t>(range.end - range.begin)))});
      }
    }
  }
  comm.exchange(sends, receives, DType::kFloat32);
}

std::vector<std::string> OptimizerStates::tensor_names(ParameterId id) const {
  std::vector<std::string> names;
  for (const std::string& state : names_)
    names.push_back(store_.spec(id).name + "." + state);
  return names;
}

void OptimizerStates::restore(const ElementReader& read) {
  const auto ranges = store_.segments();
  const auto fill = [&](size_t segment, int64_t begin, std::span<const std::span<float>> states) {
    const auto& range = ranges[segment];
    const std::vector<std::string> names = tensor_names(range.id);
    for (size_t s = 0; s < names.size(); ++s)
      read(range.id, names[s], range.begin + begin, states[s]);
  };
  if (swap_ != nullptr) {
    swap_->overwrite([&](const StateSwap::Piece& piece, std::span<const std::span<float>> states) {
      fill(piece.segment, piece.begin, states);
    });
    return;
  }
  for (size_t i = 0; i < ranges.size(); ++i)
    fill(i, 0, std::vector<std::span<float>>(states_[i].begin(), states_[i].end()));
}

int64_t OptimizerStates::num_bytes() const {
  if (swap_ != nullptr)
    return swap_->buffer_bytes();
  int64_t total = 0;
  for (const Values& segment : states_) {
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

void restore_trainables(ShardedParameterStore& store, const ElementReader& read) {
  for (const auto& segment : store.segments())
    read(segment.id, store.spec(segment.id).name, segment.begin, segment.parameter);
}

}  // namespace shardtune::trainer
