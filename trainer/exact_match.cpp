#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/error.h"
#include "inference/generate.h"
#include "trainer/evaluate.h"

namespace shardtune::trainer {
namespace {

std::string_view stripped(std::string_view text) {
  constexpr std::string_view kSpace = " \t\r\n\v\f";
  const size_t begin = text.find_first_not_of(kSpace);
  if (begin == std::string_view::npos)
    return {};
  return text.substr(begin, text.find_last_not_of(kSpace) - begin + 1);
}

/// Whether an answer that begins with `text` can no longer be `expected` (both may carry white
/// space around): base models ramble on, and most answers are decided at their first token.
bool is_decided_wrong(std::string_view text, std::string_view expected) {
  const std::string_view have = stripped(text);
  return !expected.starts_with(have);
}

}  // namespace

ExactMatchResult evaluate_exact_match(models::Model& model, const data::Tokenizer& tokenizer,
                                      const data::ChatTemplate* chat, const data::Dataset& dataset,
                                      const EvaluateOptions& options) {
  std::vector<std::vector<int32_t>> prompts;
  std::vector<std::string> expected;
  for (const data::Sample& sample : dataset.samples) {
    const data::Record& record = dataset.records[sample.record];
    if (record.messages.empty() && !record.raw) {
      throw DataError(record.file + ":" + std::to_string(record.line) +
                      ": expected a prompt and an answer (exact_match), found plain text. Use "
                      "--metric loss for it.");
    }
    data::PromptAndAnswer pair = data::prompt_of_record(record, tokenizer, chat);
    prompts.push_back(std::move(pair.prompt_ids));
    expected.push_back(std::move(pair.answer));
  }
  inference::GenerationOptions generation;
  generation.max_new_tokens = options.max_new_tokens;
  generation.stop_ids = inference::stop_ids(tokenizer, model.config());
  generation.num_ids = tokenizer.vocab_size();
  generation.max_concurrent = options.batch_size;
  // On bytes: a token may end inside a character.
  std::vector<std::string> texts(prompts.size());
  generation.finished = [&](int64_t prompt, std::span<const int32_t> ids) {
    std::string& text = texts[static_cast<size_t>(prompt)];
    if (!tokenizer.is_special(ids.back()))
      text += tokenizer.token_bytes(ids.back());
    return is_decided_wrong(text, stripped(expected[static_cast<size_t>(prompt)]));
  };
  const auto generations = inference::generate(model, options.hooks, prompts, generation);

  ExactMatchResult result;
  result.num_samples = static_cast<int64_t>(expected.size());
  for (size_t i = 0; i < expected.size(); ++i) {
    result.answers.push_back(tokenizer.decode(generations[i].ids, {.skip_special = true}));
    if (stripped(result.answers.back()) == stripped(expected[i]))
      ++result.num_matches;
  }
  if (result.num_samples > 0)
    result.exact_match =
        static_cast<double>(result.num_matches) / static_cast<double>(result.num_samples);
  if (options.progress)
    options.progress(result.num_samples, result.num_samples);
  return result;
}

}  // namespace shardtune::trainer
