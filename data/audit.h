// What a run would train on, token by token and in sums: the roles of tokens, and whether answers
// keep the token that ends them. A model that is never shown an end token does not stop.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "data/chat_template.h"
#include "data/dataset.h"
#include "data/tokenizer.h"

namespace shardtune::data {

/// Whose text a token is. kTemplate: what the template or tokenizer puts around and between; the
/// end token of an answer is the assistant's. kText: records that are plain text.
enum class TokenRole { kTemplate, kSystem, kUser, kAssistant, kTool, kText };
inline constexpr std::size_t kNumTokenRoles = 6;
std::string_view name_of(TokenRole role);

/// The roles of a sample's tokens. A token that reaches over an edge has the role of the text in
/// which it begins. For display: nothing is trained by it.
std::vector<TokenRole> token_roles(const Record& record, const Sample& sample,
                                   const Tokenizer& tokenizer, const ChatTemplate* chat);

struct RoleCount {
  int64_t num_tokens = 0;
  int64_t num_trained = 0;
};

struct DatasetAudit {
  std::array<RoleCount, kNumTokenRoles> roles;
  /// Runs of trained tokens (answers, or whole samples where everything is trained), and those that
  /// hold a token that ends generation. Documents that are cut into samples do not count.
  int64_t num_runs = 0;
  int64_t num_ended_runs = 0;
};

DatasetAudit audit_dataset(const Dataset& dataset, const Tokenizer& tokenizer,
                           const ChatTemplate* chat);

/// DataError when the data has answers or texts with an end, and none of their end tokens is
/// trained. `where` names the data in the message.
void require_trained_end(const Dataset& dataset, const Tokenizer& tokenizer,
                         const std::string& where, int64_t max_length);

}  // namespace shardtune::data
