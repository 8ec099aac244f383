#include "trainer/evaluate.h"

#include <gtest/gtest.h>

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

}  // namespace
}  // namespace shardtune::trainer
