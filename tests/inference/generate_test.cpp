// Greedy decoding with the cache against whole forward passes, on the golden llama models in fp32.
#include "inference/generate.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "adapters/adapter.h"
#include "core/parallel_for.h"
#include "inference/kv_cache.h"
#include "io/yaml_node.h"
#include "models/head.h"
#include "tests/support/small_model.h"

namespace shardtune::inference {
namespace {

using testing::golden_llama;
using testing::make_batch;
using testing::SmallModel;
using Ids = std::vector<int32_t>;
using Hooks = std::vector<models::Hooks*>;

std::vector<Ids> golden_prompts(const std::string& name) {
  const auto file = io::open_safetensors(golden_llama(name) + "/expected.safetensors");
  Ids first = testing::read_int32(*file, "input_ids_0");
  const Ids second = testing::read_int32(*file, "input_ids_1");
  return {first, second, Ids(first.begin(), first.begin() + 1),
          Ids(first.begin(), first.begin() + 7), Ids(second.rbegin(), second.rend())};
}

/// The definition: a whole forward pass over all tokens for every new one.
Ids continue_by_whole_passes(SmallModel& small, const Hooks& hooks, Ids ids, int64_t count) {
  Ids added;
  for (int64_t i = 0; i < count; ++i) {
    const TokenBatch batch = make_batch({ids});
    models::ForwardOptions options = small.forward_options(batch);
    options.hooks = hooks;
    models::Tape tape(small.store, autograd::Recording::kOff);
    const models::Variable hidden = small.model->forward(tape, options);
    const auto length = static_cast<int64_t>(ids.size());
    const Tensor logits =
        models::head_logits(small.model->head(), hidden.value().rows(length - 1, length));
    const auto values = logits.span<const float>();
    const auto best =
        static_cast<int32_t>(std::max_element(values.begin(), values.end()) - values.begin());
    added.push_back(best);
    ids.push_back(best);
  }
  return added;
}

std::vector<Ids> ids_of(const std::vector<Generation>& generations) {
  std::vector<Ids> all;
  for (const Generation& generation : generations)
    all.push_back(generation.ids);
  return all;
}

TEST(Generate, EqualsWholeForwardPasses) {
  for (const char* name : {"tied_gqa", "untied_bias", "head_dim", "old_style", "sharded_bf16"}) {
    SmallModel small(name);
    const auto prompts = golden_prompts(name);
    GenerationOptions options;
    options.max_new_tokens = 12;
    const auto found = ids_of(generate(*small.model, {}, prompts, options));
    for (size_t i = 0; i < prompts.size(); ++i)
      EXPECT_EQ(found[i], continue_by_whole_passes(small, {}, prompts[i], 12)) << name << " " << i;
  }
}

TEST(Generate, FollowsTheAdaptersHooks) {
  SmallModel small("tied_gqa");
  const auto adapter = adapters::load_adapter(golden_llama("lora_qv"), *small.model);
  const auto prompts = golden_prompts("tied_gqa");
  GenerationOptions options;
  options.max_new_tokens = 8;
  const Hooks hooks = {adapter.get()};
  const auto with = ids_of(generate(*small.model, hooks, prompts, options));
  for (size_t i = 0; i < prompts.size(); ++i)
    EXPECT_EQ(with[i], continue_by_whole_passes(small, hooks, prompts[i], 8)) << i;
  EXPECT_NE(with, ids_of(generate(*small.model, {}, prompts, options)));
}

// Prefixes and virtual tokens stand in front of the cached tokens, in chunked prompts and under a
// window too.
void expect_whole_passes_with(const std::string& section) {
  for (const char* name : {"tied_gqa", "families/mistral_window"}) {
    SmallModel small(name);
    io::ConfigErrors errors;
    const auto adapter =
        adapters::adapter_options_from_yaml(io::YamlNode::parse(section, "", errors))
            ->attach(*small.model);
    small.store.seal();
    adapter->initialize(adapters::InitContext(3));
    const auto prompts = golden_prompts("tied_gqa");
    GenerationOptions options;
    options.max_new_tokens = 12;
    const Hooks hooks = {adapter.get()};
    const auto found = ids_of(generate(*small.model, hooks, prompts, options));
    for (size_t i = 0; i < prompts.size(); ++i)
      EXPECT_EQ(found[i], continue_by_whole_passes(small, hooks, prompts[i], 12)) << name << i;
    EXPECT_NE(found, ids_of(generate(*small.model, {}, prompts, options)));
    options.max_prefill_tokens = 4;
    EXPECT_EQ(ids_of(generate(*small.model, hooks, prompts, options)), found) << name;
  }
}

TEST(Generate, KeepsAnAdaptersPrefixInTheCache) {
  expect_whole_passes_with("{method: prefix_tuning, num_virtual_tokens: 5}");
}

TEST(Generate, KeepsVirtualTokensInTheCache) {
  expect_whole_passes_with("{method: prompt_tuning, num_virtual_tokens: 5}");
}

/// 77 different prompts: more than a decode step takes together.
std::vector<Ids> many_prompts() {
  std::vector<Ids> prompts;
  for (int32_t i = 0; i < 77; ++i) {
    Ids ids = {i};
    for (int32_t k = 1; k <= i % 13; ++k)
      ids.push_back((i * 31 + k * 17) % 96);
    prompts.push_back(ids);
  }
  return prompts;
}

/// Every way to cut the work: alone, few places so that prompts wait, another order, more threads.
void expect_the_same_in_any_company(SmallModel& small, const Hooks& hooks,
                                    GenerationOptions options) {
  std::vector<Ids> prompts = many_prompts();
  options.max_new_tokens = 6;
  options.stop_ids = {5, 17, 40};  // sequences leave at different times
  const int threads = num_threads();
  const auto together = ids_of(generate(*small.model, hooks, prompts, options));
  options.max_concurrent = 3;
  const auto few = std::span(prompts).first(8);
  set_num_threads(3);
  EXPECT_EQ(ids_of(generate(*small.model, hooks, few, options)),
            std::vector<Ids>(together.begin(), together.begin() + 8));
  set_num_threads(threads);
  for (size_t i = 0; i < prompts.size(); i += 9) {
    const auto alone = generate(*small.model, hooks, std::span(prompts).subspan(i, 1), options);
    EXPECT_EQ(alone[0].ids, together[i]) << i;
  }
  options.max_concurrent = 100;
  std::reverse(prompts.begin(), prompts.end());
  auto reversed = ids_of(generate(*small.model, hooks, prompts, options));
  std::reverse(reversed.begin(), reversed.end());
  EXPECT_EQ(reversed, together);
}

TEST(Generate, DoesNotDependOnCompany) {
  for (const DType compute : {DType::kFloat32, DType::kBFloat16}) {
    models::LoadOptions load;
    load.compute_dtype = compute;
    SmallModel small("tied_gqa", load);
    const auto adapter = adapters::load_adapter(golden_llama("lora_qv"), *small.model);
    GenerationOptions options;
    expect_the_same_in_any_company(small, {}, options);
    expect_the_same_in_any_company(small, {adapter.get()}, options);
    options.sampling.temperature = 1.3;
    options.sampling.top_p = 0.95;
    options.sampling.seed = 3;
    expect_the_same_in_any_company(small, {adapter.get()}, options);
  }
}

TEST(Generate, DrawsBySeedAndAnewForEqualPrompts) {
  SmallModel small("tied_gqa");
  const std::vector<Ids> prompts(4, Ids{7, 8, 9});
  GenerationOptions options;
  options.max_new_tokens = 12;
  options.sampling.temperature = 1.0;
  const auto first = ids_of(generate(*small.model, {}, prompts, options));
  EXPECT_EQ(ids_of(generate(*small.model, {}, prompts, options)), first);
  EXPECT_NE(first[0], first[1]);
  options.sampling.seed = 1;
  EXPECT_NE(ids_of(generate(*small.model, {}, prompts, options)), first);
  options.sampling.top_k = 1;  // of one candidate nothing is left to chance
  const auto only = ids_of(generate(*small.model, {}, prompts, options));
  options.sampling = {};
  EXPECT_EQ(ids_of(generate(*small.model, {}, prompts, options)), only);
}

TEST(Generate, DrawsNoIdThatTheTokenizerDoesNotHave) {
  SmallModel small("tied_gqa");
  GenerationOptions options;
  options.max_new_tokens = 40;
  options.num_ids = 11;
  options.sampling.temperature = 100.0;
  const std::vector<Ids> prompts = {{1, 2, 3}};
  const auto found = generate(*small.model, {}, prompts, options);
  for (const int32_t id : found[0].ids)
    EXPECT_LT(id, 11);
}

TEST(Generate, StopsAtStopIdLimitAndContext) {
  SmallModel small("tied_gqa");
  const auto prompts = golden_prompts("tied_gqa");
  GenerationOptions options;
  options.max_new_tokens = 6;
  const Ids free = generate(*small.model, {}, prompts, options)[0].ids;
  ASSERT_EQ(free.size(), 6u);
  EXPECT_EQ(generate(*small.model, {}, prompts, options)[0].reason, StopReason::kMaxNewTokens);

  options.stop_ids = {free[3]};
  const auto first = std::find(free.begin(), free.end(), free[3]);
  const auto stopped = generate(*small.model, {}, prompts, options)[0];
  EXPECT_EQ(stopped.ids, Ids(free.begin(), first));
  EXPECT_EQ(stopped.reason, StopReason::kStopId);

  options.stop_ids.clear();
  options.max_new_tokens = 1000;  // the context has 64 places: the last new id needs none
  const auto full = generate(*small.model, {}, prompts, options)[0];
  EXPECT_EQ(full.reason, StopReason::kContextFull);
  EXPECT_EQ(prompts[0].size() + full.ids.size(), 65u);
}

TEST(Generate, CallsBackInOrderOfEachPrompt) {
  SmallModel small("head_dim");
  const auto prompts = golden_prompts("head_dim");
  GenerationOptions options;
  options.max_new_tokens = 5;
  options.max_concurrent = 2;
  std::vector<Ids> streamed(prompts.size());
  const auto found = generate(*small.model, {}, prompts, options, [&](int64_t prompt, int32_t id) {
    streamed[static_cast<size_t>(prompt)].push_back(id);
  });
  EXPECT_EQ(streamed, ids_of(found));
}

void expect_refused(SmallModel& small, const Ids& prompt, const std::string& part) {
  const std::vector<Ids> prompts = {{1, 2}, prompt};
  try {
    generate(*small.model, {}, prompts, {});
    FAIL() << "expected an error about: " << part;
  } catch (const DataError& error) {
    EXPECT_NE(std::string(error.what()).find("prompt 2"), std::string::npos) << error.what();
    EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();
  }
}

TEST(Generate, RefusesPromptsThatDoNotFit) {
  SmallModel small("tied_gqa");
  expect_refused(small, {}, "found none");
  expect_refused(small, Ids(65, 1), "at most 64 tokens");
  expect_refused(small, {3, 96}, "outside the model's vocabulary of 96");
  expect_refused(small, {-1}, "outside the model's vocabulary");
  EXPECT_TRUE(generate(*small.model, {}, {}, {}).empty());
}

TEST(SequenceKv, GrowsInBlocksAndKeepsItsRows) {
  KvLayout layout;
  layout.num_layers = 2;
  layout.attention.assign(2, kernels::AttentionShape{2, 1, 4, 1.0f, 0});
  SequenceKv cache(layout);
  for (int step = 0; step < 150; ++step) {
    cache.reserve(cache.length() + 1);
    for (int layer = 0; layer < 2; ++layer) {
      const auto mark = static_cast<float>(step * 10 + layer);
      const std::vector<float> k(4, mark);
      const std::vector<float> v(4, -mark);
      cache.append(layer, Tensor::from(k, {1, 4}), Tensor::from(v, {1, 4}));
    }
    cache.advance(1);
  }
  EXPECT_EQ(cache.length(), 150);
  EXPECT_EQ(cache.capacity() % SequenceKv::kBlockTokens, 0);
  for (int step = 0; step < 150; ++step) {
    EXPECT_EQ(cache.keys(1, 150).data<float>()[step * 4 + 3], static_cast<float>(step * 10 + 1));
    EXPECT_EQ(cache.values(0, 150).data<float>()[step * 4], static_cast<float>(-step * 10));
  }
}

}  // namespace
}  // namespace shardtune::inference
