#include "inference/conversation.h"

#include <algorithm>

namespace shardtune::inference {

Conversation::Conversation(models::Model& model, const std::vector<models::Hooks*>& hooks,
                           GenerationOptions options)
    : model_(model),
      context_(context_of(model, hooks)),
      options_(std::move(options)),
      next_ids_(model, hooks, options_),
      cache_(next_ids_.layout()) {
  check_options(options_);
}

void Conversation::reset() {
  fed_.clear();
  cache_.truncate(0);
}

Generation Conversation::reply(std::span<const int32_t> ids, const TokenCallback& on_token) {
  check_prompt(model_.config(), context_, ids, "conversation");
  Generation result;
  if (options_.max_new_tokens == 0)
    return result;
  // The last token is always fed: its row gives the first new id.
  const auto known = std::ranges::mismatch(fed_, ids.first(ids.size() - 1)).in1 - fed_.begin();
  num_reused_ = known;
  fed_.resize(static_cast<size_t>(known));
  cache_.truncate(known);
  const uint64_t draws = prompt_key(ids, 0);
  Feed feed{&cache_, ids.subspan(static_cast<size_t>(known)), 0, draws, 0};
  int32_t id = next_ids_.choose_after(feed);
  fed_.insert(fed_.end(), feed.ids.begin(), feed.ids.end());
  while (take_id(id, 0, cache_.num_tokens(), context_, options_, on_token, result)) {
    feed.ids = std::span(&result.ids.back(), 1);
    feed.token_index = std::ssize(result.ids);
    id = next_ids_.choose(std::span(&feed, 1))[0];
    fed_.push_back(feed.ids[0]);
  }
  return result;
}

}  // namespace shardtune::inference
