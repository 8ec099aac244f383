// generate: greedy continuation of one prompt, streamed, or of a file of prompts.
#include <chrono>

#include "inference/generate.h"
#include "launch/command_line.h"
#include "launch/output.h"
#include "launch/prompts.h"
#include "launch/session.h"
#include "launch/verbs.h"

namespace shardtune::launch {
namespace {

enum class Style { kStreamed, kLines, kJson };

struct GenerateArguments {
  ModelArguments model;
  std::string prompt_file;  // "" = prompt
  std::string prompt;
  bool raw = false;
  int64_t max_new_tokens = 256;
  int64_t batch_size = 32;
  Style style = Style::kStreamed;
};

void add_options(CommandLine& line) {
  add_model_options(line);
  line.value("prompt", "TEXT", "one prompt");
  line.value("prompts", "FILE.jsonl", "lines with \"prompt\" or \"messages\"");
  line.flag("raw", "continue the text itself, without a chat template");
  line.value("chat-template", "NAME", "auto (default) or a known name");
  line.value("max-new-tokens", "N", "longest continuation (default 256)");
  line.value("batch-size", "N", "prompts decoded together (default 32)");
  line.value("temperature", "T", "0: greedy, the only kind there is yet");
  line.flag("json", "print one JSON document");
  for (const char* name : {"top-p", "top-k", "seed", "draft-model"})
    line.later(name);
}

void refuse_sampling(const CommandLine& line) {
  const std::string text = line.text_or("temperature", "0");
  const bool is_zero = !text.empty() && text.find_first_not_of("0.") == std::string::npos &&
                       text.find('0') != std::string::npos;
  if (!is_zero)
    throw UnsupportedError("--temperature " + text +
                           ": sampling is not there yet: docs/status.md says what is. Leave it out "
                           "for greedy decoding.");
}

GenerateArguments read_arguments(const CommandLine& line) {
  GenerateArguments arguments;
  arguments.model = model_arguments(line);
  arguments.model.chat_template = line.text_or("chat-template", "");
  refuse_sampling(line);
  if (line.has("prompt") == line.has("prompts"))
    throw ConfigError(
        "shardtune generate: expected one of --prompt TEXT and --prompts FILE.jsonl, "
        "found " +
        std::string(line.has("prompt") ? "both." : "neither."));
  arguments.prompt = line.text_or("prompt", "");
  arguments.prompt_file = line.text_or("prompts", "");
  if (line.has("prompts") && arguments.prompt_file.empty())
    throw ConfigError("--prompts: expected a file, found an empty text.");
  arguments.raw = line.has("raw");
  arguments.max_new_tokens = line.integer_or("max-new-tokens", 256, {1, 1 << 20});
  arguments.batch_size = line.integer_or("batch-size", 32, {1, 1024});
  if (line.has("json"))
    arguments.style = Style::kJson;
  else if (line.has("prompts"))
    arguments.style = Style::kLines;
  return arguments;
}

std::string_view name_of(inference::StopReason reason) {
  switch (reason) {
    case inference::StopReason::kStopId:
      return "stop";
    case inference::StopReason::kMaxNewTokens:
      return "length";
    default:
      return "context";
  }
}

std::vector<std::vector<int32_t>> encode_prompts(const std::vector<Prompt>& prompts,
                                                 const data::Tokenizer& tokenizer,
                                                 const data::ChatTemplate* chat) {
  std::vector<std::vector<int32_t>> ids;
  for (const Prompt& prompt : prompts)
    ids.push_back(chat == nullptr ? tokenizer.encode(prompt.text, {})
                                  : encode_turns(prompt.messages, tokenizer, *chat));
  return ids;
}

inference::GenerationOptions options_of(const GenerateArguments& arguments, const Session& session,
                                        const data::Tokenizer& tokenizer) {
  inference::GenerationOptions options;
  options.max_new_tokens = arguments.max_new_tokens;
  options.max_concurrent = arguments.batch_size;
  options.stop_ids = tokenizer.stop_ids();
  options.num_ids = tokenizer.vocab_size();
  for (const int64_t id : session.model().config().eos_token_ids)
    options.stop_ids.push_back(static_cast<int32_t>(id));
  return options;
}

io::Json result_of(const Prompt& prompt, size_t num_prompt_tokens,
                   const inference::Generation& generation, const data::Tokenizer& tokenizer) {
  io::Json json = io::Json::object();
  json.set("prompt", prompt.text);
  json.set("text", tokenizer.decode(generation.ids, {true}));
  json.set("num_prompt_tokens", static_cast<int64_t>(num_prompt_tokens));
  json.set("num_new_tokens", static_cast<int64_t>(generation.ids.size()));
  json.set("stop_reason", name_of(generation.reason));
  return json;
}

void generate(const GenerateArguments& arguments) {
  const std::vector<Prompt> prompts =
      arguments.prompt_file.empty()
          ? std::vector<Prompt>{{arguments.prompt, {{"user", arguments.prompt}}}}
          : read_prompts(arguments.prompt_file);
  auto source = models::open_model_source(arguments.model.model);
  const auto tokenizer = data::load_tokenizer(arguments.model.model);
  const auto chat = arguments.raw ? nullptr : chat_template_for(arguments.model, *tokenizer);
  const auto ids = encode_prompts(prompts, *tokenizer, chat.get());
  const Session session(arguments.model, std::move(source));

  TextStream stream(*tokenizer);
  inference::TokenCallback on_token;
  if (arguments.style == Style::kStreamed)
    on_token = [&](int64_t, int32_t id) {
      print(stream.push(id));
      flush_output();
    };
  const auto start = std::chrono::steady_clock::now();
  const auto generations = inference::generate_greedy(
      session.model(), session.hooks(), ids, options_of(arguments, session, *tokenizer), on_token);
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  if (arguments.style == Style::kStreamed) {
    print(stream.finish() + "\n");
    return;
  }
  io::Json list = io::Json::array();
  for (size_t i = 0; i < prompts.size(); ++i) {
    io::Json result = result_of(prompts[i], ids[i].size(), generations[i], *tokenizer);
    if (arguments.style == Style::kLines)
      print(result.dump() + "\n");
    else
      list.push_back(std::move(result));
  }
  if (arguments.style == Style::kJson) {
    io::Json document = io::Json::object();
    document.set("generations", std::move(list));
    document.set("seconds", seconds.count());
    print_json(document);
  }
}

}  // namespace

int run_generate(Arguments list) {
  CommandLine line("generate --model M [--adapter A] --prompt TEXT | --prompts FILE.jsonl [--raw]",
                   "Continues prompts greedily; the chat template is applied unless --raw. One "
                   "prompt streams its text; a file gives one JSON line per prompt.");
  add_options(line);
  if (!line.parse(list))
    return 0;
  const GenerateArguments arguments = read_arguments(line);
  line.apply_threads();
  generate(arguments);
  return 0;
}

}  // namespace shardtune::launch
