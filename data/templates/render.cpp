#include "data/templates/render.h"

#include <algorithm>

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

class FunctionTemplate : public ChatTemplate {
 public:
  FunctionTemplate(std::string_view name, TemplateTokens tokens, RenderFunction render)
      : name_(name), tokens_(std::move(tokens)), render_(render) {}

  std::string_view name() const override { return name_; }

  std::vector<RenderedPiece> render(const std::vector<Message>& messages,
                                    GenerationPrompt prompt) const override {
    if (messages.empty())
      throw DataError("messages: expected at least one, found none. Add a message.");
    PieceWriter writer;
    render_({name_, messages, prompt, tokens_}, writer);
    return writer.take();
  }

 private:
  std::string_view name_;
  TemplateTokens tokens_;
  RenderFunction render_;
};

}  // namespace

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
                          RenderFunction render) {
  if (closed_by == ClosedBy::kEos && tokens.eos.empty())
    throw ConfigError("data.chat_template: " + std::string(name) +
                      ": expected a model with an end token (eos_token), by which the template "
                      "closes answers, found none. Choose another template.");
  return std::make_unique<FunctionTemplate>(name, tokens, render);
}

}  // namespace shardtune::data
