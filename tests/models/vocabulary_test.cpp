// The embedding table and the head over several vocabulary chunks: held whole or chunk by chunk, on
// one rank or shared out, the same bits.
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <mutex>

#include "core/rng.h"
#include "models/head.h"
#include "parallel/sharded_store.h"
#include "parallel/thread_communicator.h"

namespace shardtune::models {
namespace {

constexpr int64_t kVocab = 2 * VocabularyTable::kChunkRows + 77;  // three chunks, the last short
constexpr int64_t kHidden = 24;
constexpr int64_t kTokens = 600;  // two blocks of rows

float weight(int64_t row, int64_t column) {
  return 0.3f * CounterRng(5).normal(static_cast<uint64_t>(row * kHidden + column));
}

struct Table {
  Table(parallel::Communicator& comm, parallel::ZeroStage stage, int64_t max_held_bytes,
        DType compute, bool is_trained = false, int64_t num_columns = 0)
      : store(comm, stage, {.max_held_bytes = max_held_bytes}),
        table(store, "embed_tokens.weight", {kVocab, kHidden, compute, is_trained}) {
    table.load([](int64_t begin, int64_t end, float* out) {
      for (int64_t row = begin; row < end; ++row) {
        for (int64_t column = 0; column < kHidden; ++column)
          *out++ = weight(row, column);
      }
    });
    if (num_columns > 0)
      add_columns(num_columns);
    store.seal();
  }
  void add_columns(int64_t count) {
    std::vector<ParameterId> parts;
    for (int64_t c = 0; c < table.num_chunks(); ++c) {
      const Shape shape{table.chunk(c).out_features(), count};
      parts.push_back(store.declare({"lora_B.chunk" + std::to_string(c), table.chunk(c).unit(),
                                     ParameterKind::kTrainable, DType::kFloat32, shape}));
      std::vector<float> values(static_cast<size_t>(shape.numel()));
      for (size_t i = 0; i < values.size(); ++i)
        values[i] = column(table.chunk_begin(c) * count + static_cast<int64_t>(i));
      store.publish(parts.back(), std::as_bytes(std::span(values)));
    }
    table.add_columns(parts);
  }
  static float column(int64_t element) {
    return 0.2f * CounterRng(6).normal(static_cast<uint64_t>(element));
  }
  /// The gradient of a step in which `body` is the only micro-batch, all chunks after each other.
  std::vector<float> gradient_of(const std::function<void(Tape&)>& body) {
    store.begin_step(1);
    store.begin_micro_batch(0);
    Tape tape(store, autograd::Recording::kOn);
    body(tape);
    store.end_round();
    store.finish_gradients();
    std::vector<float> gradient;
    for (const auto& segment : store.segments())
      gradient.insert(gradient.end(), segment.gradient.begin(), segment.gradient.end());
    return gradient;
  }

  parallel::ShardedParameterStore store;
  VocabularyTable table;
};

Tensor random_rows(int64_t rows, uint64_t key, int64_t width = kHidden) {
  Tensor values(Shape{rows, width}, DType::kFloat32);
  for (int64_t i = 0; i < values.numel(); ++i)
    values.data<float>()[i] = CounterRng(key).normal(static_cast<uint64_t>(i));
  return values;
}

/// Bits of everything a step takes from the head.
struct Bits {
  double loss_sum = 0.0;
  std::vector<float> gradient;
  bool operator==(const Bits&) const = default;
};

std::vector<int32_t> some_labels(int every) {
  std::vector<int32_t> labels;
  for (int64_t t = 0; t < kTokens; ++t)
    labels.push_back(t % every == 0 ? static_cast<int32_t>(t * 7919 % kVocab) : kIgnoreLabel);
  return labels;
}

Bits bits_of(Table& setup, std::span<const int32_t> labels, DType compute, HeadWalk walk) {
  Tensor hidden(Shape{kTokens, kHidden}, compute);
  for (int64_t i = 0; i < hidden.numel(); ++i) {
    const float value = CounterRng(9).normal(static_cast<uint64_t>(i));
    if (compute == DType::kFloat32)
      hidden.data<float>()[i] = value;
    else
      hidden.data<BFloat16>()[i] = BFloat16(value);
  }
  Tape tape(setup.store, autograd::Recording::kOn);
  const HeadLoss loss = head_cross_entropy(tape, setup.table, Variable::leaf(std::move(hidden)),
                                           labels, 0.125f, walk);
  const auto gradient = loss.hidden_grad.span<float>();
  return {loss.loss_sum, {gradient.begin(), gradient.end()}};
}

TEST(Head, WholeAndByChunkHaveTheSameBits) {
  for (const DType compute : {DType::kFloat32, DType::kBFloat16}) {
    const auto comm = parallel::make_single_communicator();
    Table setup(*comm, parallel::ZeroStage::k0, 0, compute);
    EXPECT_EQ(choose_head_walk(setup.table), HeadWalk::kWhole);  // one rank holds it anyway
    for (const int every : {1, 2, 1000}) {
      const auto labels = some_labels(every);
      const Bits whole = bits_of(setup, labels, compute, HeadWalk::kWhole);
      EXPECT_TRUE(bits_of(setup, labels, compute, HeadWalk::kByChunk) == whole);
      EXPECT_GT(whole.loss_sum, 0.0);
    }
  }
}

// Both walks at stage 3, with ranks that train every position, one, or have no work at all.
TEST(Head, SharedOutOverRanksItHasTheBitsOfOneRank) {
  const auto single = parallel::make_single_communicator();
  Table reference(*single, parallel::ZeroStage::k0, 0, DType::kFloat32);
  const std::vector<std::vector<int32_t>> labels{some_labels(1), some_labels(1000)};
  std::vector<Bits> expected;
  for (const auto& of_rank : labels)
    expected.push_back(bits_of(reference, of_rank, DType::kFloat32, HeadWalk::kWhole));
  for (const int64_t max_held_bytes : {parallel::kMaxHeldBytes, int64_t{0}}) {
    parallel::run_on_threads(3, [&](parallel::Communicator& comm) {
      Table setup(comm, parallel::ZeroStage::k3, max_held_bytes, DType::kFloat32);
      const HeadWalk walk = choose_head_walk(setup.table);
      EXPECT_EQ(walk, max_held_bytes == 0 ? HeadWalk::kByChunk : HeadWalk::kWhole);
      setup.store.begin_walk(head_units(setup.table, autograd::Recording::kOn));
      if (const auto rank = static_cast<size_t>(comm.rank()); rank < labels.size()) {
        EXPECT_TRUE(bits_of(setup, labels[rank], DType::kFloat32, walk) == expected[rank]);
      }
      setup.store.end_walk();
      const int64_t chunk_bytes = VocabularyTable::kChunkRows * kHidden * 4;
      EXPECT_LE(setup.store.memory().unit_bytes,
                (1 + parallel::gather_ahead(chunk_bytes)) * chunk_bytes);
    });
  }
}

TEST(VocabularyTable, LookupFetchesTheRowsOfItsIds) {
  const std::vector<int32_t> ids{0, 8191, 8192, 16460, 3, 8192, 3};
  for (const DType compute : {DType::kFloat32, DType::kBFloat16}) {
    parallel::run_on_threads(3, [&](parallel::Communicator& comm) {
      Table setup(comm, parallel::ZeroStage::k3, 0, compute);
      setup.store.begin_walk(std::vector{kFetchRows});
      if (comm.rank() != 0) {
        const auto own = std::span(ids).subspan(static_cast<size_t>(comm.rank() - 1));
        const Tensor out(Shape{std::ssize(own), kHidden}, DType::kFloat32);
        setup.table.lookup(own, out);
        for (size_t i = 0; i < own.size(); ++i) {
          for (int64_t column = 0; column < kHidden; ++column) {
            const float value = weight(own[i], column);
            ASSERT_EQ(out.data<float>()[static_cast<int64_t>(i) * kHidden + column],
                      compute == DType::kFloat32 ? value : static_cast<float>(BFloat16(value)));
          }
        }
      }
      setup.store.end_walk();
    });
  }
}

TEST(VocabularyTable, ATrainedOneGivesRowsAndTakesTheirGradients) {
  const std::vector<int32_t> ids{0, 8191, 8192, 16460, 3, 8192, 3};
  const auto comm = parallel::make_single_communicator();
  Table setup(*comm, parallel::ZeroStage::k0, 0, DType::kFloat32, true);
  const Tensor seed = random_rows(std::ssize(ids), 11);
  const std::vector<float> found = setup.gradient_of([&](Tape& tape) {
    const Variable x = setup.table.embed(tape, ids);
    for (size_t i = 0; i < ids.size(); ++i)
      ASSERT_EQ(x.value().data<float>()[static_cast<int64_t>(i) * kHidden + 5], weight(ids[i], 5));
    tape.backward(x, seed.clone());
  });
  std::vector<float> expected(kVocab * kHidden, 0.0f);
  for (size_t t = 0; t < ids.size(); ++t) {
    for (int64_t i = 0; i < kHidden; ++i)
      expected[static_cast<size_t>(ids[t] * kHidden + i)] +=
          seed.data<float>()[static_cast<int64_t>(t) * kHidden + i];
  }
  EXPECT_TRUE(found == expected);
}

// Truncation of order h^2 and a loss of some hundred terms of 10 in fp32, over 2 h.
TEST(Head, ATrainedOneHasItsDerivativeInBothWalks) {
  const auto comm = parallel::make_single_communicator();
  Table setup(*comm, parallel::ZeroStage::k0, 0, DType::kFloat32, true);
  const auto labels = some_labels(2);
  const auto loss_of = [&](Tape& tape, HeadWalk walk) {
    return head_cross_entropy(tape, setup.table, Variable::leaf(random_rows(kTokens, 9)), labels,
                              1.0f, walk);
  };
  const auto gradient = [&](HeadWalk walk) {
    return setup.gradient_of([&](Tape& tape) {
      HeadLoss loss = loss_of(tape, walk);
      tape.backward(Variable::leaf(random_rows(kTokens, 9)), std::move(loss.hidden_grad));
    });
  };
  const std::vector<float> whole = gradient(HeadWalk::kWhole);
  EXPECT_TRUE(gradient(HeadWalk::kByChunk) == whole);
  constexpr float kStep = 0.05f;
  for (const int32_t row : {labels[0], labels[2], labels[200]}) {
    const int64_t chunk = row / VocabularyTable::kChunkRows;
    const ParameterId id = setup.table.chunk(chunk).components().front();
    const int64_t place = (row - setup.table.chunk_begin(chunk)) * kHidden + 7;
    const auto loss_at = [&](float value) {
      setup.store.write(id, place, std::span<const float>(&value, 1));
      setup.store.publish_updates();
      Tape tape(setup.store, autograd::Recording::kOff);
      return loss_of(tape, HeadWalk::kWhole).loss_sum;
    };
    const float before = weight(row, 7);
    const double difference = (loss_at(before + kStep) - loss_at(before - kStep)) / (2 * kStep);
    loss_at(before);
    EXPECT_NEAR(whole[static_cast<size_t>(row * kHidden + 7)], difference, 5e-3) << row;
  }
}

constexpr int64_t kColumns = 3;

TEST(Head, ColumnsBehindTheHiddenStateMeetTheirOwnMatrix) {
  const auto comm = parallel::make_single_communicator();
  Table setup(*comm, parallel::ZeroStage::k0, 0, DType::kFloat32, false, kColumns);
  const Tensor both = random_rows(5, 9, kHidden + kColumns);
  Tensor alone(Shape{5, kHidden}, DType::kFloat32);
  for (int64_t t = 0; t < 5; ++t)
    std::copy_n(both.data<float>() + t * (kHidden + kColumns), kHidden,
                alone.data<float>() + t * kHidden);
  const Tensor plain = head_logits(setup.table, alone), found = head_logits(setup.table, both);
  std::vector<int32_t> best(5);
  head_argmax(setup.table, both, kVocab - 10, best);
  for (int64_t t = 0; t < 5; ++t) {
    const float* const row = found.data<float>() + t * kVocab;
    for (int64_t id = 0; id < kVocab; ++id) {
      double want = plain.data<float>()[t * kVocab + id];
      for (int64_t j = 0; j < kColumns; ++j)
        want += static_cast<double>(both.data<float>()[t * (kHidden + kColumns) + kHidden + j]) *
                Table::column(id * kColumns + j);
      ASSERT_NEAR(row[id], want, 1e-5);
    }
    EXPECT_EQ(best[static_cast<size_t>(t)], std::max_element(row, row + kVocab - 10) - row);
  }
}

TEST(Head, ColumnsHaveTheirDerivativeInBothWalks) {
  const auto comm = parallel::make_single_communicator();
  Table setup(*comm, parallel::ZeroStage::k0, 0, DType::kFloat32, false, kColumns);
  const auto labels = some_labels(2);
  Tensor hidden = random_rows(kTokens, 9, kHidden + kColumns);
  const auto loss_of = [&](Tape& tape, HeadWalk walk) {
    return head_cross_entropy(tape, setup.table, Variable::leaf(hidden.clone()), labels, 1.0f,
                              walk);
  };
  std::vector<float> of_hidden;
  const auto gradient = [&](HeadWalk walk) {
    return setup.gradient_of([&](Tape& tape) {
      HeadLoss loss = loss_of(tape, walk);
      const auto found = loss.hidden_grad.span<float>();
      of_hidden.assign(found.begin(), found.end());
      tape.backward(Variable::leaf(hidden.clone()), std::move(loss.hidden_grad));
    });
  };
  const std::vector<float> by_chunk = gradient(HeadWalk::kByChunk);
  const std::vector<float> of_hidden_by_chunk = of_hidden;
  const std::vector<float> whole = gradient(HeadWalk::kWhole);
  EXPECT_TRUE(by_chunk == whole);
  EXPECT_TRUE(of_hidden_by_chunk == of_hidden);
  const auto loss_now = [&] {
    Tape tape(setup.store, autograd::Recording::kOff);
    return loss_of(tape, HeadWalk::kWhole).loss_sum;
  };
  constexpr float kStep = 0.05f;
  for (const int32_t row : {labels[0], labels[2], labels[200]}) {
    const int64_t chunk = row / VocabularyTable::kChunkRows;
    const int64_t place = (row - setup.table.chunk_begin(chunk)) * kColumns + 1;
    const auto loss_at = [&](float value) {
      setup.store.write(setup.table.columns(chunk), place, std::span<const float>(&value, 1));
      setup.store.publish_updates();
      return loss_now();
    };
    const float before = Table::column(row * kColumns + 1);
    const double difference = (loss_at(before + kStep) - loss_at(before - kStep)) / (2 * kStep);
    loss_at(before);
    EXPECT_NEAR(whole[static_cast<size_t>(row * kColumns + 1)], difference, 5e-3) << row;
  }
  for (const int64_t place : {kHidden + 1, 40 * (kHidden + kColumns) + kHidden}) {
    const float before = hidden.data<float>()[place];
    hidden.data<float>()[place] = before + kStep;
    const double above = loss_now();
    hidden.data<float>()[place] = before - kStep;
    const double below = loss_now();
    hidden.data<float>()[place] = before;
    EXPECT_NEAR(of_hidden[static_cast<size_t>(place)], (above - below) / (2 * kStep), 5e-3);
  }
}

}  // namespace
}  // namespace shardtune::models
