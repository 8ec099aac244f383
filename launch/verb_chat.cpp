// chat: a conversation in the terminal, streamed; without one, every line of standard input is a
// turn and every reply goes to standard output.
#include <optional>

#include "core/error.h"
#include "core/log.h"
#include "data/text_stream.h"
#include "inference/conversation.h"
#include "launch/command_line.h"
#include "launch/output.h"
#include "launch/prompts.h"
#include "launch/sampling.h"
#include "launch/session.h"
#include "launch/terminal_input.h"
#include "launch/verbs.h"

namespace shardtune::launch {
namespace {

constexpr const char* kCommands =
    "/reset forgets the conversation, /quit (or Ctrl-D) leaves, Ctrl-C ends a reply.\n";

struct ChatArguments {
  ModelArguments model;
  std::string system;
  inference::GenerationOptions generation;
};

class Chat {
 public:
  explicit Chat(const ChatArguments& arguments)
      : system_(arguments.system),
        tokenizer_(data::load_tokenizer(arguments.model.model)),
        template_(chat_template_for(arguments.model, *tokenizer_)),
        is_terminal_(is_terminal()) {
    if (template_ == nullptr)
      throw ConfigError(
          "--chat-template none: a conversation needs a template, which tells turns apart. Name "
          "one, or use 'shardtune generate --raw'.");
    reset_turns();
    if (!turns_.empty())  // tells now what the template does not take
      template_->render(with_turn("user", "Hello"), data::GenerationPrompt::kAppend);
    session_ = std::make_unique<Session>(arguments.model,
                                         models::open_model_source(arguments.model.model));
    inference::GenerationOptions options = arguments.generation;
    options.stop_ids = inference::stop_ids(*tokenizer_, session_->model().config());
    options.num_ids = tokenizer_->vocab_size();
    options.finished = [](int64_t, std::span<const int32_t>) { return InterruptFlag::is_set(); };
    conversation_ = std::make_unique<inference::Conversation>(session_->model(), session_->hooks(),
                                                              std::move(options));
  }

  void run() {
    std::optional<InterruptFlag> interrupts;
    if (is_terminal_) {
      interrupts.emplace();
      print(kCommands);
    }
    TerminalInput input;
    for (std::string line; next_line(input, line);)
      take(line);
  }

 private:
  /// False at the end of the input and at /quit.
  bool next_line(TerminalInput& input, std::string& line) {
    for (;;) {
      InterruptFlag::clear();
      if (is_terminal_)
        print("> ");
      flush_output();
      switch (input.next(line)) {
        case TerminalInput::Result::kLine:
          return line != "/quit";
        case TerminalInput::Result::kInterrupted:
          print(std::string("\n") + kCommands);
          break;
        case TerminalInput::Result::kEnd:
          if (is_terminal_)
            print("\n");
          return false;
      }
    }
  }

  std::vector<data::Message> with_turn(const std::string& role, const std::string& content) const {
    std::vector<data::Message> turns = turns_;
    turns.push_back({role, content});
    return turns;
  }

  void reset_turns() {
    turns_.clear();
    if (!system_.empty())
      turns_.push_back({"system", system_});
  }

  void take(const std::string& line) {
    if (line.find_first_not_of(" \t\r") == std::string::npos)
      return;
    if (line == "/reset") {
      reset_turns();
      conversation_->reset();
      if (is_terminal_)
        print("The conversation is forgotten.\n");
      return;
    }
    if (line.front() == '/') {
      log_warning("unknown command '" + line.substr(0, 80) + "'. " + kCommands);
      return;
    }
    reply(line);
  }

  void reply(const std::string& line) {
    const auto turns = with_turn("user", line);
    const std::vector<int32_t> ids = encode_turns(turns, *tokenizer_, *template_);
    const int64_t context = inference::context_of(session_->model(), session_->hooks());
    if (context > 0 && std::ssize(ids) >= context) {
      const std::string message =
          "the conversation: expected fewer than " + std::to_string(context) +
          " tokens (the model's context), found " + std::to_string(ids.size()) +
          " with this turn. Write /reset to begin anew, or a shorter turn.";
      if (!is_terminal_)
        throw DataError(message);
      print(message + "\n");
      return;
    }
    data::TextStream stream(*tokenizer_);
    std::string answer;
    const auto show = [&](const std::string& text) {
      answer += text;
      print(text);
      flush_output();
    };
    const auto result =
        conversation_->reply(ids, [&](int64_t, int32_t id) { show(stream.push(id)); });
    show(stream.finish());
    print("\n");
    if (result.reason == inference::StopReason::kMaxNewTokens)
      log_warning("The reply was cut at --max-new-tokens.");
    else if (result.reason == inference::StopReason::kContextFull)
      log_warning("The model's context is full: /reset begins anew.");
    turns_ = turns;
    turns_.push_back({"assistant", answer});
  }

  std::string system_;
  std::unique_ptr<data::Tokenizer> tokenizer_;
  std::unique_ptr<data::ChatTemplate> template_;
  bool is_terminal_;
  std::unique_ptr<Session> session_;
  std::unique_ptr<inference::Conversation> conversation_;
  std::vector<data::Message> turns_;
};

}  // namespace

int run_chat(Arguments list) {
  CommandLine line("chat --model M [--adapter A] [--system TEXT]",
                   "A conversation in the terminal, replies streamed. Without a terminal every "
                   "line of standard input is a turn. " +
                       std::string(kCommands));
  add_model_options(line);
  line.value("system", "TEXT", "system message of the conversation");
  line.value("chat-template", "NAME", "auto (default) or a known name");
  line.value("max-new-tokens", "N", "longest reply (default 512)");
  add_sampling_options(line);
  if (!line.parse(list))
    return 0;
  ChatArguments arguments;
  arguments.model = model_arguments(line);
  arguments.model.chat_template = line.text_or("chat-template", "");
  arguments.system = line.utf8_or("system", "");
  arguments.generation.max_new_tokens = line.integer_or("max-new-tokens", 512, {1, 1 << 20});
  arguments.generation.sampling = sampling_options(line);
  line.apply_threads();
  Chat(arguments).run();
  return 0;
}

}  // namespace shardtune::launch
