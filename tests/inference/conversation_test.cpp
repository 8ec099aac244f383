// Replies with kept keys and values against those of whole passes, on golden llama models in fp32.
#include "inference/conversation.h"

#include <gtest/gtest.h>

#include "adapters/adapter.h"
#include "core/error.h"
#include "io/yaml_node.h"
#include "tests/support/small_model.h"

namespace shardtune::inference {
namespace {

using testing::SmallModel;
using Ids = std::vector<int32_t>;

Ids joined(Ids a, const Ids& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

/// Three turns, the second and third beginning with all before them.
void expect_replies_of_whole_passes(SmallModel& small, const std::vector<models::Hooks*>& hooks,
                                    const GenerationOptions& options) {
  Conversation conversation(*small.model, hooks, options);
  Ids ids = {3, 1, 4, 1, 5};
  for (int turn = 0; turn < 3; ++turn) {
    const std::vector<Ids> whole = {ids};
    const Generation expected = generate(*small.model, hooks, whole, options)[0];
    const Generation found = conversation.reply(ids);
    EXPECT_EQ(found.ids, expected.ids) << "turn " << turn;
    EXPECT_EQ(found.reason, expected.reason);
    // All but the three new tokens and the reply's last, which was never fed.
    EXPECT_EQ(conversation.num_reused_tokens(), turn == 0 ? 0 : std::ssize(ids) - 4);
    ids = joined(joined(ids, found.ids), {9, 2, turn + 6});
  }
}

TEST(Conversation, RepliesAreThoseOfWholePasses) {
  GenerationOptions options;
  options.max_new_tokens = 7;
  for (const char* name : {"tied_gqa", "untied_bias"}) {
    SmallModel small(name);
    expect_replies_of_whole_passes(small, {}, options);
  }
  SmallModel small("tied_gqa");
  const auto adapter = adapters::load_adapter(testing::golden_llama("lora_qv"), *small.model);
  expect_replies_of_whole_passes(small, {adapter.get()}, options);
  options.max_prefill_tokens = 2;
  options.sampling.temperature = 1.0;
  options.sampling.seed = 5;
  expect_replies_of_whole_passes(small, {adapter.get()}, options);
}

// Rows that adapters put before the tokens stay in the cache between turns, and come again when
// nothing of a turn is kept.
TEST(Conversation, KeepsWhatAdaptersPutBeforeTheTokens) {
  for (const char* section : {"{method: prefix_tuning, num_virtual_tokens: 5}",
                              "{method: prompt_tuning, num_virtual_tokens: 5}"}) {
    SmallModel small("tied_gqa");
    io::ConfigErrors errors;
    const auto adapter =
        adapters::adapter_options_from_yaml(io::YamlNode::parse(section, "", errors))
            ->attach(*small.model);
    small.store.seal();
    adapter->initialize(adapters::InitContext(3));
    GenerationOptions options;
    options.max_new_tokens = 7;
    expect_replies_of_whole_passes(small, {adapter.get()}, options);
    Conversation conversation(*small.model, {adapter.get()}, options);
    for (const Ids& ids : {Ids{1, 2, 3, 4}, Ids{9, 8, 7}, Ids{9, 8, 6, 5}, Ids{9}}) {
      const std::vector<Ids> whole = {ids};
      EXPECT_EQ(conversation.reply(ids).ids,
                generate(*small.model, {adapter.get()}, whole, options)[0].ids)
          << section << ids.size();
    }
    options.max_new_tokens = 100;
    Conversation full(*small.model, {adapter.get()}, options);
    const Generation found = full.reply(Ids(55, 1));  // 5 + 55 of 64
    EXPECT_EQ(found.reason, StopReason::kContextFull);
    EXPECT_EQ(found.ids.size(), 5u);
    EXPECT_THROW(full.reply(Ids(60, 1)), DataError);
  }
}

TEST(Conversation, ForgetsWhatTheNewTurnsDoNotBeginWith) {
  SmallModel small("tied_gqa");
  GenerationOptions options;
  options.max_new_tokens = 5;
  Conversation conversation(*small.model, {}, options);
  conversation.reply(Ids{1, 2, 3, 4, 5, 6});
  const std::vector<Ids> other = {{1, 2, 3, 40, 50}};
  const Ids expected = generate(*small.model, {}, other, options)[0].ids;
  EXPECT_EQ(conversation.reply(other[0]).ids, expected);
  EXPECT_EQ(conversation.num_reused_tokens(), 3);
  EXPECT_EQ(conversation.reply(other[0]).ids, expected) << "the same again";
  EXPECT_EQ(conversation.num_reused_tokens(), 4);
  conversation.reset();
  EXPECT_EQ(conversation.reply(other[0]).ids, expected);
  EXPECT_EQ(conversation.num_reused_tokens(), 0);
}

TEST(Conversation, StopsAtTheContextAndRefusesWhatIsLonger) {
  SmallModel small("tied_gqa");
  GenerationOptions options;
  options.max_new_tokens = 100;
  Conversation conversation(*small.model, {}, options);
  const Generation found = conversation.reply(Ids(60, 1));
  EXPECT_EQ(found.reason, StopReason::kContextFull);
  EXPECT_EQ(found.ids.size(), 5u);
  EXPECT_THROW(conversation.reply(Ids(65, 1)), DataError);
  EXPECT_THROW(conversation.reply(Ids{}), DataError);
}

}  // namespace
}  // namespace shardtune::inference
