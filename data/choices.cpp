#include "data/choices.h"

#include <algorithm>

#include "core/error.h"
#include "data/formats/formats.h"
#include "io/file.h"

namespace shardtune::data {
namespace {

constexpr const char* kAdvice =
    "Write lines like {\"query\": \"2 + 2 =\", \"choices\": [\"4\", \"5\"], \"gold\": 0}.";

std::string described(const io::Json* value) {
  return value == nullptr ? "nothing" : std::string(value->type_name());
}

std::vector<std::string> choices_of(const Row& row) {
  const io::Json* list = row.find("choices");
  if (list == nullptr || !list->is_array() || list->as_array().size() < 2)
    row.fail("choices", "a list of two texts or more",
             list != nullptr && list->is_array() ? "a shorter one" : described(list), kAdvice);
  std::vector<std::string> choices;
  for (const io::Json& choice : list->as_array()) {
    if (!choice.is_string() || choice.as_string().empty())
      row.fail("choices", "texts that are not empty",
               choice.is_string() ? "an empty one" : described(&choice), kAdvice);
    choices.push_back(choice.as_string());
  }
  return choices;
}

int64_t gold_of(const Row& row, const std::vector<std::string>& choices) {
  const io::Json* gold = row.find("gold");
  const std::string expected =
      "an index from 0 to " + std::to_string(choices.size() - 1) + ", or the text of a choice";
  if (gold == nullptr)
    row.fail("gold", expected, "nothing", kAdvice);
  if (gold->is_integer()) {
    if (gold->as_integer() < 0 || gold->as_integer() >= std::ssize(choices))
      row.fail("gold", expected, std::to_string(gold->as_integer()), kAdvice);
    return gold->as_integer();
  }
  const auto found =
      gold->is_string() ? std::ranges::find(choices, gold->as_string()) : choices.end();
  if (found == choices.end())
    row.fail("gold", expected, gold->dump().substr(0, 80), kAdvice);
  return found - choices.begin();
}

Sample sample_of(std::vector<int32_t> ids, size_t first_of_choice) {
  Sample sample;
  sample.trained.assign(ids.size(), 0);
  std::fill(sample.trained.begin() + static_cast<std::ptrdiff_t>(first_of_choice),
            sample.trained.end(), uint8_t{1});
  sample.ids = std::move(ids);
  return sample;
}

/// The query as the user's turn, or the turns that are there.
std::vector<Sample> chat_samples(const Row& row, const std::vector<std::string>& choices,
                                 const Tokenizer& tokenizer, const ChatTemplate& chat) {
  const std::vector<Message> turns = row.find("messages") != nullptr
                                         ? row.messages("messages")
                                         : std::vector<Message>{{"user", row.text("query")}};
  const std::vector<int32_t> prompt =
      encode_chat(turns, tokenizer, chat, GenerationPrompt::kAppend);
  std::vector<Sample> samples;
  for (const std::string& choice : choices) {
    std::vector<int32_t> ids = prompt;
    const auto added = tokenizer.encode(choice, {SpecialTokens::kPlain, AddedEnds::kNone});
    ids.insert(ids.end(), added.begin(), added.end());
    samples.push_back(sample_of(std::move(ids), prompt.size()));
  }
  return samples;
}

std::vector<Sample> text_samples(const Row& row, const std::vector<std::string>& choices,
                                 const Tokenizer& tokenizer) {
  const std::string& query = row.text("query");
  const std::string context = query.substr(0, query.find_last_not_of(" \t\r\n\v\f") + 1);
  const auto encode = [&](const std::string& text) {
    return tokenizer.encode(text, {SpecialTokens::kPlain, AddedEnds::kNone});
  };
  // What the tokenizer puts before a text (its BOS); where it puts nothing an empty query still
  // needs a token that the first of a choice follows.
  std::vector<int32_t> before = tokenizer.encode("", {});
  if (tokenizer.eos_id() && !before.empty() && before.back() == *tokenizer.eos_id() &&
      tokenizer.bos_id() != tokenizer.eos_id())
    before.pop_back();
  if (before.empty() && context.empty() && (tokenizer.bos_id() || tokenizer.eos_id()))
    before.push_back(tokenizer.bos_id() ? *tokenizer.bos_id() : *tokenizer.eos_id());
  const size_t first = before.size() + encode(context).size();
  std::vector<Sample> samples;
  for (const std::string& choice : choices) {
    std::vector<int32_t> ids = before;
    const auto whole = encode(query + " " + choice);
    ids.insert(ids.end(), whole.begin(), whole.end());
    const size_t begin = std::min(first, ids.size());
    samples.push_back(sample_of(std::move(ids), begin));
  }
  return samples;
}

void check_samples(const Row& row, const std::vector<Sample>& samples, int64_t max_length) {
  for (const Sample& sample : samples) {
    if (std::ssize(sample.ids) > max_length)
      row.fail("query", "at most " + std::to_string(max_length) + " tokens with a choice",
               std::to_string(sample.ids.size()), "Shorten it, or raise --max-length.");
    if (sample.trained.empty() || sample.trained.back() == 0 || sample.trained.front() != 0)
      row.fail("choices", "a choice of at least one token, and one before it", "none", kAdvice);
  }
}

}  // namespace

std::vector<ChoiceQuestion> read_choices(const ChoiceOptions& options, const Tokenizer& tokenizer,
                                         const ChatTemplate* chat) {
  const DatasetFile file{options.path, "choices", {}};
  std::vector<ChoiceQuestion> questions;
  for_each_row(
      file, io::read_text_file(options.path, kMaxDataFileBytes), options.max_questions,
      [&](const Row& row) {
        ChoiceQuestion question;
        const Record record = row.record();
        question.file = record.file;
        question.line = record.line;
        question.choices = choices_of(row);
        question.gold = gold_of(row, question.choices);
        const bool has_turns = options.query_is_turn || row.find("messages") != nullptr;
        if (has_turns && chat == nullptr)
          row.fail("messages", "a chat template for turns", "none", "Name one by --chat-template.");
        question.samples = has_turns ? chat_samples(row, question.choices, tokenizer, *chat)
                                     : text_samples(row, question.choices, tokenizer);
        check_samples(row, question.samples, options.max_length);
        questions.push_back(std::move(question));
      });
  if (questions.empty())
    throw DataError(options.path + ": expected questions, found none. " + kAdvice);
  return questions;
}

}  // namespace shardtune::data
