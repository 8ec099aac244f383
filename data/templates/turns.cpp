// Templates of one rule: zephyr, gemma, alpaca, vicuna.
#include "data/templates/render.h"

namespace shardtune::data {
namespace {

constexpr std::string_view kRoles[] = {"system", "user", "assistant"};

void render_zephyr(const RenderRequest& request, PieceWriter& writer) {
  request.require_roles(kRoles);
  for (std::size_t i = 0; i < request.messages.size(); ++i) {
    const Message& message = request.messages[i];
    writer.fixed("<|" + message.role + "|>\n", i);
    if (message.role == "assistant") {
      writer.answer(message.content, i);
      writer.answer_fixed(request.tokens.eos, i);
      writer.fixed("\n", i);
      continue;
    }
    writer.content(message.content, i);
    writer.fixed(request.tokens.eos + "\n", i);
  }
  if (request.appends_prompt())
    writer.fixed("<|assistant|>\n");
}

void render_gemma(const RenderRequest& request, PieceWriter& writer) {
  constexpr std::string_view kTurns[] = {"user", "assistant"};
  request.require_roles(kTurns);
  request.require_turns(0);
  writer.fixed(request.tokens.bos);
  for (std::size_t i = 0; i < request.messages.size(); ++i) {
    const std::string_view content = stripped(request.messages[i].content);
    if (request.role(i) == "assistant") {
      writer.fixed("<start_of_turn>model\n", i);
      writer.answer(content, i);
      writer.answer_fixed("<end_of_turn>", i);
      writer.fixed("\n", i);
      continue;
    }
    writer.fixed("<start_of_turn>user\n", i);
    writer.content(content, i);
    writer.fixed("<end_of_turn>\n", i);
  }
  if (request.appends_prompt())
    writer.fixed("<start_of_turn>model\n");
}

/// Stanford's preambles; a system message takes their place.
std::string_view alpaca_preamble(bool has_input) {
  return has_input ? "Below is an instruction that describes a task, paired with an input that "
                     "provides further context. Write a response that appropriately completes "
                     "the request."
                   : "Below is an instruction that describes a task. Write a response that "
                     "appropriately completes the request.";
}

void write_instruction(const RenderRequest& request, std::size_t i, PieceWriter& writer) {
  const Message& message = request.messages[i];
  const bool has_input = message.input_begin != std::string::npos;
  const std::string_view content = message.content;
  writer.fixed("### Instruction:\n", i);
  // The reader joins the two by one line end, which belongs to neither.
  writer.content(has_input ? content.substr(0, message.input_begin - 1) : content, i);
  if (has_input) {
    writer.fixed("\n\n### Input:\n", i);
    writer.content(content.substr(message.input_begin), i);
  }
}

void render_alpaca(const RenderRequest& request, PieceWriter& writer) {
  const std::size_t first = request.begins_with_system() ? 1 : 0;
  request.require_turns(first);
  writer.fixed(request.tokens.bos);
  if (first == 1)
    writer.content(request.messages[0].content, 0);
  else
    writer.fixed(
        std::string(alpaca_preamble(request.messages[0].input_begin != std::string::npos)));
  writer.fixed("\n\n");
  for (std::size_t i = first; i < request.messages.size(); ++i) {
    if (request.role(i) == "assistant") {
      writer.fixed("\n\n### Response:", i);
      writer.answer(request.messages[i].content, i);
      writer.answer_fixed(request.tokens.eos, i);
      if (i + 1 < request.messages.size())
        writer.fixed("\n\n", i);
      continue;
    }
    write_instruction(request, i, writer);
  }
  if (request.appends_prompt())
    writer.fixed("\n\n### Response:");
}

void render_vicuna(const RenderRequest& request, PieceWriter& writer) {
  const std::size_t first = request.begins_with_system() ? 1 : 0;
  for (std::size_t i = first; i < request.messages.size(); ++i) {
    if (request.role(i) != "user" && request.role(i) != "assistant")
      request.fail(i, "user or assistant", "Choose a template that has this role.");
  }
  writer.fixed(request.tokens.bos);
  if (first == 1)
    writer.content(request.messages[0].content, 0);
  else
    writer.fixed(
        "A chat between a curious user and an artificial intelligence assistant. The assistant "
        "gives helpful, detailed, and polite answers to the user's questions.");
  writer.fixed(" ");
  for (std::size_t i = first; i < request.messages.size(); ++i) {
    const std::string& content = request.messages[i].content;
    if (request.role(i) == "assistant") {
      writer.fixed("ASSISTANT:", i);
      writer.answer(" ", i);
      writer.answer(content, i);
      writer.answer_fixed(request.tokens.eos, i);
      continue;
    }
    writer.fixed("USER: ", i);
    writer.content(content, i);
    writer.fixed(" ", i);
  }
  if (request.appends_prompt())
    writer.fixed("ASSISTANT:");
}

}  // namespace

TemplatePtr make_zephyr(const TemplateTokens& tokens) {
  return make_template("zephyr", tokens, ClosedBy::kEos, &render_zephyr);
}

TemplatePtr make_gemma(const TemplateTokens& tokens) {
  return make_template("gemma", tokens, ClosedBy::kOwnToken, &render_gemma);
}

TemplatePtr make_alpaca(const TemplateTokens& tokens) {
  return make_template("alpaca", tokens, ClosedBy::kEos, &render_alpaca);
}

TemplatePtr make_vicuna(const TemplateTokens& tokens) {
  return make_template("vicuna", tokens, ClosedBy::kEos, &render_vicuna);
}

}  // namespace shardtune::data
