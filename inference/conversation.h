// One sequence that is continued again and again, its keys and values kept between replies.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "inference/generate.h"
#include "inference/next_ids.h"

namespace shardtune::inference {

class Conversation {
 public:
  /// The model must outlive it.
  Conversation(models::Model& model, const std::vector<models::Hooks*>& hooks,
               GenerationOptions options);

  /// The continuation of `ids`, all of the conversation so far. What it begins with in common with
  /// the ids of the call before is not computed again; a reply may therefore differ from that of
  /// generate() where two ids are nearly as likely.
  /// Errors  as generate()
  Generation reply(std::span<const int32_t> ids, const TokenCallback& on_token = {});

  /// Tokens of the last reply()'s prompt that it did not compute again.
  int64_t num_reused_tokens() const { return num_reused_; }
  void reset();

 private:
  models::Model& model_;
  int64_t context_;
  GenerationOptions options_;
  NextIds next_ids_;
  SequenceKv cache_;
  std::vector<int32_t> fed_;  // whose keys and values the cache holds
  int64_t num_reused_ = 0;
};

}  // namespace shardtune::inference
