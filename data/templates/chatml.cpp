// ChatML and the models that write it: <|im_start|>role\ncontent<|im_end|>\n.
#include "data/templates/render.h"

namespace shardtune::data {
namespace {

constexpr std::string_view kRoles[] = {"system", "user", "assistant", "tool"};

void write_turn(const RenderRequest& request, std::size_t i, PieceWriter& writer) {
  const Message& message = request.messages[i];
  writer.fixed("<|im_start|>" + message.role + "\n", i);
  if (message.role == "assistant") {
    writer.answer(message.content, i);
    writer.answer_fixed("<|im_end|>", i);
    writer.fixed("\n", i);
    return;
  }
  writer.content(message.content, i);
  writer.fixed("<|im_end|>\n", i);
}

void write_calls(const RenderRequest& request, std::size_t i, PieceWriter& writer) {
  const Message& message = request.messages[i];
  writer.fixed("<|im_start|>assistant\n", i);
  writer.answer(message.content, i);
  for (const ToolCall& call : message.tool_calls) {
    const bool follows = &call != message.tool_calls.data() || !message.content.empty();
    writer.answer_fixed(std::string(follows ? "\n" : "") + "<tool_call>\n{\"name\": \"", i);
    writer.answer(call.name, i);
    writer.answer_fixed("\", \"arguments\": ", i);
    writer.answer(python_json(call.arguments), i);
    writer.answer_fixed("}\n</tool_call>", i);
  }
  writer.answer_fixed("<|im_end|>", i);
  writer.fixed("\n", i);
}

/// Results of tools that follow each other are one turn of the user.
void write_tool_result(const RenderRequest& request, std::size_t i, PieceWriter& writer) {
  const auto is_tool = [&](std::size_t at) { return request.role(at) == "tool"; };
  writer.fixed(
      i == 0 || !is_tool(i - 1) ? "<|im_start|>user\n<tool_response>\n" : "\n<tool_response>\n", i);
  writer.content(request.messages[i].content, i);
  const bool ends = i + 1 == request.messages.size() || !is_tool(i + 1);
  writer.fixed(ends ? "\n</tool_response><|im_end|>\n" : "\n</tool_response>", i);
}

void write_default_system(const RenderRequest& request, std::string_view text,
                          PieceWriter& writer) {
  if (!request.begins_with_system())
    writer.fixed("<|im_start|>system\n" + std::string(text) + "<|im_end|>\n");
}

void write_prompt(const RenderRequest& request, PieceWriter& writer) {
  if (request.appends_prompt())
    writer.fixed("<|im_start|>assistant\n");
}

void write_turns(const RenderRequest& request, PieceWriter& writer) {
  request.require_roles(kRoles);
  for (std::size_t i = 0; i < request.messages.size(); ++i)
    write_turn(request, i, writer);
  write_prompt(request, writer);
}

void render_smollm2(const RenderRequest& request, PieceWriter& writer) {
  write_default_system(
      request, "You are a helpful AI assistant named SmolLM, trained by Hugging Face", writer);
  write_turns(request, writer);
}

void render_qwen2(const RenderRequest& request, PieceWriter& writer) {
  write_default_system(request, "You are a helpful assistant", writer);
  write_turns(request, writer);
}

void render_qwen2_5(const RenderRequest& request, PieceWriter& writer) {
  request.require_roles(kRoles);
  write_default_system(
      request, "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.", writer);
  for (std::size_t i = 0; i < request.messages.size(); ++i) {
    if (request.role(i) == "tool")
      write_tool_result(request, i, writer);
    else if (!request.messages[i].tool_calls.empty())
      write_calls(request, i, writer);
    else
      write_turn(request, i, writer);
  }
  write_prompt(request, writer);
}

}  // namespace

TemplatePtr make_chatml(const TemplateTokens& tokens) {
  return make_template("chatml", tokens, ClosedBy::kOwnToken, &write_turns);
}

TemplatePtr make_smollm2(const TemplateTokens& tokens) {
  return make_template("smollm2", tokens, ClosedBy::kOwnToken, &render_smollm2);
}

TemplatePtr make_qwen2(const TemplateTokens& tokens) {
  return make_template("qwen2", tokens, ClosedBy::kOwnToken, &render_qwen2);
}

TemplatePtr make_qwen2_5(const TemplateTokens& tokens) {
  return make_template("qwen2.5", tokens, ClosedBy::kOwnToken, &render_qwen2_5,
                       ToolCalls::kWritten);
}

}  // namespace shardtune::data
