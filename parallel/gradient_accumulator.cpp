#include "parallel/gradient_accumulator.h"

#include <algorithm>
#include <cstring>

#include "core/checked.h"
#include "core/parallel_for.h"

namespace shardtune::parallel {

namespace {
constexpr int64_t kAddGrain = 1 << 15;

std::span<std::byte> bytes_of(const Tensor& flat, int64_t begin, int64_t end) {
  return std::as_writable_bytes(
      flat.span<float>().subspan(static_cast<size_t>(begin), static_cast<size_t>(end - begin)));
}

bool any_mark(std::span<const uint8_t> marks) {
  return std::ranges::any_of(marks, [](uint8_t mark) { return mark != 0; });
}
}  // namespace

GradientAccumulator::GradientAccumulator(Communicator& comm, const FlatLayout& layout,
                                         size_t num_tensors)
    : comm_(comm),
      layout_(layout),
      num_tensors_(num_tensors),
      counter_(AddShards{&layout.shard(comm.rank())}),
      leaf_marks_(num_tensors, 0),
      reached_(num_tensors, 0) {}

ShardSum GradientAccumulator::AddShards::operator()(ShardSum earlier, ShardSum later) const {
  for (size_t p = 0; p < shard->pieces.size(); ++p) {
    if (later.present[p] == 0)
      continue;
    const FlatLayout::Piece& piece = shard->pieces[p];
    float* sum = earlier.values.data<float>() + (piece.flat_begin - shard->begin);
    const float* term = later.values.data<float>() + (piece.flat_begin - shard->begin);
    const bool add = earlier.present[p] != 0;
    parallel_for(piece.length, kAddGrain, [=](int64_t begin, int64_t end) {
      if (!add) {
        std::copy(term + begin, term + end, sum + begin);
        return;
      }
      for (int64_t i = begin; i < end; ++i)
        sum[i] += term[i];
    });
    earlier.present[p] = 1;
  }
  return earlier;
}

int64_t GradientAccumulator::num_rounds() const {
  return ceil_div(num_micro_batches_, comm_.world_size());
}

int64_t GradientAccumulator::micro_batch_of_round(int64_t round) const {
  const int64_t m = round * comm_.world_size() + comm_.rank();
  return round >= 0 && m < num_micro_batches_ ? m : -1;
}

void GradientAccumulator::begin_step(int64_t num_micro_batches) {
  if (in_step_)
    throw ArgumentError("begin_step: the step before was neither finished nor cancelled");
  if (num_micro_batches < 1)
    throw ArgumentError("begin_step: expected at least 1 micro-batch, found " +
                        std::to_string(num_micro_batches));
  in_step_ = true;
  num_micro_batches_ = num_micro_batches;
  round_ = 0;
  std::ranges::fill(reached_, uint8_t{0});
}

void GradientAccumulator::begin_micro_batch(int64_t m) {
  if (!in_step_ || in_micro_batch() || m < 0 || m != micro_batch_of_round(round_))
    throw ArgumentError("begin_micro_batch(" + std::to_string(m) + "): expected micro-batch " +
                        std::to_string(in_step_ ? micro_batch_of_round(round_) : -1) +
                        " once in round " + std::to_string(round_) + " of a step of " +
                        std::to_string(num_micro_batches_));
  micro_batch_ = m;
  std::ranges::fill(leaf_marks_, uint8_t{0});
  // Zeros once: gaps between tensors travel with the shards and must be defined.
  if (leaf_.empty() && layout_.size() > 0)
    leaf_ = Tensor::zeros(Shape{layout_.size()}, DType::kFloat32);
}

bool GradientAccumulator::add_leaf(size_t tensor, std::span<const float> leaf) {
  if (leaf_marks_[tensor] != 0)
    return false;
  leaf_marks_[tensor] = 1;
  if (!leaf.empty())
    std::memcpy(leaf_.data<float>() + layout_.offset(tensor), leaf.data(), leaf.size_bytes());
  return true;
}

std::vector<uint8_t> GradientAccumulator::gather_marks() {
  std::vector<uint8_t> mine(1 + num_tensors_, 0);
  if (in_micro_batch()) {
    mine[0] = 1;
    std::ranges::copy(leaf_marks_, mine.begin() + 1);
  }
  std::vector<uint8_t> all(mine.size() * static_cast<size_t>(comm_.world_size()));
  const uint64_t tag =
      (static_cast<uint64_t>(num_micro_batches_) << 32) | static_cast<uint64_t>(round_);
  comm_.all_gather(std::as_bytes(std::span(mine)), std::as_writable_bytes(std::span(all)),
                   DType::kUInt8, tag);
  return all;
}

// Which pieces of the owner's shard the leaf of `from` reaches.
std::vector<uint8_t> GradientAccumulator::marks_of_shard(std::span<const uint8_t> marks, int from,
                                                         int owner) const {
  const size_t row = static_cast<size_t>(from) * (1 + num_tensors_);
  std::vector<uint8_t> result;
  for (const FlatLayout::Piece& piece : layout_.shard(owner).pieces)
    result.push_back(marks[row] != 0 ? marks[row + 1 + piece.tensor] : uint8_t{0});
  return result;
}

// One message per pair of ranks; none where the leaf does not reach the shard, which both know.
std::vector<Tensor> GradientAccumulator::move_leaves(std::span<const uint8_t> marks) {
  const int me = comm_.rank();
  std::vector<Tensor> received(static_cast<size_t>(comm_.world_size()));
  std::vector<Send> sends;
  std::vector<Receive> receives;
  int64_t buffer_bytes = 0;
  for (int peer = 0; peer < comm_.world_size(); ++peer) {
    if (peer == me)
      continue;
    const FlatLayout::Shard& theirs = layout_.shard(peer);
    if (any_mark(marks_of_shard(marks, me, peer)))
      sends.push_back({peer, bytes_of(leaf_, theirs.begin, theirs.end)});
    if (any_mark(marks_of_shard(marks, peer, me))) {
      Tensor& buffer = received[static_cast<size_t>(peer)];
      buffer = Tensor(Shape{layout_.shard(me).length()}, DType::kFloat32);
      buffer_bytes += buffer.num_bytes();
      receives.push_back({peer, bytes_of(buffer, 0, buffer.numel())});
    }
  }
  peak_buffer_bytes_ = std::max(peak_buffer_bytes_, buffer_bytes);
  comm_.exchange(sends, receives, DType::kFloat32);
  return received;
}

std::optional<ShardSum> GradientAccumulator::take_own_leaf(std::span<const uint8_t> marks) {
  const FlatLayout::Shard& shard = layout_.shard(comm_.rank());
  ShardSum sum{{}, marks_of_shard(marks, comm_.rank(), comm_.rank())};
  if (!any_mark(sum.present))
    return std::nullopt;
  if (comm_.world_size() == 1) {
    // Nothing else needs the leaf: it becomes a term as it is.
    SHARDTUNE_ASSERT(shard.begin == 0);
    sum.values = std::move(leaf_);
    leaf_ = Tensor();
    return sum;
  }
  sum.values = Tensor(Shape{shard.length()}, DType::kFloat32);
  std::memcpy(sum.values.data<float>(), leaf_.data<float>() + shard.begin,
              static_cast<size_t>(shard.length()) * sizeof(float));
  return sum;
}

void GradientAccumulator::end_round() {
  if (!in_step_ || round_ >= num_rounds())
    throw ArgumentError("end_round: no round " + std::to_string(round_) + " in this step of " +
                        std::to_string(num_rounds()) + " rounds");
  if (in_micro_batch() != (micro_batch_of_round(round_) >= 0))
    throw ArgumentError("end_round: micro-batch " + std::to_string(micro_batch_of_round(round_)) +
                        " of round " + std::to_string(round_) + " was not run");
  const std::vector<uint8_t> marks = gather_marks();
  std::vector<Tensor> received = move_leaves(marks);
  for (int from = 0; from < comm_.world_size(); ++from) {
    const int64_t m = round_ * comm_.world_size() + from;
    const uint8_t* row = marks.data() + static_cast<size_t>(from) * (1 + num_tensors_);
    SHARDTUNE_ASSERT((row[0] != 0) == (m < num_micro_batches_));
    if (row[0] == 0)
      continue;
    for (size_t t = 0; t < num_tensors_; ++t)
      reached_[t] |= row[1 + t];
    if (from == comm_.rank())
      counter_.push(take_own_leaf(marks));
    else if (received[static_cast<size_t>(from)].empty())
      counter_.push(std::nullopt);
    else
      counter_.push(ShardSum{std::move(received[static_cast<size_t>(from)]),
                             marks_of_shard(marks, from, comm_.rank())});
  }
  micro_batch_ = -1;
  ++round_;
}

Tensor GradientAccumulator::finish() {
  if (!in_step_ || round_ != num_rounds())
    throw ArgumentError("finish_gradients: after round " + std::to_string(round_) + " of " +
                        std::to_string(num_rounds()) + " of the step");
  in_step_ = false;
  const FlatLayout::Shard& shard = layout_.shard(comm_.rank());
  std::optional<ShardSum> sum = counter_.fold();
  if (!sum)
    return shard.empty() ? Tensor() : Tensor::zeros(Shape{shard.length()}, DType::kFloat32);
  for (size_t p = 0; p < shard.pieces.size(); ++p) {
    if (sum->present[p] == 0)
      std::fill_n(sum->values.data<float>() + (shard.pieces[p].flat_begin - shard.begin),
                  shard.pieces[p].length, 0.0f);
  }
  return std::move(sum->values);
}

void GradientAccumulator::cancel() {
  counter_.clear();
  in_step_ = false;
  micro_batch_ = -1;
}

int64_t GradientAccumulator::bytes() const {
  int64_t total = leaf_.empty() ? 0 : leaf_.num_bytes();
  const int64_t shard_bytes = layout_.shard(comm_.rank()).length() * size_of(DType::kFloat32);
  for (size_t bits = counter_.count(); bits != 0; bits &= bits - 1)
    total += shard_bytes;
  return total;
}

}  // namespace shardtune::parallel
