#include "trainer/evaluate.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>

#include "data/plan.h"
#include "models/head.h"
#include "parallel/sharded_store.h"
#include "tests/trainer/small_run.h"

namespace shardtune::trainer {
namespace {

using testing::SmallRun;

struct Loaded {
  std::unique_ptr<models::ModelSource> source;
  std::unique_ptr<parallel::ShardedParameterStore> store;
  std::unique_ptr<models::Model> model;
  std::unique_ptr<data::Tokenizer> tokenizer;
  std::unique_ptr<data::ChatTemplate> chat;
  data::Dataset dataset;

  Loaded(const SmallRun& small, parallel::Communicator& comm) {
    const std::string folder = small.path("model").string();
    source = models::open_model_source(folder);
    store = std::make_unique<parallel::ShardedParameterStore>(comm, parallel::ZeroStage::k0);
    model = models::load_model(*source, *store, {});
    store->seal();
    tokenizer = data::load_tokenizer(folder);
    chat = data::make_chat_template("chatml", "", {});
    data::DatasetOptions options;
    options.files = {{small.path("eval.jsonl").string(), "completion", {}}};
    options.max_length = 96;
    dataset = data::load_dataset(options, *tokenizer, chat.get());
  }
};

TEST(EvaluateLoss, IsTheMeanOverTrainedTokens) {
  const SmallRun small;
  const auto comm = parallel::make_single_communicator();
  const Loaded loaded(small, *comm);
  const LossResult result = evaluate_loss(*loaded.model, loaded.dataset, *comm, {});
  EXPECT_EQ(result.num_samples, 7);
  EXPECT_EQ(result.num_tokens, loaded.dataset.stats.num_trained_tokens);
  EXPECT_DOUBLE_EQ(result.perplexity, std::exp(result.loss));

  // Sample by sample through the head's own token losses.
  double sum = 0.0;
  int64_t count = 0;
  for (size_t i = 0; i < loaded.dataset.samples.size(); ++i) {
    data::MicroBatchPlan one;
    one.samples = {static_cast<int64_t>(i)};
    const TokenBatch batch = data::collate(loaded.dataset.samples, one);
    autograd::Tape tape(*loaded.store, autograd::Recording::kOff);
    models::ForwardOptions options;
    options.context.batch = &batch;
    const auto hidden = loaded.model->forward(tape, options);
    for (const float loss :
         models::head_token_losses(loaded.model->head(), hidden.value(), batch.labels)) {
      sum += std::abs(loss);
      ++count;
    }
  }
  EXPECT_EQ(count, result.num_tokens);
  // fp32 products of hidden size 64 in another batch shape: some rounding steps per logit.
  EXPECT_NEAR(result.loss, sum / static_cast<double>(count), 1e-5);
}

TEST(EvaluateLoss, HasTheSameBitsOnAnyNumberOfRanks) {
  const SmallRun small;
  std::vector<uint64_t> bits;
  for (int ranks = 1; ranks <= 3; ++ranks) {
    parallel::run_on_threads(ranks, [&](parallel::Communicator& comm) {
      const Loaded loaded(small, comm);
      EvaluateOptions options;
      options.max_tokens = 96;  // several micro-batches
      const LossResult result = evaluate_loss(*loaded.model, loaded.dataset, comm, options);
      if (comm.rank() == 0)
        bits.push_back(std::bit_cast<uint64_t>(result.loss));
    });
  }
  ASSERT_EQ(bits.size(), 3u);
  EXPECT_EQ(bits[0], bits[1]);
  EXPECT_EQ(bits[0], bits[2]);
}

TEST(ExactMatch, CountsEqualTextsApartFromOuterSpace) {
  const SmallRun small;
  const auto comm = parallel::make_single_communicator();
  Loaded loaded(small, *comm);
  EvaluateOptions options;
  options.max_new_tokens = 5;
  const auto first = evaluate_exact_match(*loaded.model, *loaded.tokenizer, loaded.chat.get(),
                                          loaded.dataset, options);
  EXPECT_EQ(first.num_samples, 7);
  ASSERT_EQ(first.answers.size(), 7u);
  // A random model answers nonsense; its own nonsense as the expected text matches.
  EXPECT_EQ(first.num_matches, 0);
  for (const data::Sample& sample : loaded.dataset.samples)
    loaded.dataset.records[sample.record].messages.back().content =
        " " + first.answers[static_cast<size_t>(&sample - loaded.dataset.samples.data())] + "\n";
  const auto second = evaluate_exact_match(*loaded.model, *loaded.tokenizer, loaded.chat.get(),
                                           loaded.dataset, options);
  EXPECT_EQ(second.num_matches, 7);
  EXPECT_DOUBLE_EQ(second.exact_match, 1.0);
}

TEST(ExactMatch, AnswersAreTheSameInAnyBatch) {
  const SmallRun small;
  const auto comm = parallel::make_single_communicator();
  const Loaded loaded(small, *comm);
  EvaluateOptions options;
  options.max_new_tokens = 8;
  const auto answers = [&](int64_t batch_size) {
    options.batch_size = batch_size;
    return evaluate_exact_match(*loaded.model, *loaded.tokenizer, loaded.chat.get(), loaded.dataset,
                                options)
        .answers;
  };
  const auto alone = answers(1);
  EXPECT_EQ(answers(3), alone);
  EXPECT_EQ(answers(100), alone);
}

/// log softmax of a whole pass over the sample's ids, in fp64.
double log_likelihood(const Loaded& loaded, const data::Sample& sample) {
  data::MicroBatchPlan one;
  one.samples = {0};
  const TokenBatch batch = data::collate({sample}, one);
  autograd::Tape tape(*loaded.store, autograd::Recording::kOff);
  models::ForwardOptions options;
  options.context.batch = &batch;
  const auto hidden = loaded.model->forward(tape, options);
  const Tensor logits = models::head_logits(loaded.model->head(), hidden.value());
  double sum = 0.0;
  for (size_t t = 0; t < batch.labels.size(); ++t) {
    if (batch.labels[t] == kIgnoreLabel)
      continue;
    const float* const row = logits.data<float>() + static_cast<int64_t>(t) * logits.dim(1);
    double total = 0.0;
    for (int64_t i = 0; i < logits.dim(1); ++i)
      total += std::exp(static_cast<double>(row[i]));
    sum += row[batch.labels[t]] - std::log(total);
  }
  return sum;
}

TEST(Choice, TheLikeliestByTokensAndByCharacters) {
  const SmallRun small;
  const auto comm = parallel::make_single_communicator();
  const Loaded loaded(small, *comm);
  testing::write_text(
      small.path("questions.jsonl"),
      "{\"query\": \"ab\", \"choices\": [\"x\", \"longer text\"], \"gold\": 0}\n"
      "{\"query\": \"cd\", \"choices\": [\"yes\", \"no\", \"\u65e5\"], \"gold\": 1}\n"
      "{\"query\": \"ef\", \"choices\": [\"same\", \"same\"], \"gold\": 0}\n");
  auto questions = data::read_choices({small.path("questions.jsonl").string(), 0, 96, false},
                                      *loaded.tokenizer, nullptr);
  EvaluateOptions options;
  options.max_tokens = 24;  // several micro-batches
  const ChoiceResult result = evaluate_choice(*loaded.model, questions, options);
  ASSERT_EQ(result.num_questions, 3);
  for (size_t q = 0; q < questions.size(); ++q) {
    std::vector<double> expected, normalised;
    for (size_t c = 0; c < questions[q].choices.size(); ++c) {
      expected.push_back(log_likelihood(loaded, questions[q].samples[c]));
      // fp32 products of hidden size 64 in another batch shape, per token of the choice.
      EXPECT_NEAR(result.log_likelihoods[q][c], expected.back(), 2e-5 * 12) << q << " " << c;
    }
    EXPECT_EQ(result.chosen[q],
              std::max_element(expected.begin(), expected.end()) - expected.begin());
  }
  EXPECT_EQ(result.chosen[2], 0) << "the first among equals";

  // With every question's answer the one chosen, and the one that characters choose.
  const auto characters = [](const std::string& text) {
    return text == "\u65e5" ? 1.0 : static_cast<double>(text.size());
  };
  double right = 0.0, right_normalised = 0.0;
  for (size_t q = 0; q < questions.size(); ++q) {
    std::vector<double> scores = result.log_likelihoods[q];
    right += result.chosen[q] == questions[q].gold ? 1.0 : 0.0;
    for (size_t c = 0; c < scores.size(); ++c)
      scores[c] /= characters(questions[q].choices[c]);
    const auto best = std::max_element(scores.begin(), scores.end()) - scores.begin();
    right_normalised += best == questions[q].gold ? 1.0 : 0.0;
  }
  EXPECT_DOUBLE_EQ(result.acc, right / 3.0);
  EXPECT_DOUBLE_EQ(result.acc_norm, right_normalised / 3.0);
  EXPECT_DOUBLE_EQ(result.acc_stderr, std::sqrt(result.acc * (1.0 - result.acc) / 2.0));
}

}  // namespace
}  // namespace shardtune::trainer
