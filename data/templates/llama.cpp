// The templates of Llama 2 and 3.
#include "core/error.h"
#include "data/templates/render.h"
#include "io/json.h"

namespace shardtune::data {
namespace {

constexpr std::string_view kRoles[] = {"system", "user", "assistant", "tool"};

void render_llama2(const RenderRequest& request, PieceWriter& writer) {
  const std::size_t first = request.begins_with_system() ? 1 : 0;
  request.require_turns(first);
  if (first == request.messages.size())
    request.fail(0, "a question after the system message", "Add the question.");
  for (std::size_t i = first; i < request.messages.size(); ++i) {
    const std::string& content = request.messages[i].content;
    if (request.role(i) == "assistant") {
      writer.answer(" ", i);
      writer.answer(stripped(content), i);
      writer.answer(" ", i);
      writer.answer_fixed(request.tokens.eos, i);
      continue;
    }
    writer.fixed(request.tokens.bos + "[INST] ", i);
    const std::size_t begin = writer.size();
    if (i == 1) {  // the system message and the first question are stripped as one text
      writer.fixed("<<SYS>>\n", 0);
      writer.content(request.messages[0].content, 0);
      writer.fixed("\n<</SYS>>\n\n", 0);
      writer.content(content, i);
    } else {
      writer.content(stripped(content), i);
    }
    writer.strip_end(begin);
    writer.fixed(" [/INST]", i);
  }
}

std::string header(std::string_view role) {
  return "<|start_header_id|>" + std::string(role) + "<|end_header_id|>\n\n";
}

void write_turn(const RenderRequest& request, std::size_t i, PieceWriter& writer) {
  const Message& message = request.messages[i];
  writer.fixed(header(message.role), i);
  if (message.role == "assistant") {
    writer.answer(stripped(message.content), i);
    writer.answer_fixed("<|eot_id|>", i);
    return;
  }
  writer.content(stripped(message.content), i);
  writer.fixed("<|eot_id|>", i);
}

void write_prompt(const RenderRequest& request, PieceWriter& writer) {
  if (request.appends_prompt())
    writer.fixed(header("assistant"));
}

void render_llama3(const RenderRequest& request, PieceWriter& writer) {
  request.require_roles(kRoles);
  writer.fixed(request.tokens.bos);
  for (std::size_t i = 0; i < request.messages.size(); ++i)
    write_turn(request, i, writer);
  write_prompt(request, writer);
}

void write_call(const RenderRequest& request, std::size_t i, PieceWriter& writer) {
  const std::vector<ToolCall>& calls = request.messages[i].tool_calls;
  if (calls.size() != 1)
    throw DataError("messages[" + std::to_string(i) + "].tool_calls: expected one call (template " +
                    std::string(request.name) + " has no form for several at once), found " +
                    std::to_string(calls.size()) + ". Give each a message of its own.");
  request.require_no_text_beside_calls(i);
  writer.fixed(header("assistant"), i);
  writer.answer("{\"name\": \"" + calls[0].name +
                    "\", \"parameters\": " + python_json(calls[0].arguments) + "}",
                i);
  writer.answer_fixed("<|eot_id|>", i);
}

void render_llama3_1(const RenderRequest& request, PieceWriter& writer) {
  request.require_roles(kRoles);
  writer.fixed(request.tokens.bos + header("system") +
               "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n");
  const std::size_t first = request.begins_with_system() ? 1 : 0;
  if (first == 1)
    writer.content(stripped(request.messages[0].content), 0);
  writer.fixed("<|eot_id|>");
  for (std::size_t i = first; i < request.messages.size(); ++i) {
    if (!request.messages[i].tool_calls.empty()) {
      write_call(request, i, writer);
      continue;
    }
    if (request.role(i) != "tool") {
      write_turn(request, i, writer);
      continue;
    }
    writer.fixed(header("ipython"), i);
    writer.content(io::Json(request.messages[i].content).dump(), i);
    writer.fixed("<|eot_id|>", i);
  }
  write_prompt(request, writer);
}

}  // namespace

TemplatePtr make_llama2(const TemplateTokens& tokens) {
  return make_template("llama2", tokens, ClosedBy::kEos, &render_llama2);
}

TemplatePtr make_llama3(const TemplateTokens& tokens) {
  return make_template("llama3", tokens, ClosedBy::kOwnToken, &render_llama3);
}

TemplatePtr make_llama3_1(const TemplateTokens& tokens) {
  return make_template("llama3.1", tokens, ClosedBy::kOwnToken, &render_llama3_1,
                       ToolCalls::kWritten);
}

}  // namespace shardtune::data
