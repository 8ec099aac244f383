// eval: loss over trained tokens, exact match of greedy answers, choice by likelihood.
#include <chrono>

#include "core/log.h"
#include "launch/command_line.h"
#include "launch/output.h"
#include "launch/session.h"
#include "launch/verbs.h"
#include "trainer/evaluate.h"

namespace shardtune::launch {
namespace {

enum class Metric { kLoss, kExactMatch, kChoice };

struct EvalArguments {
  ModelArguments model;
  data::DatasetFile file;
  data::TrainOn train_on = data::TrainOn::kCompletion;
  Metric metric = Metric::kLoss;
  bool query_is_turn = false;
  int64_t max_samples = 0;  // 0 = all
  int64_t max_length = 0;   // 0 = the model's context
  int64_t max_new_tokens = 256;
  int64_t batch_size = 16;
};

void add_options(CommandLine& line) {
  add_model_options(line);
  line.value("data", "FILE", "records to evaluate on");
  line.value("format", "F",
             "auto (default), alpaca, completion, messages, openai, sharegpt or text");
  line.value("metric", "NAME",
             "loss (default); exact_match, which adds greedy answers; choice: the likeliest "
             "of the choices of {\"query\", \"choices\", \"gold\"}");
  line.value("max-samples", "N", "the first N records only");
  line.value("train-on", "WHICH", "tokens that count: completion (default), assistant or all");
  line.value("chat-template", "NAME", "auto (default), a known name, or none");
  line.value("max-length", "N", "cut samples at N tokens (default: the model's context)");
  line.value("max-new-tokens", "N", "longest answer (default 256)");
  line.value("batch-size", "N", "answers decoded together (default 16)");
  line.flag("json", "print one JSON document");
}

Metric metric_of(const CommandLine& line) {
  const std::string name = line.choice_or("metric", "loss", {"loss", "exact_match", "choice"});
  if (name != "choice")
    return name == "loss" ? Metric::kLoss : Metric::kExactMatch;
  for (const char* option : {"format", "train-on", "max-new-tokens", "batch-size"}) {
    if (line.has(option))
      throw ConfigError(std::string("--") + option +
                        ": expected another metric beside it, found choice, which does not use "
                        "it. Leave it out.");
  }
  return Metric::kChoice;
}

EvalArguments read_arguments(const CommandLine& line) {
  EvalArguments arguments;
  arguments.model = model_arguments(line);
  arguments.model.chat_template = line.text_or("chat-template", "");
  arguments.file.path = line.required("data");
  std::vector<std::string> formats = data::dataset_formats().names();
  formats.push_back("auto");
  arguments.file.format = line.choice_or("format", "auto", formats, {"preference"});
  arguments.metric = metric_of(line);
  arguments.query_is_turn = line.has("chat-template") && arguments.model.chat_template != "none";
  arguments.max_samples = line.integer_or("max-samples", 0, {1, 1'000'000'000});
  arguments.max_length = line.integer_or("max-length", 0, {2, 1 << 24});
  arguments.max_new_tokens = line.integer_or("max-new-tokens", 256, {1, 1 << 20});
  arguments.batch_size = line.integer_or("batch-size", 16, {1, 1024});
  const std::string train_on =
      line.choice_or("train-on", "completion", {"completion", "assistant", "all"});
  if (train_on != "completion")
    arguments.train_on = train_on == "all" ? data::TrainOn::kAll : data::TrainOn::kAssistant;
  return arguments;
}

void keep_first(data::Dataset& dataset, int64_t count) {
  if (count <= 0 || count >= static_cast<int64_t>(dataset.samples.size()))
    return;
  dataset.samples.resize(static_cast<size_t>(count));
  if (static_cast<int64_t>(dataset.records.size()) > count)
    dataset.records.resize(static_cast<size_t>(count));
}

/// A plain text is measured as it stands: the end token that training adds to it is no part of it.
void drop_end_of_texts(data::Dataset& dataset, const data::Tokenizer& tokenizer) {
  for (data::Sample& sample : dataset.samples) {
    const data::Record& record = dataset.records[static_cast<size_t>(sample.record)];
    const bool is_text = record.messages.empty();
    // Special tokens written in the text are not parsed, so such an id was added.
    if (is_text && sample.ids.size() > 2 && sample.ids.back() == tokenizer.eos_id()) {
      sample.ids.pop_back();
      sample.trained.pop_back();
    }
  }
}

/// The template is needed by records with turns; plain text does without one.
std::unique_ptr<data::ChatTemplate> template_for_data(const EvalArguments& arguments,
                                                      const data::Tokenizer& tokenizer) {
  const bool has_turns = arguments.file.format != "text";
  if (!has_turns)
    return nullptr;
  try {
    return chat_template_for(arguments.model, tokenizer);
  } catch (const UnsupportedError&) {
    if (arguments.metric == Metric::kChoice && !arguments.query_is_turn)
      return nullptr;  // read_choices tells where one is needed
    const auto records = data::read_records(arguments.file);
    for (const data::Record& record : records) {
      if (!record.messages.empty())
        throw;
    }
    return nullptr;
  }
}

int64_t max_length_of(const EvalArguments& arguments, const models::ModelConfig& config) {
  int64_t context = config.max_position_embeddings;
  if (context > 0 && !arguments.model.adapter.empty())
    context -= adapters::read_adapter_options(arguments.model.adapter)->front_tokens().positions;
  if (config.max_position_embeddings > 0 && context < 2)
    throw ConfigError("--adapter: its virtual tokens fill the model's context of " +
                      std::to_string(config.max_position_embeddings) + ".");
  if (context > 0 && arguments.max_length > context)
    throw ConfigError("--max-length: expected at most " + std::to_string(context) +
                      " (the model's context), found " + std::to_string(arguments.max_length) +
                      ". Leave it out for the whole context.");
  if (arguments.max_length > 0)
    return arguments.max_length;
  return context > 0 ? context : 1024;
}

io::Json evaluate_choice(const EvalArguments& arguments) {
  auto source = models::open_model_source(arguments.model.model);
  const auto tokenizer = data::load_tokenizer(arguments.model.model);
  const auto chat = template_for_data(arguments, *tokenizer);
  const auto questions =
      data::read_choices({arguments.file.path, arguments.max_samples,
                          max_length_of(arguments, source->config()), arguments.query_is_turn},
                         *tokenizer, chat.get());
  const Session session(arguments.model, std::move(source));
  trainer::EvaluateOptions options;
  options.hooks = session.hooks();
  const auto result = trainer::evaluate_choice(session.model(), questions, options);
  io::Json json = io::Json::object();
  json.set("acc", result.acc);
  json.set("acc_stderr", result.acc_stderr);
  json.set("acc_norm", result.acc_norm);
  json.set("acc_norm_stderr", result.acc_norm_stderr);
  json.set("num_samples", result.num_questions);
  return json;
}

io::Json evaluate(const EvalArguments& arguments) {
  auto source = models::open_model_source(arguments.model.model);
  const auto tokenizer = data::load_tokenizer(arguments.model.model);
  const auto chat = template_for_data(arguments, *tokenizer);
  data::DatasetOptions dataset_options;
  dataset_options.files = {arguments.file};
  dataset_options.train_on = arguments.train_on;
  dataset_options.max_length = max_length_of(arguments, source->config());
  data::Dataset dataset = data::load_dataset(dataset_options, *tokenizer, chat.get());
  keep_first(dataset, arguments.max_samples);
  drop_end_of_texts(dataset, *tokenizer);
  if (dataset.stats.num_truncated > 0)
    log_warning(std::to_string(dataset.stats.num_truncated) + " samples were cut at " +
                std::to_string(dataset_options.max_length) + " tokens.");

  const Session session(arguments.model, std::move(source));
  trainer::EvaluateOptions options;
  options.hooks = session.hooks();
  options.max_new_tokens = arguments.max_new_tokens;
  options.batch_size = arguments.batch_size;
  const auto loss =
      trainer::evaluate_loss(session.model(), dataset, session.communicator(), options);
  io::Json json = io::Json::object();
  json.set("loss", loss.loss);
  json.set("perplexity", loss.perplexity);
  json.set("num_tokens", loss.num_tokens);
  json.set("num_samples", loss.num_samples);
  json.set("num_truncated", dataset.stats.num_truncated);
  if (arguments.metric == Metric::kExactMatch) {
    const auto match =
        trainer::evaluate_exact_match(session.model(), *tokenizer, chat.get(), dataset, options);
    json.set("exact_match", match.exact_match);
    json.set("num_matches", match.num_matches);
  }
  return json;
}

std::string as_text(const io::Json& result) {
  std::string text;
  for (const auto& [key, value] : result.as_object())
    text += key + " " + value.dump() + "\n";
  return text;
}

}  // namespace

int run_eval(Arguments list) {
  CommandLine line("eval --model M [--adapter A] --data FILE [--metric loss|exact_match|choice]",
                   "Mean negative log-likelihood per trained token, perplexity, exact match, and "
                   "choice by likelihood. Plain texts are measured without an end token.");
  add_options(line);
  if (!line.parse(list))
    return 0;
  const EvalArguments arguments = read_arguments(line);
  line.apply_threads();
  const auto start = std::chrono::steady_clock::now();
  io::Json result =
      arguments.metric == Metric::kChoice ? evaluate_choice(arguments) : evaluate(arguments);
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  result.set("seconds", seconds.count());
  if (line.has("json"))
    print_json(result);
  else
    print(as_text(result));
  return 0;
}

}  // namespace shardtune::launch
