#include "trainer/state_swap.h"

#include <gtest/gtest.h>
#include <sys/mount.h>

#include <cerrno>
#include <cstring>
#include <random>

#include "core/error.h"
#include "tests/support/failing_io.h"
#include "tests/support/other_writer.h"
#include "tests/trainer/tiny_model.h"

namespace shardtune::trainer {
namespace {

using testing::TempFolder;

io::SwapOptions in_folder(const TempFolder& folder, io::SwapMode mode = io::SwapMode::kAuto) {
  io::SwapOptions options;
  options.folder = folder.path();
  options.mode = mode;
  return options;
}

/// Odd sizes, a tensor of several pieces and one without elements.
const StateSwap::Segment kSegments[] = {{"a", 7},    {"big", 3 * 262144 + 5}, {"none", 0},
                                        {"b", 4096}, {"c", 300000},           {"d", 1}};

float initial(size_t segment, int64_t element, size_t state) {
  return static_cast<float>(segment * 1000) + static_cast<float>(element % 997) +
         0.5f * static_cast<float>(state);
}

/// Every piece once, in order, with `value` in its states.
void expect_states(
    StateSwap& swap,
    const std::function<float(size_t segment, int64_t element, size_t state)>& value) {
  for (size_t segment = 0; segment < std::size(kSegments); ++segment) {
    int64_t next = 0;
    swap.read(
        segment, [&](const StateSwap::Piece& piece, std::span<const std::span<float>> states) {
          ASSERT_EQ(piece.segment, segment);
          ASSERT_EQ(piece.begin, next);
          ASSERT_EQ(states.size(), 2u);
          for (size_t s = 0; s < 2; ++s) {
            ASSERT_EQ(states[s].size(), static_cast<size_t>(piece.end - piece.begin));
            for (size_t i = 0; i < states[s].size(); ++i)
              ASSERT_EQ(states[s][i], value(segment, piece.begin + static_cast<int64_t>(i), s));
          }
          next = piece.end;
        });
    EXPECT_EQ(next, kSegments[segment].numel);
  }
}

void fill_initial(StateSwap& swap) {
  swap.overwrite([](const StateSwap::Piece& piece, std::span<const std::span<float>> states) {
    for (size_t s = 0; s < states.size(); ++s) {
      for (size_t i = 0; i < states[s].size(); ++i)
        states[s][i] = initial(piece.segment, piece.begin + static_cast<int64_t>(i), s);
    }
  });
}

void add_one(const StateSwap::Piece&, std::span<const std::span<float>> states) {
  for (const std::span<float> state : states) {
    for (float& value : state)
      value += 1.0f;
  }
}

TEST(StateSwap, BeginsWithZerosAndKeepsWhatUpdatesMake) {
  const TempFolder folder;
  for (const io::SwapMode mode : {io::SwapMode::kAuto, io::SwapMode::kBuffered}) {
    io::SwapFile file(in_folder(folder, mode));
    StateSwap swap(file, kSegments, {"exp_avg", "exp_avg_sq"});
    EXPECT_GT(swap.num_groups(), 3);  // more than there are buffers
    EXPECT_EQ(file.reserved_bytes(), StateSwap::bytes_of(kSegments, 2));
    expect_states(swap, [](size_t, int64_t, size_t) { return 0.0f; });
    fill_initial(swap);
    expect_states(swap, initial);
    // Segments without a gradient stay, also beside others in one group.
    for (int round = 0; round < 3; ++round)
      swap.update([](size_t segment) { return segment == 1 || segment == 3; }, add_one);
    expect_states(swap, [](size_t segment, int64_t element, size_t state) {
      return initial(segment, element, state) + (segment == 1 || segment == 3 ? 3.0f : 0.0f);
    });
  }
}

TEST(StateSwap, AnErrorInTheMiddleEndsEveryLaterUse) {
  const TempFolder folder;
  bool broken = false;
  io::SwapOptions options = in_folder(folder);
  options.wrap = [&](std::unique_ptr<io::AsyncIo> io) {
    return std::make_unique<testing::FailingIo>(
        std::move(io), [&](const io::IoRequest& request, int64_t count) -> int64_t {
          return broken && request.offset > (4 << 20) ? -EIO : count;
        });
  };
  io::SwapFile file(options);
  StateSwap swap(file, kSegments, {"exp_avg", "exp_avg_sq"});
  fill_initial(swap);
  broken = true;
  const auto all = [](size_t) { return true; };
  EXPECT_THROW(swap.update(all, add_one), Error);
  broken = false;
  EXPECT_THROW(swap.update(all, add_one), Error);
  EXPECT_THROW(swap.read(0, add_one), Error);
  EXPECT_THROW(swap.overwrite(add_one), Error);
}

// RELIABILITY R24: states are written anew in every step, so a block of the step before has the
// right tensor and a checksum of its own, and only its generation is wrong.
TEST(StateSwap, EveryWrongBlockIsFoundBeforeItsUse) {
  const TempFolder folder;
  // Four regions: two tensors with two states each, one block in each.
  constexpr int64_t kNumel = 5000, kBytes = 4 * kNumel;
  const StateSwap::Segment segments[] = {{"w", kNumel}, {"v", kNumel}};
  const int64_t region_bytes = StateSwap::bytes_of(segments, 2) / 4;
  const auto all = [](size_t) { return true; };
  const int injections = testing::scaled(4000);
  int found = 0;
  for (int i = 0; i < injections && !HasFailure(); ++i) {
    io::SwapFile file(in_folder(folder));
    StateSwap swap(file, segments, {"exp_avg", "exp_avg_sq"});
    fill_initial(swap);
    const testing::OtherWriter other(file);
    const std::vector<std::byte> before = other.read(0, 4 * region_bytes);
    swap.update(all, add_one);

    std::mt19937 random(static_cast<unsigned>(i));
    const auto region = static_cast<int64_t>(random() % 4);
    std::vector<std::byte> bytes = other.read(region * region_bytes, kBytes);
    if (i % 4 == 0)
      bytes[random() % bytes.size()] ^= std::byte{1} << (random() % 8);
    else if (i % 4 == 1)
      std::ranges::fill(bytes, std::byte{0});
    else if (i % 4 == 2)
      std::copy_n(before.begin() + region * region_bytes, kBytes, bytes.begin());
    else
      bytes = other.read((region + 1) % 4 * region_bytes, kBytes);
    other.write(region * region_bytes, bytes);

    try {
      swap.update(all, [&](const StateSwap::Piece& piece, std::span<const std::span<float>>) {
        // Pieces before the wrong one may be handed out, it itself never.
        EXPECT_LT(static_cast<int64_t>(piece.segment), region / 2);
      });
      ADD_FAILURE() << "injection " << i << " passed unseen";
    } catch (const CorruptBlockError& error) {
      EXPECT_NE(std::string(error.what()).find("block 0: expected generation 3 with checksum"),
                std::string::npos)
          << error.what();
      ++found;
    }
  }
  EXPECT_EQ(found, injections);
}

}  // namespace
}  // namespace shardtune::trainer
