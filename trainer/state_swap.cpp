#include "trainer/state_swap.h"

#include <algorithm>

#include "core/checked.h"

namespace shardtune::trainer {
namespace {

constexpr int64_t kPieceElements = io::BlockFile::kBlockBytes / static_cast<int64_t>(sizeof(float));
constexpr int64_t kMaxGroupBytes = 8 << 20;

}  // namespace

int64_t StateSwap::bytes_of(std::span<const Segment> segments, int64_t num_states) {
  int64_t total = 0;
  for (const Segment& segment : segments) {
    const int64_t bytes = checked_mul(segment.numel, sizeof(float));
    total = checked_add(total, num_states * round_up(bytes, io::kIoAlignment));
  }
  return total;
}

StateSwap::StateSwap(io::SwapFile& file, std::span<const Segment> segments,
                     const std::vector<std::string>& state_names)
    : store_(file), num_states_(static_cast<int64_t>(state_names.size())) {
  file.reserve(bytes_of(segments, num_states_));
  for (size_t i = 0; i < segments.size(); ++i) {
    for (int64_t begin = 0; begin < segments[i].numel; begin += kPieceElements) {
      const int64_t end = std::min(segments[i].numel, begin + kPieceElements);
      for (const std::string& state : state_names)
        store_.add_region(segments[i].name + "." + state + " from element " + std::to_string(begin),
                          (end - begin) * static_cast<int64_t>(sizeof(float)));
      pieces_.push_back({i, begin, end});
    }
  }
  add_groups(std::min(kMaxGroupBytes, store_.num_bytes() / 8));
  for (Slot& slot : slots_)
    slot.bytes = store_.add_buffer(largest_group_);
  overwrite([](const Piece&, std::span<const std::span<float>> states) {
    for (const std::span<float> state : states)
      std::ranges::fill(state, 0.0f);
  });
}

void StateSwap::add_groups(int64_t group_bytes) {
  for (size_t piece = 0; piece < pieces_.size(); ++piece) {
    if (!groups_.empty()) {
      Group longer = groups_.back();
      ++longer.num_pieces;
      if (store_.extent_bytes(first_region(longer.first_piece), num_regions(longer)) <=
          group_bytes) {
        groups_.back() = longer;
        continue;
      }
    }
    groups_.push_back({piece, 1});
  }
  for (const Group& group : groups_)
    largest_group_ = std::max(
        largest_group_, store_.extent_bytes(first_region(group.first_piece), num_regions(group)));
}

io::RegionId StateSwap::first_region(size_t piece) const {
  return io::RegionId{narrow<int32_t>(static_cast<int64_t>(piece) * num_states_)};
}

int64_t StateSwap::num_regions(const Group& group) const {
  return static_cast<int64_t>(group.num_pieces) * num_states_;
}

void StateSwap::update(const std::function<bool(size_t segment)>& wanted, const Body& body) {
  std::vector<size_t> groups;
  for (size_t g = 0; g < groups_.size(); ++g) {
    const auto first = pieces_.begin() + static_cast<int64_t>(groups_[g].first_piece);
    if (std::any_of(first, first + static_cast<int64_t>(groups_[g].num_pieces),
                    [&](const Piece& piece) { return wanted(piece.segment); }))
      groups.push_back(g);
  }
  run(groups, Access::kUpdate, [&](const Piece& piece, std::span<const std::span<float>> states) {
    if (wanted(piece.segment))
      body(piece, states);
  });
}

void StateSwap::overwrite(const Body& body) {
  std::vector<size_t> groups(groups_.size());
  for (size_t g = 0; g < groups.size(); ++g)
    groups[g] = g;
  run(groups, Access::kOverwrite, body);
}

void StateSwap::run(const std::vector<size_t>& groups, Access access, const Body& body) {
  if (access == Access::kUpdate && !groups.empty())
    begin_read(groups[0], slots_[0]);
  for (size_t i = 0; i < groups.size(); ++i) {
    Slot& slot = slots_[i % kNumBuffers];
    if (access == Access::kUpdate && i + 1 < groups.size())
      begin_read(groups[i + 1], slots_[(i + 1) % kNumBuffers]);
    finish(slot.reading);
    finish(slot.writing);  // an earlier group's, where nothing was read
    const Group& group = groups_[groups[i]];
    work(group, slot, body);
    slot.writing = store_.write(first_region(group.first_piece), num_regions(group), slot.bytes);
  }
  for (Slot& slot : slots_)
    finish(slot.writing);
}

void StateSwap::begin_read(size_t group, Slot& slot) {
  finish(slot.writing);
  slot.reading = store_.read(first_region(groups_[group].first_piece), num_regions(groups_[group]),
                             slot.bytes);
}

void StateSwap::finish(std::optional<io::IoTicket>& ticket) {
  if (ticket)
    store_.wait(*ticket);
  ticket.reset();
}

void StateSwap::work(const Group& group, Slot& slot, const Body& body) const {
  const io::RegionId first = first_region(group.first_piece);
  for (size_t p = group.first_piece; p < group.first_piece + group.num_pieces; ++p) {
    const Piece& piece = pieces_[p];
    std::vector<std::span<float>> states;
    for (int64_t s = 0; s < num_states_; ++s) {
      const io::RegionId region{narrow<int32_t>(static_cast<int64_t>(p) * num_states_ + s)};
      auto* values =
          reinterpret_cast<float*>(slot.bytes.data() + store_.offset_in_extent(first, region));
      states.emplace_back(values, static_cast<size_t>(piece.end - piece.begin));
    }
    body(piece, states);
  }
}

void StateSwap::read(size_t segment, const Body& body) {
  for (size_t p = 0; p < pieces_.size(); ++p) {
    if (pieces_[p].segment != segment)
      continue;
    const Group one{p, 1};
    Slot& slot = slots_[0];
    store_.wait(store_.read(first_region(p), num_regions(one), slot.bytes));
    work(one, slot, body);
  }
}

}  // namespace shardtune::trainer
