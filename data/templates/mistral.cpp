// The templates of Mistral's instruct models. None has a generation prompt: the question ends
// with [/INST], and the answer begins with its space, where the template has one.
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
};

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
    if (request.role(i) == "user")
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
  write_turns(request, {"[INST] ", "[/INST]", " ", true, SystemPlace::kLast}, writer);
}

void render_v3_tekken(const RenderRequest& request, PieceWriter& writer) {
  write_turns(request, {"[INST]", "[/INST]", "", false, SystemPlace::kLast}, writer);
}

}  // namespace

TemplatePtr make_mistral_v0(const TemplateTokens& tokens) {
  return make_template("mistral-v0", tokens, ClosedBy::kEos, &render_v0);
}

TemplatePtr make_mistral_v1(const TemplateTokens& tokens) {
  return make_template("mistral-v1", tokens, ClosedBy::kEos, &render_v1);
}

TemplatePtr make_mistral_v3(const TemplateTokens& tokens) {
  return make_template("mistral-v3", tokens, ClosedBy::kEos, &render_v3);
}

TemplatePtr make_mistral_v3_tekken(const TemplateTokens& tokens) {
  return make_template("mistral-v3-tekken", tokens, ClosedBy::kEos, &render_v3_tekken);
}

}  // namespace shardtune::data
