// The templates of Mistral's instruct models. None has a generation prompt: the question ends
// with [/INST], and the answer begins with its space, where the template has one.
#include "core/error.h"
#include "data/templates/render.h"

namespace shardtune::data {
namespace {

/// Where the system message of a conversation goes: into the first question, or into the last
/// message if that is a question (and nowhere else: the published text then drops it).
enum class SystemPlace { kFirst, kLast };

struct Style {
  std::string_view open;   // before a question
  std::string_view close;  // after it
  std::string_view before_answer;
  bool strips_answer = false;
  SystemPlace system = SystemPlace::kFirst;
  std::string_view mark_space{};  // between a mark of tools and what it holds
};

bool is_of_tools(const Message& message) {
  return message.role == "tool" || !message.tool_calls.empty();
}

/// Mistral's ids of calls have nine letters or digits; the published text refuses others.
const std::string& checked_id(const std::string& id, std::size_t i, const char* key) {
  if (id.size() != 9)
    throw DataError("messages[" + std::to_string(i) + "]." + key +
                    ": expected nine letters and digits, as the template demands, found '" +
                    id.substr(0, 80) + "'. Rename the ids of the calls.");
  return id;
}

void write_calls(const RenderRequest& request, const Style& style, std::size_t i,
                 PieceWriter& writer) {
  request.require_no_text_beside_calls(i);
  writer.answer_fixed("[TOOL_CALLS]" + std::string(style.mark_space), i);
  std::string calls;
  for (const ToolCall& call : request.messages[i].tool_calls)
    calls += (calls.empty() ? "[{\"name\": " : ", {\"name\": ") + python_json(call.name) +
             ", \"arguments\": " + python_json(call.arguments) + ", \"id\": \"" +
             checked_id(call.id, i, "tool_calls.id") + "\"}";
  writer.answer(calls + "]", i);
  writer.answer_fixed(request.tokens.eos, i);
}

void write_result(const RenderRequest& request, const Style& style, std::size_t i,
                  PieceWriter& writer) {
  const Message& message = request.messages[i];
  writer.fixed("[TOOL_RESULTS]" + std::string(style.mark_space), i);
  writer.content("{\"content\": " + message.content + ", \"call_id\": \"" +
                     checked_id(message.tool_call_id, i, "tool_call_id") + "\"}",
                 i);
  writer.fixed("[/TOOL_RESULTS]", i);
}

/// Questions and answers take turns, with calls and results of tools among them.
void require_turns_beside_tools(const RenderRequest& request, std::size_t begin) {
  bool question = true;
  for (std::size_t i = begin; i < request.messages.size(); ++i) {
    if (is_of_tools(request.messages[i]))
      continue;
    if (request.role(i) != (question ? "user" : "assistant"))
      request.fail(
          i, std::string(question ? "user" : "assistant") + ", as questions and answers take turns",
          "Join messages of one role, or choose another template.");
    question = !question;
  }
}

void write_question(const RenderRequest& request, const Style& style, std::size_t i,
                    PieceWriter& writer) {
  writer.fixed(std::string(style.open), i);
  const std::size_t holder = style.system == SystemPlace::kFirst ? 1 : request.messages.size() - 1;
  if (request.begins_with_system() && i == holder) {
    writer.content(request.messages[0].content, 0);
    writer.fixed("\n\n", 0);
  }
  writer.content(request.messages[i].content, i);
  writer.fixed(std::string(style.close), i);
}

void write_answer(const RenderRequest& request, const Style& style, std::size_t i,
                  PieceWriter& writer) {
  const std::string_view content = request.messages[i].content;
  writer.answer(style.before_answer, i);
  writer.answer(style.strips_answer ? stripped(content) : content, i);
  writer.answer_fixed(request.tokens.eos, i);
}

void write_turns(const RenderRequest& request, const Style& style, PieceWriter& writer) {
  const std::size_t first = request.begins_with_system() ? 1 : 0;
  if (style.system == SystemPlace::kLast)
    require_turns_beside_tools(request, first);
  else
    request.require_turns(first);
  const bool drops_system =
      first == 1 && (request.messages.size() == 1 || (style.system == SystemPlace::kLast &&
                                                      request.messages.back().role != "user"));
  if (drops_system && !stripped(request.messages[0].content).empty())
    request.fail(0, "a conversation that ends with a question, or no system message",
                 "The template writes a system message into the last question only and would "
                 "leave it out here: put its text into a question.");
  writer.fixed(request.tokens.bos);
  for (std::size_t i = first; i < request.messages.size(); ++i) {
    if (!request.messages[i].tool_calls.empty())
      write_calls(request, style, i, writer);
    else if (request.role(i) == "tool")
      write_result(request, style, i, writer);
    else if (request.role(i) == "user")
      write_question(request, style, i, writer);
    else
      write_answer(request, style, i, writer);
  }
}

void render_v0(const RenderRequest& request, PieceWriter& writer) {
  constexpr std::string_view kRoles[] = {"user", "assistant"};
  request.require_roles(kRoles);
  write_turns(request, {"[INST] ", " [/INST]", ""}, writer);
}

void render_v1(const RenderRequest& request, PieceWriter& writer) {
  write_turns(request, {" [INST] ", " [/INST]", " "}, writer);
}

void render_v3(const RenderRequest& request, PieceWriter& writer) {
  write_turns(request, {"[INST] ", "[/INST]", " ", true, SystemPlace::kLast, " "}, writer);
}

void render_v3_tekken(const RenderRequest& request, PieceWriter& writer) {
  write_turns(request, {"[INST]", "[/INST]", "", false, SystemPlace::kLast, ""}, writer);
}

}  // namespace

TemplatePtr make_mistral_v0(const TemplateTokens& tokens) {
  return make_template("mistral-v0", tokens, ClosedBy::kEos, &render_v0);
}

TemplatePtr make_mistral_v1(const TemplateTokens& tokens) {
  return make_template("mistral-v1", tokens, ClosedBy::kEos, &render_v1);
}

TemplatePtr make_mistral_v3(const TemplateTokens& tokens) {
  return make_template("mistral-v3", tokens, ClosedBy::kEos, &render_v3, ToolCalls::kWritten);
}

TemplatePtr make_mistral_v3_tekken(const TemplateTokens& tokens) {
  return make_template("mistral-v3-tekken", tokens, ClosedBy::kEos, &render_v3_tekken,
                       ToolCalls::kWritten);
}

}  // namespace shardtune::data
