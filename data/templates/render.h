// What the templates share: pieces put one after the other, checks of roles and their order, and
// the text functions of Jinja (str.strip, tojson).
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "data/templates/templates.h"

namespace shardtune::data {

/// JSON as Python's json.dumps(ensure_ascii=False) and so Jinja's tojson in transformers write it.
std::string python_json(const io::Json& json);

/// Content without Python's white space around it, as Jinja's trim and str.strip().
std::string_view stripped(std::string_view text);

struct RenderRequest {
  std::string_view name;
  const std::vector<Message>& messages;
  GenerationPrompt prompt;
  const TemplateTokens& tokens;

  bool appends_prompt() const { return prompt == GenerationPrompt::kAppend; }
  const std::string& role(std::size_t i) const { return messages[i].role; }
  bool begins_with_system() const { return messages.front().role == "system"; }
  /// "messages[i].role: expected E (template NAME), found 'role'. advice"
  [[noreturn]] void fail(std::size_t i, const std::string& expected,
                         const std::string& advice) const;
  /// For templates that write calls in the place of an answer's text.
  void require_no_text_beside_calls(std::size_t i) const;
  void require_roles(std::span<const std::string_view> roles) const;
  /// From message `begin` on users and assistants must take turns.
  void require_turns(std::size_t begin) const;
};

class PieceWriter {
 public:
  /// Text of the template, in which special tokens are meant.
  void fixed(std::string text, std::size_t message) { add(std::move(text), true, false, message); }
  void fixed(std::string text) { push({std::move(text)}); }
  /// Text of the user, tool or system.
  void content(std::string_view text, std::size_t message) {
    add(std::string(text), false, false, message);
  }
  /// The answer from its first character on, and what closes it.
  void answer(std::string_view text, std::size_t message) {
    add(std::string(text), false, true, message);
  }
  void answer_fixed(std::string text, std::size_t message) {
    add(std::move(text), true, true, message);
  }
  std::size_t size() const { return pieces_.size(); }
  /// Strips the end of the text made of the pieces from `begin` on, as one text.
  void strip_end(std::size_t begin);
  std::vector<RenderedPiece> take() { return std::move(pieces_); }

 private:
  void add(std::string text, bool is_template, bool is_assistant, std::size_t message) {
    push({std::move(text), is_template, is_assistant, static_cast<int>(message)});
  }
  void push(RenderedPiece piece) {
    if (!piece.text.empty())
      pieces_.push_back(std::move(piece));
  }
  std::vector<RenderedPiece> pieces_;
};

using RenderFunction = void (*)(const RenderRequest& request, PieceWriter& writer);
enum class ClosedBy { kOwnToken, kEos };
enum class ToolCalls { kRefused, kWritten };

/// A template of one function. ConfigError: closed by eos, and the model has none.
TemplatePtr make_template(std::string_view name, const TemplateTokens& tokens, ClosedBy closed_by,
                          RenderFunction render, ToolCalls tool_calls = ToolCalls::kRefused);

}  // namespace shardtune::data
