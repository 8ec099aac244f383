#include "trainer/state_swap.h"

#include <gtest/gtest.h>
#include <sys/mount.h>

#include <cerrno>
#include <cstring>

#include "core/error.h"
#include "tests/support/failing_io.h"
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

}  // namespace
}  // namespace shardtune::trainer
