#include "data/audit.h"

#include <algorithm>

#include "core/error.h"

namespace shardtune::data {
namespace {

/// How far the search for a token's bytes goes where they do not follow at once: bytes without a
/// token vanish, and normalisers change a few.
constexpr std::size_t kSearchBytes = 16;

/// A text with a role for each of its bytes, read token by token.
class RoleText {
 public:
  void add(std::string_view text, TokenRole role) {
    text_ += text;
    ends_.emplace_back(text_.size(), role);
  }

  TokenRole take(std::string_view bytes) {
    std::size_t found = text_.find(bytes, at_);
    if (found == std::string::npos && bytes.size() > 1 && bytes.front() == ' ') {
      bytes.remove_prefix(1);  // the space that SentencePiece puts before a text
      found = text_.find(bytes, at_);
    }
    if (found != std::string::npos && found <= at_ + kSearchBytes)
      at_ = found;
    const TokenRole role = role_at(at_);
    at_ = std::min(at_ + bytes.size(), text_.size());
    return role;
  }

 private:
  TokenRole role_at(std::size_t at) {
    while (next_ + 1 < ends_.size() && ends_[next_].first <= at)
      ++next_;
    return ends_.empty() ? TokenRole::kTemplate : ends_[next_].second;
  }

  std::string text_;
  std::vector<std::pair<std::size_t, TokenRole>> ends_;
  std::size_t at_ = 0;
  std::size_t next_ = 0;  // positions only grow
};

TokenRole role_of(const Message& message) {
  if (message.role == "system")
    return TokenRole::kSystem;
  if (message.role == "assistant")
    return TokenRole::kAssistant;
  return message.role == "tool" ? TokenRole::kTool : TokenRole::kUser;
}

RoleText role_text(const Record& record, const ChatTemplate* chat) {
  RoleText text;
  if (chat == nullptr) {
    for (const Message& message : record.messages)
      text.add(message.content, role_of(message));
    return text;
  }
  for (const RenderedPiece& piece : chat->render(record.messages, GenerationPrompt::kNone)) {
    const TokenRole content =
        piece.message_index < 0
            ? TokenRole::kTemplate
            : role_of(record.messages[static_cast<size_t>(piece.message_index)]);
    text.add(piece.text, piece.is_template && !piece.is_assistant ? TokenRole::kTemplate : content);
  }
  return text;
}

struct Runs {
  int64_t num = 0;
  int64_t num_ended = 0;
};

/// Runs of trained tokens of a sample, and those that hold one of `stops` (sorted).
Runs runs_of(const Sample& sample, const std::vector<int32_t>& stops) {
  Runs runs;
  bool ended = false;
  for (std::size_t i = 0; i < sample.ids.size(); ++i) {
    if (!sample.trained[i])
      continue;
    if (i == 0 || !sample.trained[i - 1]) {
      ++runs.num;
      ended = false;
    }
    if (!ended && std::binary_search(stops.begin(), stops.end(), sample.ids[i])) {
      ended = true;
      ++runs.num_ended;
    }
  }
  return runs;
}

}  // namespace

std::string_view name_of(TokenRole role) {
  constexpr std::string_view kNames[kNumTokenRoles] = {"template",  "system", "user",
                                                       "assistant", "tool",   "text"};
  return kNames[static_cast<std::size_t>(role)];
}

std::vector<TokenRole> token_roles(const Record& record, const Sample& sample,
                                   const Tokenizer& tokenizer, const ChatTemplate* chat) {
  if (record.messages.empty())
    return std::vector<TokenRole>(sample.ids.size(), TokenRole::kText);
  RoleText text = role_text(record, chat);
  std::vector<TokenRole> roles;
  for (std::size_t i = 0; i < sample.ids.size(); ++i) {
    // Without a template the tokenizer's own first and last token stand in no text.
    if (chat == nullptr && tokenizer.is_special(sample.ids[i]))
      roles.push_back(sample.trained[i] ? TokenRole::kAssistant : TokenRole::kTemplate);
    else
      roles.push_back(text.take(tokenizer.token_bytes(sample.ids[i])));
  }
  return roles;
}

DatasetAudit audit_dataset(const Dataset& dataset, const Tokenizer& tokenizer,
                           const ChatTemplate* chat) {
  DatasetAudit audit;
  const std::vector<int32_t> stops = tokenizer.stop_ids();
  for (const Sample& sample : dataset.samples) {
    const Record& record = dataset.records[static_cast<std::size_t>(sample.record)];
    const std::vector<TokenRole> roles = token_roles(record, sample, tokenizer, chat);
    for (std::size_t i = 0; i < roles.size(); ++i) {
      RoleCount& count = audit.roles[static_cast<std::size_t>(roles[i])];
      ++count.num_tokens;
      count.num_trained += sample.trained[i];
    }
    if (record.cut_into_samples)
      continue;
    const Runs runs = runs_of(sample, stops);
    audit.num_runs += runs.num;
    audit.num_ended_runs += runs.num_ended;
  }
  return audit;
}

void require_trained_end(const Dataset& dataset, const Tokenizer& tokenizer,
                         const std::string& where, int64_t max_length) {
  const std::vector<int32_t> stops = tokenizer.stop_ids();
  int64_t num_with_end = 0;
  int64_t num_samples = 0;
  for (const Sample& sample : dataset.samples) {
    if (dataset.records[static_cast<std::size_t>(sample.record)].cut_into_samples)
      continue;
    ++num_samples;
    num_with_end += runs_of(sample, stops).num_ended > 0 ? 1 : 0;
    if (num_with_end > 0)
      return;
  }
  if (num_samples == 0 || stops.empty())
    return;  // a text that goes on, or a model without an end token (answers then have none either)
  throw DataError(where + ": expected samples with a trained end token (" +
                  tokenizer.decode({stops.front()}, {}) + "), found none in " +
                  std::to_string(num_samples) + ": all were cut at data.max_length " +
                  std::to_string(max_length) +
                  ", and a model trained on them never stops. Raise data.max_length or shorten the "
                  "records; 'shardtune audit' shows the samples.");
}

}  // namespace shardtune::data
