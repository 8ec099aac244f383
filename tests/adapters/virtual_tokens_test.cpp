// Prefixes before every sample: that packed samples see the prefix and not each other, and what is
// refused.
#include <gtest/gtest.h>

#include <algorithm>

#include "adapters/adapter.h"
#include "io/safetensors.h"
#include "io/yaml_node.h"
#include "objectives/sft.h"
#include "tests/support/small_model.h"

namespace shardtune::adapters {
namespace {

using testing::make_batch;
using testing::SmallModel;
using Ids = std::vector<int32_t>;

std::unique_ptr<AdapterOptions> options_of(const std::string& section, io::ConfigErrors& errors) {
  return adapter_options_from_yaml(io::YamlNode::parse(section, "run.yaml", errors));
}

std::string error_of(const std::string& section) {
  io::ConfigErrors errors;
  options_of(section, errors);
  return errors.messages().empty() ? "" : errors.messages().front();
}

double loss_of(SmallModel& small, Adapter& adapter, const std::vector<Ids>& samples) {
  const TokenBatch batch = make_batch(samples);
  models::ForwardOptions options = small.forward_options(batch);
  options.hooks = {&adapter};
  return objectives::make_next_token()->evaluate(*small.model, options).loss_sum;
}

class VirtualTokens : public ::testing::TestWithParam<std::string> {};

TEST_P(VirtualTokens, StandBeforeEveryPackedSample) {
  SmallModel small("tied_gqa");
  io::ConfigErrors errors;
  const auto adapter = options_of(GetParam(), errors)->attach(*small.model);
  small.store.seal();
  adapter->initialize(InitContext(7));
  const std::vector<Ids> samples = {{1, 5, 9, 60, 33}, {2, 90, 17, 4, 8, 41}, {3, 7}};
  const double together = loss_of(small, *adapter, samples);
  double apart = 0.0;
  for (const Ids& sample : samples)
    apart += loss_of(small, *adapter, {sample});
  EXPECT_NEAR(together, apart, 1e-5 * together);
  // What a neighbour says changes nothing.
  EXPECT_NEAR(
      loss_of(small, *adapter, {{9, 9, 9}, samples[1]}) - loss_of(small, *adapter, {{9, 9, 9}}),
      loss_of(small, *adapter, {samples[1]}), 1e-5 * together);
}

INSTANTIATE_TEST_SUITE_P(
    Methods, VirtualTokens,
    ::testing::Values("{method: prefix_tuning, num_virtual_tokens: 4}",
                      "{method: prefix_tuning, num_virtual_tokens: 4, prefix_projection: true}",
                      "{method: prompt_tuning, num_virtual_tokens: 4}",
                      "{method: p_tuning, num_virtual_tokens: 4}",
                      "{method: p_tuning, num_virtual_tokens: 4, "
                      "encoder_reparameterization_type: LSTM}"),
    [](const auto& info) { return std::to_string(info.index); });

TEST(PromptTuning, OptionsThatMeanNothingAreErrors) {
  const std::string start = "{method: prompt_tuning, num_virtual_tokens: 4";
  EXPECT_NE(error_of(start + ", prompt_tuning_init: TEXT}").find("prompt_tuning_init_text"),
            std::string::npos);
  EXPECT_NE(error_of(start + ", prompt_tuning_init_text: a}").find("prompt_tuning_init: TEXT"),
            std::string::npos);
  EXPECT_NE(error_of(start + ", tokenizer_name_or_path: a}").find("model's own tokenizer"),
            std::string::npos);
  EXPECT_NE(error_of("{method: p_tuning, num_virtual_tokens: 4, encoder_dropout: 0.1}")
                .find("encoder_reparameterization_type: LSTM"),
            std::string::npos);
  EXPECT_NE(error_of("{method: multitask_prompt_tuning, num_virtual_tokens: 4, "
                     "prompt_tuning_init: EXACT_SOURCE_TASK, "
                     "prompt_tuning_init_state_dict_path: a.bin}")
                .find(".safetensors"),
            std::string::npos);
}

std::vector<float> initial_prompt(SmallModel& small, Adapter& adapter, const InitContext& context) {
  small.store.seal();
  adapter.initialize(context);
  const ParameterId id = adapter.tensors().at(0).id;
  const UnitLease lease = small.store.acquire(small.store.spec(id).unit, Pass::kForward);
  const auto values = small.store.value(id).span<const float>();
  return {values.begin(), values.end()};
}

// The text's tokens are repeated to fill all virtual tokens.
TEST(PromptTuning, StartsAtTheEmbeddingsOfAText) {
  SmallModel small("tied_gqa");
  io::ConfigErrors errors;
  const auto adapter =
      options_of(
          "{method: prompt_tuning, num_virtual_tokens: 5, prompt_tuning_init: TEXT, "
          "prompt_tuning_init_text: hello}",
          errors)
          ->attach(*small.model);
  InitContext context(7);
  context.encode = [](const std::string& text) { return text == "hello" ? Ids{11, 7, 90} : Ids{}; };
  const std::vector<float> found = initial_prompt(small, *adapter, context);
  const Tensor rows(Shape{5, 32}, DType::kFloat32);
  small.model->tables()[0]->lookup(Ids{11, 7, 90, 11, 7}, rows);
  EXPECT_TRUE(std::ranges::equal(found, rows.span<const float>()));
  context.encode = [](const std::string&) { return Ids{}; };
  EXPECT_THROW(adapter->initialize(context), ConfigError);
}

// A new task starts at what a saved adapter has: one task's tensors, or the mean of all.
TEST(MultitaskPromptTuning, StartsFromASavedAdapter) {
  const std::string file = testing::golden("adapters/multitask") + "/adapter_model.safetensors";
  const auto source = io::open_safetensors(file);
  const auto cols = testing::read_tensor(*source, "prefix_task_cols");
  for (const std::string init : {"EXACT_SOURCE_TASK", "AVERAGE_SOURCE_TASKS"}) {
    SmallModel small("tied_gqa");
    io::ConfigErrors errors;
    const auto adapter =
        options_of(
            "{method: multitask_prompt_tuning, num_virtual_tokens: 3, num_ranks: 2, "
            "prompt_tuning_init: " +
                init + ", prompt_tuning_init_task: 1, prompt_tuning_init_state_dict_path: '" +
                file + "'}",
            errors)
            ->attach(*small.model);
    EXPECT_EQ(initial_prompt(small, *adapter, InitContext(7)),
              testing::read_tensor(*source, "prompt_embeddings"));
    const ParameterId id = adapter->tensors().at(1).id;
    const UnitLease lease = small.store.acquire(small.store.spec(id).unit, Pass::kForward);
    const auto found = small.store.value(id).span<const float>();
    ASSERT_EQ(found.size(), 6u);
    for (size_t i = 0; i < found.size(); ++i) {
      const float own = cols[6 + i], mean = (cols[i] + own) / 2;
      EXPECT_FLOAT_EQ(found[i], init == "EXACT_SOURCE_TASK" ? own : mean);
    }
  }
}

TEST(MultitaskPromptTuning, ASampleTakesItsTasksPrompt) {
  SmallModel small("tied_gqa");
  const auto adapter = load_adapter(testing::golden("adapters/multitask"), *small.model);
  small.store.seal();
  const std::vector<Ids> samples = {{1, 5, 9, 60, 33}};
  EXPECT_THROW(loss_of(small, *adapter, samples), ConfigError);  // of which task?
  adapter->select_task(0);
  const double first = loss_of(small, *adapter, samples);
  adapter->select_task(1);
  EXPECT_NE(loss_of(small, *adapter, samples), first);
}

TEST(PrefixTuning, OptionsThatMeanNothingAreErrors) {
  EXPECT_NE(error_of("{method: prefix_tuning}").find("num_virtual_tokens: expected a number"),
            std::string::npos)
      << error_of("{method: prefix_tuning}");
  EXPECT_NE(error_of("{method: prefix_tuning, num_virtual_tokens: 0}").find("num_virtual_tokens"),
            std::string::npos);
  EXPECT_NE(error_of("{method: prefix_tuning, num_virtual_tokens: 4, encoder_hidden_size: 8}")
                .find("prefix_projection"),
            std::string::npos);
  EXPECT_EQ(error_of("{method: prefix_tuning, num_virtual_tokens: 4, init_weights: zero}"), "");
}

// With zero weights in the last linear all rows are zero, as PEFT's init_weights: zero has it.
TEST(PrefixTuning, StartsAtZeroWhenAsked) {
  SmallModel small("tied_gqa");
  io::ConfigErrors errors;
  const auto adapter = options_of(
                           "{method: prefix_tuning, num_virtual_tokens: 2, prefix_projection: "
                           "true, init_weights: zero}",
                           errors)
                           ->attach(*small.model);
  small.store.seal();
  adapter->initialize(InitContext(7));
  const SavedTensor saved = adapter->saved_tensors().at(0);
  std::vector<std::vector<float>> sources;
  for (const ParameterId id : saved.sources) {
    const UnitLease lease = small.store.acquire(small.store.spec(id).unit, Pass::kForward);
    const auto values = small.store.value(id).span<const float>();
    sources.emplace_back(values.begin(), values.end());
  }
  std::vector<float> rows(static_cast<size_t>(saved.shape.numel()), 1.0f);
  saved.compose(sources, rows);
  EXPECT_EQ(std::ranges::count(rows, 0.0f), std::ssize(rows));
}

}  // namespace
}  // namespace shardtune::adapters
