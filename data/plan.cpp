#include "data/plan.h"

#include <algorithm>
#include <map>
#include <numeric>
#include <set>

#include "core/error.h"
#include "core/rng.h"

namespace shardtune::data {
namespace {

/// Epochs kept; a run asks for one after the other, so two suffice and memory stays bounded.
constexpr std::size_t kMaxCachedEpochs = 2;
/// Samples that are packed together: far enough for rows to fill, near enough to stay shuffled.
constexpr std::size_t kPackingWindow = 8192;

using Row = std::vector<int64_t>;  // indices of samples

/// Order of an epoch: Fisher-Yates on random numbers keyed by (seed, epoch).
std::vector<int64_t> sample_order(std::size_t count, const PlanOptions& options, int64_t epoch) {
  std::vector<int64_t> order(count);
  std::iota(order.begin(), order.end(), 0);
  if (options.order == Order::kSequential)
    return order;
  const CounterRng rng(
      mix_key(mix_key(options.seed, "data.plan.shuffle"), {static_cast<uint64_t>(epoch)}));
  for (std::size_t i = count; i > 1; --i)
    std::swap(order[i - 1], order[static_cast<std::size_t>(rng.below(i, i))]);
  return order;
}

/// Best fit decreasing within a window: the longest sample first, each into the fullest row with
/// room. Rows then stand in the order of their first sample in the shuffle, samples within a row
/// too, so that length tells nothing about the place in the epoch.
void pack_window(const std::vector<Sample>& samples, const std::vector<int64_t>& order,
                 std::size_t begin, std::size_t end, const PlanOptions& options,
                 std::vector<Row>& rows) {
  const auto length = [&](std::size_t place) {
    const Sample& sample = samples[static_cast<std::size_t>(order[place])];
    return static_cast<int64_t>(sample.ids.size()) + options.num_virtual_tokens;
  };
  std::vector<std::size_t> places(end - begin);
  std::iota(places.begin(), places.end(), begin);
  std::stable_sort(places.begin(), places.end(),
                   [&](std::size_t a, std::size_t b) { return length(a) > length(b); });
  std::vector<std::vector<std::size_t>> packed;
  std::set<std::pair<int64_t, std::size_t>> room;  // (tokens left, row)
  for (const std::size_t place : places) {
    auto fit = room.lower_bound({length(place), 0});
    std::size_t row = packed.size();
    int64_t left = options.max_length;
    if (fit != room.end()) {
      left = fit->first;
      row = fit->second;
      room.erase(fit);
    } else {
      packed.emplace_back();
    }
    packed[row].push_back(place);
    room.emplace(left - length(place), row);
  }
  for (auto& row : packed)
    std::sort(row.begin(), row.end());
  std::sort(packed.begin(), packed.end(),
            [](const auto& a, const auto& b) { return a.front() < b.front(); });
  for (const auto& row : packed) {
    rows.emplace_back();
    for (const std::size_t place : row)
      rows.back().push_back(order[place]);
  }
}

std::vector<Row> rows_of_epoch(const std::vector<Sample>& samples, const PlanOptions& options,
                               int64_t epoch) {
  const std::vector<int64_t> order = sample_order(samples.size(), options, epoch);
  std::vector<Row> rows;
  if (options.packing == Packing::kOneSamplePerRow) {
    for (const int64_t index : order)
      rows.push_back({index});
    return rows;
  }
  for (std::size_t begin = 0; begin < order.size(); begin += kPackingWindow)
    pack_window(samples, order, begin, std::min(begin + kPackingWindow, order.size()), options,
                rows);
  return rows;
}

void add_sample(const std::vector<Sample>& samples, int64_t index, int64_t num_virtual_tokens,
                MicroBatchPlan& micro_batch) {
  const Sample& sample = samples[static_cast<std::size_t>(index)];
  micro_batch.samples.push_back(index);
  micro_batch.num_tokens += static_cast<int64_t>(sample.ids.size());
  micro_batch.num_virtual_tokens += num_virtual_tokens;
  micro_batch.num_trained_tokens += std::count(sample.trained.begin(), sample.trained.end(), 1);
}

StepPlan make_step(const std::vector<Sample>& samples, const PlanOptions& options,
                   const std::vector<Row>& rows, std::size_t begin, std::size_t end) {
  StepPlan step;
  step.num_rows = static_cast<int64_t>(end - begin);
  for (std::size_t row = begin; row < end; ++row) {
    if ((row - begin) % static_cast<std::size_t>(options.micro_batch_size) == 0)
      step.micro_batches.emplace_back();
    for (const int64_t index : rows[row])
      add_sample(samples, index, options.num_virtual_tokens, step.micro_batches.back());
  }
  for (const MicroBatchPlan& micro_batch : step.micro_batches) {
    step.num_tokens += micro_batch.num_tokens;
    step.num_trained_tokens += micro_batch.num_trained_tokens;
  }
  return step;
}

void check_options(const std::vector<Sample>& samples, const PlanOptions& options) {
  if (samples.empty())
    throw ArgumentError("data plan: expected at least one sample, found none.");
  if (options.micro_batch_size < 1 || options.global_batch_size < 1 || options.max_length < 1)
    throw ArgumentError("data plan: expected sizes of at least 1, found micro_batch_size " +
                        std::to_string(options.micro_batch_size) + ", global_batch_size " +
                        std::to_string(options.global_batch_size) + ", max_length " +
                        std::to_string(options.max_length) + ".");
  for (const Sample& sample : samples) {
    if (sample.ids.empty() || sample.ids.size() != sample.trained.size() ||
        static_cast<int64_t>(sample.ids.size()) + options.num_virtual_tokens > options.max_length)
      throw ArgumentError("data plan: sample " + std::to_string(sample.id) + ": expected 1 to " +
                          std::to_string(options.max_length - options.num_virtual_tokens) +
                          " tokens (max_length), found " + std::to_string(sample.ids.size()) + ".");
  }
}

}  // namespace

DataPlan::DataPlan(const std::vector<Sample>& samples, PlanOptions options)
    : samples_(samples), options_(options) {
  check_options(samples_, options_);
}

std::shared_ptr<const DataPlan::Epoch> DataPlan::epoch(int64_t index) const {
  const std::lock_guard lock(mutex_);
  for (const auto& [known, plan] : cached_) {
    if (known == index)
      return plan;
  }
  const std::vector<Row> rows = rows_of_epoch(samples_, options_, index);
  auto plan = std::make_shared<Epoch>();
  const auto per_step = static_cast<std::size_t>(options_.global_batch_size);
  for (std::size_t begin = 0; begin < rows.size(); begin += per_step)
    plan->steps.push_back(
        make_step(samples_, options_, rows, begin, std::min(begin + per_step, rows.size())));
  if (cached_.size() >= kMaxCachedEpochs)
    cached_.erase(cached_.begin());
  cached_.emplace_back(index, plan);
  if (index == static_cast<int64_t>(first_steps_.size()) - 1)
    first_steps_.push_back(first_steps_.back() + static_cast<int64_t>(plan->steps.size()));
  return plan;
}

int64_t DataPlan::steps_in_epoch(int64_t index) const {
  if (index < 0)
    throw ArgumentError("data plan: epoch " + std::to_string(index) + " is negative.");
  return first_step(index + 1) - first_step(index);
}

int64_t DataPlan::first_step(int64_t index) const {
  for (;;) {
    int64_t next = 0;
    {
      const std::lock_guard lock(mutex_);
      next = static_cast<int64_t>(first_steps_.size()) - 1;
      if (index <= next)
        return first_steps_[static_cast<std::size_t>(index)];
    }
    epoch(next);
  }
}

int64_t DataPlan::total_steps(int64_t num_epochs) const {
  if (num_epochs < 0)
    throw ArgumentError("data plan: " + std::to_string(num_epochs) + " epochs are negative.");
  return first_step(num_epochs);
}

int64_t DataPlan::epoch_index(int64_t step) const {
  if (step < 0)
    throw ArgumentError("data plan: step " + std::to_string(step) + " is negative.");
  int64_t index = 0;
  {
    const std::lock_guard lock(mutex_);
    const auto after = std::upper_bound(first_steps_.begin(), first_steps_.end(), step);
    index = static_cast<int64_t>(after - first_steps_.begin()) - 1;
  }
  while (first_step(index + 1) <= step)
    ++index;
  return index;
}

StepPlan DataPlan::step(int64_t step) const {
  const int64_t index = epoch_index(step);
  return epoch(index)->steps[static_cast<std::size_t>(step - first_step(index))];
}

MicroBatchPlan DataPlan::longest_micro_batch(int64_t num_steps) const {
  MicroBatchPlan longest;
  for (int64_t begin = 0, index = 0; begin < num_steps; ++index) {
    const auto plan = epoch(index);
    for (const StepPlan& each : plan->steps) {
      if (begin++ >= num_steps)
        break;
      for (const MicroBatchPlan& micro_batch : each.micro_batches) {
        if (micro_batch.is_larger_than(longest))
          longest = micro_batch;
      }
    }
  }
  return longest;
}

double DataPlan::epoch_of_step(int64_t step) const {
  const int64_t index = epoch_index(step);
  const int64_t begin = first_step(index);
  return static_cast<double>(index) +
         static_cast<double>(step - begin) / static_cast<double>(first_step(index + 1) - begin);
}

TokenBatch collate(const std::vector<Sample>& samples, const MicroBatchPlan& micro_batch) {
  TokenBatch batch;
  batch.sample_offsets.push_back(0);
  for (const int64_t index : micro_batch.samples) {
    const Sample& sample = samples.at(static_cast<std::size_t>(index));
    const std::size_t length = sample.ids.size();
    for (std::size_t i = 0; i < length; ++i) {
      const bool trained = i + 1 < length && sample.trained[i + 1] != 0;
      batch.ids.push_back(sample.ids[i]);
      batch.positions.push_back(static_cast<int32_t>(i));
      batch.token_indices.push_back(static_cast<int32_t>(i));
      batch.labels.push_back(trained ? sample.ids[i + 1] : kIgnoreLabel);
      batch.num_trained_tokens += trained ? 1 : 0;
    }
    batch.sample_offsets.push_back(static_cast<int32_t>(batch.ids.size()));
    batch.sample_ids.push_back(sample.id);
    if (sample.task_id >= 0)
      batch.task_ids.push_back(sample.task_id);
  }
  return batch;
}

std::vector<MicroBatchPlan> plan_evaluation(const std::vector<Sample>& samples, int64_t max_tokens,
                                            int64_t num_virtual_tokens) {
  std::vector<MicroBatchPlan> plan;
  for (std::size_t i = 0; i < samples.size(); ++i) {
    const auto length = static_cast<int64_t>(samples[i].ids.size()) + num_virtual_tokens;
    if (plan.empty() || plan.back().num_rows() + length > max_tokens)
      plan.emplace_back();
    add_sample(samples, static_cast<int64_t>(i), num_virtual_tokens, plan.back());
  }
  return plan;
}

}  // namespace shardtune::data
