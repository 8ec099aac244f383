// Questions with answers to choose from, for evaluation by likelihood.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "data/dataset.h"

namespace shardtune::data {

struct ChoiceQuestion {
  std::string file;
  int64_t line = 0;
  std::vector<std::string> choices;  // two or more
  int64_t gold = 0;                  // index of the right one
  std::vector<Sample> samples;       // one per choice: trained are the choice's own tokens
};

struct ChoiceOptions {
  std::string path;
  int64_t max_questions = 0;  // 0: all
  int64_t max_length = 1024;
  bool query_is_turn = false;  // a query is a user's turn of the template, not a plain text
};

/// JSON lines or an array of {"query": TEXT or "messages": [...], "choices": [TEXT, ...], "gold":
/// index from 0, or the text of a choice}: the keys that lm-evaluation-harness gives its documents.
/// Query, one space and choice are encoded together; the choice's tokens are those past the query's
/// alone, spaces at the query's end counted to the choice. Of turns (messages, or a query with
/// query_is_turn) the choice is the assistant's answer, encoded on its own. No end token is added.
/// Errors  DataError naming file, line and key: also a question longer than max_length, a choice
///         without a token, messages without a template
/// Source  lm-evaluation-harness 0.4: api/task.py (multiple_choice), api/model.py (_encode_pair)
std::vector<ChoiceQuestion> read_choices(const ChoiceOptions& options, const Tokenizer& tokenizer,
                                         const ChatTemplate* chat);

}  // namespace shardtune::data
