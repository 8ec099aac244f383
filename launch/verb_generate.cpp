// generate: the continuation of one prompt, streamed, or of a file of prompts.
#include <chrono>

#include "data/text_stream.h"
#include "inference/generate.h"
#include "launch/command_line.h"
#include "launch/output.h"
#include "launch/prompts.h"
#include "launch/sampling.h"
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
  inference::GenerationOptions generation;
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
  add_sampling_options(line);
  line.flag("json", "print one JSON document");
  line.later("draft-model");
}

GenerateArguments read_arguments(const CommandLine& line) {
  GenerateArguments arguments;
  arguments.model = model_arguments(line);
  arguments.model.chat_template = line.text_or("chat-template", "");
  if (line.has("prompt") == line.has("prompts"))
    throw ConfigError(
        "shardtune generate: expected one of --prompt TEXT and --prompts FILE.jsonl, "
        "found " +
        std::string(line.has("prompt") ? "both." : "neither."));
  arguments.prompt = line.utf8_or("prompt", "");
  arguments.prompt_file = line.text_or("prompts", "");
  if (line.has("prompts") && arguments.prompt_file.empty())
    throw ConfigError("--prompts: expected a file, found an empty text.");
  arguments.raw = line.has("raw");
  arguments.generation.max_new_tokens = line.integer_or("max-new-tokens", 256, {1, 1 << 20});
  arguments.generation.max_concurrent = line.integer_or("batch-size", 32, {1, 1024});
  arguments.generation.sampling = sampling_options(line);
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

  inference::GenerationOptions options = arguments.generation;
  options.stop_ids = inference::stop_ids(*tokenizer, session.model().config());
  options.num_ids = tokenizer->vocab_size();

  data::TextStream stream(*tokenizer);
  inference::TokenCallback on_token;
  if (arguments.style == Style::kStreamed)
    on_token = [&](int64_t, int32_t id) {
      print(stream.push(id));
      flush_output();
    };
  const auto start = std::chrono::steady_clock::now();
  const auto generations =
      inference::generate(session.model(), session.hooks(), ids, options, on_token);
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
                   "Continues prompts, greedily unless a temperature is given; the chat template "
                   "is applied unless --raw. One prompt streams its text; a file gives one JSON "
                   "line per prompt, each with the text that it gets alone.");
  add_options(line);
  if (!line.parse(list))
    return 0;
  const GenerateArguments arguments = read_arguments(line);
  line.apply_threads();
  generate(arguments);
  return 0;
}

}  // namespace shardtune::launch
