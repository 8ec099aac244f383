#include "data/templates/render.h"

#include <algorithm>
#include <charconv>
#include <cmath>

#include "core/error.h"

namespace shardtune::data {
namespace {

struct Character {
  uint32_t code = 0;
  std::size_t size = 1;
};

/// The UTF-8 character at `at`; a byte that begins none is itself, no white space among them.
Character character_at(std::string_view text, std::size_t at) {
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(text[at + i]); };
  const std::size_t left = text.size() - at;
  const auto follows = [&](std::size_t i) { return i < left && (byte(i) & 0xC0u) == 0x80u; };
  if (byte(0) < 0x80u)
    return {byte(0), 1};
  if ((byte(0) & 0xE0u) == 0xC0u && follows(1))
    return {(byte(0) & 0x1Fu) << 6 | (byte(1) & 0x3Fu), 2};
  if ((byte(0) & 0xF0u) == 0xE0u && follows(1) && follows(2))
    return {(byte(0) & 0x0Fu) << 12 | (byte(1) & 0x3Fu) << 6 | (byte(2) & 0x3Fu), 3};
  return {0xFFFD, 1};
}

/// str.isspace of Python; every such character takes at most three bytes.
bool is_space(uint32_t code) {
  return (code >= 0x09 && code <= 0x0D) || (code >= 0x1C && code <= 0x20) || code == 0x85 ||
         code == 0xA0 || code == 0x1680 || (code >= 0x2000 && code <= 0x200A) || code == 0x2028 ||
         code == 0x2029 || code == 0x202F || code == 0x205F || code == 0x3000;
}

/// Bytes of white space at the end.
std::size_t space_at_end(std::string_view text) {
  std::size_t end = text.size();
  while (end > 0) {
    std::size_t begin = end - 1;
    while (begin > 0 && end - begin < 3 &&
           (static_cast<unsigned char>(text[begin]) & 0xC0u) == 0x80u)
      --begin;
    const Character last = character_at(text.substr(0, end), begin);
    if (begin + last.size != end || !is_space(last.code))
      break;
    end = begin;
  }
  return text.size() - end;
}

/// repr(float): the shortest digits that read back, with an exponent below 1e-4 and from 1e16 on.
std::string python_float(double value) {
  char buffer[40];
  const double size = std::fabs(value);
  const bool fixed = size == 0.0 || (size >= 1e-4 && size < 1e16);
  const auto format = fixed ? std::chars_format::fixed : std::chars_format::scientific;
  std::string text(buffer, std::to_chars(buffer, buffer + sizeof buffer, value, format).ptr);
  if (fixed && text.find('.') == std::string::npos)
    text += ".0";
  return text;
}

class FunctionTemplate : public ChatTemplate {
 public:
  FunctionTemplate(std::string_view name, TemplateTokens tokens, RenderFunction render,
                   ToolCalls tool_calls)
      : name_(name), tokens_(std::move(tokens)), render_(render), tool_calls_(tool_calls) {}

  std::string_view name() const override { return name_; }

  std::vector<RenderedPiece> render(const std::vector<Message>& messages,
                                    GenerationPrompt prompt) const override {
    if (messages.empty())
      throw DataError("messages: expected at least one, found none. Add a message.");
    for (std::size_t i = 0; i < messages.size(); ++i) {
      if (tool_calls_ == ToolCalls::kRefused && !messages[i].tool_calls.empty())
        throw DataError("messages[" + std::to_string(i) + "].tool_calls: expected none (template " +
                        std::string(name_) + " has no form for calls), found " +
                        std::to_string(messages[i].tool_calls.size()) +
                        ". Write the call into content, as the model is to write it.");
    }
    PieceWriter writer;
    render_({name_, messages, prompt, tokens_}, writer);
    return writer.take();
  }

 private:
  std::string_view name_;
  TemplateTokens tokens_;
  RenderFunction render_;
  ToolCalls tool_calls_;
};

}  // namespace

std::string python_json(const io::Json& json) {
  std::string text;
  if (json.is_array()) {
    for (const io::Json& element : json.as_array())
      text += (text.empty() ? "" : ", ") + python_json(element);
    return "[" + text + "]";
  }
  if (json.is_object()) {
    for (const auto& [key, value] : json.as_object())
      text += (text.empty() ? "" : ", ") + io::Json(key).dump() + ": " + python_json(value);
    return "{" + text + "}";
  }
  return json.is_number() && !json.is_integer() ? python_float(json.as_number()) : json.dump();
}

std::string_view stripped(std::string_view text) {
  while (!text.empty()) {
    const Character first = character_at(text, 0);
    if (!is_space(first.code))
      break;
    text.remove_prefix(first.size);
  }
  text.remove_suffix(space_at_end(text));
  return text;
}

void RenderRequest::fail(std::size_t i, const std::string& expected,
                         const std::string& advice) const {
  throw DataError("messages[" + std::to_string(i) + "].role: expected " + expected + " (template " +
                  std::string(name) + "), found '" + role(i).substr(0, 80) + "'. " + advice);
}

void RenderRequest::require_no_text_beside_calls(std::size_t i) const {
  if (!stripped(messages[i].content).empty())
    throw DataError("messages[" + std::to_string(i) +
                    "].content: expected none beside tool_calls " + "(template " +
                    std::string(name) + " would leave it out), found a text. " +
                    "Put it into a message of its own or remove it.");
}

void RenderRequest::require_roles(std::span<const std::string_view> roles) const {
  for (std::size_t i = 0; i < messages.size(); ++i) {
    if (std::find(roles.begin(), roles.end(), role(i)) != roles.end())
      continue;
    std::string known;
    for (const std::string_view each : roles)
      known += (known.empty() ? "" : &each == &roles.back() ? " or " : ", ") + std::string(each);
    fail(i, known, "Rename the role, or choose a template that has it.");
  }
}

void RenderRequest::require_turns(std::size_t begin) const {
  for (std::size_t i = begin; i < messages.size(); ++i) {
    const std::string expected = (i - begin) % 2 == 0 ? "user" : "assistant";
    if (role(i) != expected)
      fail(i, expected + ", as questions and answers take turns",
           "Join messages of one role, or choose another template.");
  }
}

void PieceWriter::strip_end(std::size_t begin) {
  for (std::size_t i = pieces_.size(); i-- > begin;) {
    std::string& text = pieces_[i].text;
    text.resize(text.size() - space_at_end(text));
    if (!text.empty())
      return;
  }
}

TemplatePtr make_template(std::string_view name, const TemplateTokens& tokens, ClosedBy closed_by,
                          RenderFunction render, ToolCalls tool_calls) {
  if (closed_by == ClosedBy::kEos && tokens.eos.empty())
    throw ConfigError("data.chat_template: " + std::string(name) +
                      ": expected a model with an end token (eos_token), by which the template "
                      "closes answers, found none. Choose another template.");
  return std::make_unique<FunctionTemplate>(name, tokens, render, tool_calls);
}

}  // namespace shardtune::data
