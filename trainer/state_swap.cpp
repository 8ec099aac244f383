#include "trainer/state_swap.h"

#include <algorithm>

#include "core/checked.h"

namespace shardtune::trainer {
namespace {

constexpr int64_t kPieceElements =
    io::BlockFile::kRequestBytes / static_cast<int64_t>(sizeof(float));
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

StateSwap::Cut StateSwap::cut(std::span<const Segment> segments, int64_t num_states) {
  Cut cut;
  const int64_t group_bytes = std::min(kMaxGroupBytes, bytes_of(segments, num_states) / 8);
  int64_t bytes = 0;  // of the last group
  for (size_t i = 0; i < segments.size(); ++i) {
    for (int64_t begin = 0; begin < segments[i].numel; begin += kPieceElements) {
      const int64_t end = std::min(segments[i].numel, begin + kPieceElements);
      const int64_t piece_bytes =
          num_states *
          round_up((end - begin) * static_cast<int64_t>(sizeof(float)), io::kIoAlignment);
      if (cut.groups.empty() || bytes + piece_bytes > group_bytes) {
        cut.groups.push_back({cut.pieces.size(), 0});
        bytes = 0;
      }
      cut.pieces.push_back({i, begin, end});
      ++cut.groups.back().num_pieces;
      bytes += piece_bytes;
      cut.largest_group = std::max(cut.largest_group, bytes);
    }
  }
  return cut;
}

StateSwap::StateSwap(io::SwapFile& file, std::span<const Segment> segments,
                     const std::vector<std::string>& state_names)
    : store_(file),
      num_states_(static_cast<int64_t>(state_names.size())),
      cut_(cut(segments, num_states_)) {
  file.reserve(bytes_of(segments, num_states_));
  for (const Piece& piece : cut_.pieces) {
    for (const std::string& state : state_names)
      store_.add_region(segments[piece.segment].name + "." + state + " from element " +
                            std::to_string(piece.begin),
                        (piece.end - piece.begin) * static_cast<int64_t>(sizeof(float)));
  }
  for (Slot& slot : slots_)
    slot.bytes = store_.add_buffer(cut_.largest_group);
  overwrite([](const Piece&, std::span<const std::span<float>> states) {
    for (const std::span<float> state : states)
      std::ranges::fill(state, 0.0f);
  });
}

io::RegionId StateSwap::first_region(size_t piece) const {
  return io::RegionId{narrow<int32_t>(static_cast<int64_t>(piece) * num_states_)};
}

int64_t StateSwap::num_regions(const Group& group) const {
  return static_cast<int64_t>(group.num_pieces) * num_states_;
}

void StateSwap::update(const std::function<bool(size_t segment)>& wanted, const Body& body) {
  std::vector<size_t> groups;
  for (size_t g = 0; g < cut_.groups.size(); ++g) {
    const auto first = cut_.pieces.begin() + static_cast<int64_t>(cut_.groups[g].first_piece);
    if (std::any_of(first, first + static_cast<int64_t>(cut_.groups[g].num_pieces),
                    [&](const Piece& piece) { return wanted(piece.segment); }))
      groups.push_back(g);
  }
  run(groups, Access::kUpdate, [&](const Piece& piece, std::span<const std::span<float>> states) {
    if (wanted(piece.segment))
      body(piece, states);
  });
}

void StateSwap::overwrite(const Body& body) {
  std::vector<size_t> groups(cut_.groups.size());
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
    const Group& group = cut_.groups[groups[i]];
    work(group, slot, body);
    slot.writing = store_.write(first_region(group.first_piece), num_regions(group), slot.bytes);
    written_bytes_ += store_.extent_bytes(first_region(group.first_piece), num_regions(group));
  }
  for (Slot& slot : slots_)
    finish(slot.writing);
}

void StateSwap::begin_read(size_t index, Slot& slot) {
  finish(slot.writing);
  const Group& group = cut_.groups[index];
  slot.reading = store_.read(first_region(group.first_piece), num_regions(group), slot.bytes);
  read_bytes_ += store_.extent_bytes(first_region(group.first_piece), num_regions(group));
}

void StateSwap::finish(std::optional<io::IoTicket>& ticket) {
  if (ticket)
    store_.wait(*ticket);
  ticket.reset();
}

void StateSwap::work(const Group& group, Slot& slot, const Body& body) const {
  const io::RegionId first = first_region(group.first_piece);
  for (size_t p = group.first_piece; p < group.first_piece + group.num_pieces; ++p) {
    const Piece& piece = cut_.pieces[p];
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
  for (size_t p = 0; p < cut_.pieces.size(); ++p) {
    if (cut_.pieces[p].segment != segment)
      continue;
    const Group one{p, 1};
    Slot& slot = slots_[0];
    store_.wait(store_.read(first_region(p), num_regions(one), slot.bytes));
    work(one, slot, body);
  }
}

}  // namespace shardtune::trainer
