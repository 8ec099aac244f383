// What training leaves out of LoHa, LoKr, OFT and BOFT, as PEFT's layers do: beside the same linear
// without dropout; and COFT's ball, whole and in the ranges of ranks.
#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <set>

#include "adapters/adapter.h"
#include "adapters/coft.h"
#include "io/yaml_node.h"
#include "tests/autograd/finite_difference.h"
#include "tests/support/small_model.h"
#include "tests/tolerance.h"

namespace shardtune::adapters {
namespace {

using autograd::Tape;
using autograd::Variable;
using models::BaseLinear;
using testing::make_batch;
using testing::random_tensor;
using testing::SmallModel;

/// Sees one linear with the adapter in training, at rest, and without it.
class Watch : public models::Hooks {
 public:
  struct Seen {
    Tensor input, base, resting, training;
    Tensor rotated;  // the input that the base gets in training
  };

  explicit Watch(Adapter& adapter) : adapter_(adapter) {}
  bool wraps(const BaseLinear& linear) const override { return adapter_.wraps(linear); }
  Variable on_linear(Tape& tape, const BaseLinear& linear, const Variable& x,
                     const models::PassContext& context, const Next& next) override {
    models::PassContext at_rest = context;
    at_rest.mode = models::Mode::kInference;
    const Next watched(tape, [&](const Variable& given) {
      seen[linear.path()].rotated = copy(given);
      return next(given);
    });
    Seen& values = seen[linear.path()];
    values.input = copy(x);
    values.base = copy(next(x));
    values.training = copy(adapter_.on_linear(tape, linear, x, context, watched));
    const Variable resting = adapter_.on_linear(tape, linear, x, at_rest, next);
    values.resting = copy(resting);
    return resting;
  }
  std::map<std::string, Seen> seen;

 private:
  static Tensor copy(const Variable& x) {
    Tensor y(x.shape(), DType::kFloat32);
    kernels::cast(x.value(), y);
    return y;
  }
  Adapter& adapter_;
};

/// An adapter with random values on a small model, and what a step of training sees.
class Dropping {
 public:
  explicit Dropping(const std::string& yaml) : small_("tied_gqa") {
    io::ConfigErrors errors;
    const auto options = adapter_options_from_yaml(io::YamlNode::parse(yaml, "run.yaml", errors));
    errors.throw_if_any();
    adapter_ = options->attach(*small_.model);
    small_.store.seal();
    adapter_->initialize(1);
    uint64_t key = 1;
    for (const AdapterTensor& tensor : adapter_->tensors()) {
      const Tensor values = random_tensor(tensor.shape, key++, 0.3f);
      small_.store.publish(tensor.id, values.view().bytes());
    }
  }

  std::map<std::string, Watch::Seen> step(int64_t number) {
    const TokenBatch batch = make_batch({{1, 5, 9, 60, 33, 71, 8, 20}});
    Watch watch(*adapter_);
    models::ForwardOptions options = small_.forward_options(batch);
    options.context.mode = models::Mode::kTraining;
    options.context.seed = 7;
    options.context.step = number;
    options.hooks = {&watch};
    Tape tape(small_.store, autograd::Recording::kOff);
    small_.model->forward(tape, options);
    return std::move(watch.seen);
  }

 private:
  SmallModel small_;
  std::unique_ptr<Adapter> adapter_;
};

/// By output: the factor on the change of the linear.
std::vector<double> factors(const Watch::Seen& seen) {
  const int64_t rows = seen.base.dim(0), columns = seen.base.dim(1);
  std::vector<double> result;
  for (int64_t j = 0; j < columns; ++j) {
    double both = 0.0, square = 0.0, rest = 0.0;
    const auto changes = [&](int64_t t) {
      const int64_t i = t * columns + j;
      const double base = seen.base.data<float>()[i];
      return std::pair(seen.training.data<float>()[i] - base, seen.resting.data<float>()[i] - base);
    };
    for (int64_t t = 0; t < rows; ++t) {
      const auto [training, resting] = changes(t);
      both += training * resting;
      square += resting * resting;
    }
    result.push_back(both / square);
    for (int64_t t = 0; t < rows; ++t) {
      const auto [training, resting] = changes(t);
      rest += std::pow(training - result.back() * resting, 2);
    }
    EXPECT_LT(rest, 1e-6 * square) << "not one factor for an output";
  }
  return result;
}

void expect_rank_dropout(const std::string& yaml, bool is_scaled) {
  Dropping dropping(yaml);
  std::set<std::vector<bool>> patterns;
  double kept_in_all = 0.0, all = 0.0;
  for (int64_t step = 0; step < 8; ++step) {
    for (const auto& [path, seen] : dropping.step(step)) {
      const std::vector<double> by = factors(seen);
      std::vector<bool> kept;
      for (const double factor : by)
        kept.push_back(std::abs(factor) > 1e-3);
      const auto count = static_cast<double>(std::ranges::count(kept, true));
      const double scale = is_scaled ? static_cast<double>(by.size()) / count : 1.0;
      for (size_t j = 0; j < by.size(); ++j)
        EXPECT_NEAR(by[j], kept[j] ? scale : 0.0, 1e-3) << path;
      patterns.insert(kept);
      kept_in_all += count;
      all += static_cast<double>(by.size());
    }
  }
  EXPECT_EQ(patterns.size(), 8u * 4u);  // two targets of two layers, a mask each
  EXPECT_NEAR(kept_in_all / all, 0.6, 5.0 * std::sqrt(0.6 * 0.4 / all));
}

TEST(RankDropout, LeavesOutputsOfTheChangeOut) {
  expect_rank_dropout("{method: loha, r: 3, rank_dropout: 0.4}", true);
  expect_rank_dropout("{method: lokr, r: 3, rank_dropout: 0.4}", false);
  expect_rank_dropout("{method: lokr, r: 3, rank_dropout: 0.4, rank_dropout_scale: true}", true);
}

TEST(ModuleDropout, LeavesTheWholeChangeOut) {
  for (const std::string method : {"loha", "lokr"}) {
    Dropping dropping("{method: " + method + ", r: 3, module_dropout: 0.3}");
    double dropped = 0.0, all = 0.0;
    for (int64_t step = 0; step < 100; ++step) {
      for (const auto& [path, seen] : dropping.step(step)) {
        const bool is_base =
            seen.training.view().bytes().size() == seen.base.view().bytes().size() &&
            std::ranges::equal(seen.training.span<float>(), seen.base.span<float>());
        const bool is_whole =
            std::ranges::equal(seen.training.span<float>(), seen.resting.span<float>());
        EXPECT_NE(is_base, is_whole) << path;
        dropped += is_base ? 1.0 : 0.0;
        all += 1.0;
      }
    }
    EXPECT_NEAR(dropped / all, 0.3, 5.0 * std::sqrt(0.3 * 0.7 / all)) << method;
  }
}

// floor(0.3 * 8) of 8 blocks of 4 inputs; a rotation that blocks share is not left out.
TEST(MultiplicativeDropout, LeavesBlocksUnrotated) {
  for (const std::string section :
       {"{method: oft, oft_block_size: 4, module_dropout: 0.3}",
        "{method: boft, boft_block_size: 4, boft_dropout: 0.3}",
        "{method: oft, oft_block_size: 4, module_dropout: 0.3, block_share: true}"}) {
    Dropping dropping(section);
    const bool is_shared = section.find("block_share") != std::string::npos;
    std::set<std::vector<bool>> patterns;
    for (int64_t step = 0; step < 4; ++step) {
      for (const auto& [path, seen] : dropping.step(step)) {
        std::vector<bool> held(8, true);
        for (int64_t i = 0; i < seen.input.numel(); ++i) {
          if (seen.input.data<float>()[i] != seen.rotated.data<float>()[i])
            held[static_cast<size_t>(i % 32 / 4)] = false;
        }
        EXPECT_EQ(std::ranges::count(held, true), is_shared ? 0 : 2) << section << path;
        patterns.insert(held);
      }
    }
    EXPECT_GT(patterns.size(), is_shared ? 0u : 4u) << section;
  }
}

// Rows of 6 in chunks of 4,096: rows lie across chunks, as the ranks cut them.
TEST(Coft, RangesOfRanksComeToWhatTheWholeDoes) {
  constexpr int64_t kRows = 2000, kRow = 6, kNumel = kRows * kRow;
  const Tensor start = random_tensor({kRows, kRow}, 5);
  const double eps = 2.5 * std::sqrt(static_cast<double>(kRows));
  Tensor whole = start.clone();
  EXPECT_TRUE(project_rotations(whole.span<float>(), kRows, eps));
  int64_t moved = 0;
  for (int64_t r = 0; r < kRows; ++r) {
    double square = 0.0;
    for (int64_t i = r * kRow; i < (r + 1) * kRow; ++i)
      square += 2.0 * std::pow(whole.data<float>()[i], 2);
    EXPECT_LE(std::sqrt(square), 2.5 * (1.0 + 1e-6));
    moved += whole.data<float>()[r * kRow] != start.data<float>()[r * kRow] ? 1 : 0;
  }
  EXPECT_GT(moved, 100);
  EXPECT_LT(moved, kRows - 100);

  Tensor parts = start.clone();
  const ParameterId id{3};
  std::vector<models::UpdatedRange> ranges;
  for (int64_t begin = 0; begin < kNumel; begin += 4096) {
    const auto length = static_cast<size_t>(std::min<int64_t>(4096, kNumel - begin));
    ranges.push_back(
        {id, begin, parts.span<float>().subspan(static_cast<size_t>(begin), length), {}, {}});
  }
  RotationLimit limit(eps);
  limit.add(id, kRows, kRow);
  limit.project(ranges, [](std::span<const models::ChunkValues>) {});
  for (int64_t i = 0; i < kNumel; ++i)
    ASSERT_NEAR(parts.data<float>()[i], whole.data<float>()[i], 1e-6);
}

TEST(Coft, WithoutRoomToRotateIsRefused) {
  io::ConfigErrors errors;
  adapter_options_from_yaml(
      io::YamlNode::parse("{method: oft, coft: true, eps: 0}", "run.yaml", errors));
  ASSERT_FALSE(errors.messages().empty());
  EXPECT_NE(errors.messages().front().find("eps"), std::string::npos);
}

}  // namespace
}  // namespace shardtune::adapters
