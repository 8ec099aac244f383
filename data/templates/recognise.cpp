// Which template a Jinja text is. The whole text is compared, in one spelling: one that only
// contains the familiar parts may render otherwise, and a run would train on prompts that the model
// never meets again. The table holds digests of that spelling, not the texts.
#include <algorithm>
#include <cctype>

#include "data/templates/templates.h"
#include "io/file.h"

namespace shardtune::data {
namespace {

struct KnownText {
  std::string_view digest;
  std::string_view name;
};

/// Published texts. Several may render alike for our messages: revisions, or texts that also take
/// lists of parts as content.
constexpr KnownText kKnownTexts[] = {
    {"e53d9f11cfb1fe5b", "chatml"},
    {"0cf2511310819323", "gemma"},
    {"b15af8715799c18e", "gemma"},
    {"d0c2961d60239d0d", "llama2"},
    {"99d544015daee7ec", "llama3"},
    {"b3fd685539acf0d2", "llama3"},
    {"b94d061e73ffafe2", "llama3.1"},
    {"8ce8781b8bc4fe1f", "llama3.1"},
    {"74da1c5586e4d5df", "mistral-v0"},
    {"f5d508ec9607d2e3", "mistral-v1"},
    {"bd906bb2f5023716", "mistral-v1"},
    {"22aebb6d3c470e88", "mistral-v3"},
    {"67a864e61de30bf9", "mistral-v3"},
    {"d447183ce50387bf", "mistral-v3-tekken"},
    {"01ba683a15d03390", "mistral-v3-tekken"},
    {"112adbf98055fe8a", "qwen2"},
    {"f8d121796b3a907f", "qwen2.5"},
    {"65b1b17b81251c4a", "smollm2"},
    {"ecab62c1b74b9688", "vicuna"},
    {"bdb58dd1ee4bd8b8", "zephyr"},
};

bool is_space(char c) { return c == ' ' || c == '\t' || c == '\n' || c == '\r'; }
bool is_name(char c) { return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '_'; }

/// Writes one spelling of a Jinja text as transformers reads it (trim_blocks, lstrip_blocks): text
/// outside of tags as it comes out, inside of tags no white space but that of strings, single
/// quotes, line ends of strings as \n, neighbouring strings joined, attributes behind a dot;
/// comments and trimming marks gone.
class Speller {
 public:
  explicit Speller(std::string_view text) : text_(text) {
    if (text_.ends_with('\n'))  // as Jinja without keep_trailing_newline
      text_.remove_suffix(1);
  }

  std::string spell() {
    while (at_ < text_.size()) {
      const std::size_t open = find_open(at_);
      outside(text_.substr(at_, open - at_), open);
      at_ = open;
      if (at_ < text_.size())
        tag();
    }
    return result_;
  }

 private:
  std::size_t find_open(std::size_t from) const {
    for (std::size_t i = from; i + 1 < text_.size(); ++i) {
      if (text_[i] == '{' && (text_[i + 1] == '{' || text_[i + 1] == '%' || text_[i + 1] == '#'))
        return i;
    }
    return text_.size();
  }

  /// Text between two tags, or up to the end of all text at `open`.
  void outside(std::string_view piece, std::size_t open) {
    if (trims_next_) {
      while (!piece.empty() && is_space(piece.front()))
        piece.remove_prefix(1);
    } else if (after_block_ && piece.starts_with('\n')) {
      piece.remove_prefix(1);
    }
    if (open + 2 < text_.size()) {
      const char kind = text_[open + 1];
      if (text_[open + 2] == '-') {
        while (!piece.empty() && is_space(piece.back()))
          piece.remove_suffix(1);
      } else if (kind != '{' && text_[open + 2] != '+') {
        strip_indent(piece);
      }
    }
    for (const char c : piece)
      literal(c);
  }

  /// lstrip_blocks: blanks between a line's beginning and a block.
  void strip_indent(std::string_view& piece) const {
    std::size_t end = piece.size();
    while (end > 0 && (piece[end - 1] == ' ' || piece[end - 1] == '\t'))
      --end;
    const bool at_line_begin =
        end == 0 ? (at_ == 0 || text_[at_ - 1] == '\n') : piece[end - 1] == '\n';
    // At end == 0 the line began inside of the last tag only where trim_blocks took its line end.
    if (at_line_begin || (end == 0 && after_block_ && piece.data() > text_.data() + at_))
      piece.remove_suffix(piece.size() - end);
  }

  void literal(char c) {
    if (c == '\n')
      result_ += "\\n";
    else
      result_ += c;
  }

  void tag() {
    const char kind = text_[at_ + 1];
    const char close = kind == '{' ? '}' : kind;
    at_ += 2;
    if (at_ < text_.size() && (text_[at_] == '-' || text_[at_] == '+'))
      ++at_;
    if (kind == '#') {
      const std::size_t end = std::min(text_.find("#}", at_), text_.size());
      trims_next_ = end > 0 && end < text_.size() && text_[end - 1] == '-';
      at_ = std::min(end + 2, text_.size());
      after_block_ = true;
      return;
    }
    result_ += {'{', kind};
    inside(close);
    after_block_ = kind == '%';
  }

  bool at_end(char close) const {
    return at_ + 1 < text_.size() && text_[at_] == close && text_[at_ + 1] == '}';
  }

  void inside(char close) {
    trims_next_ = false;
    while (at_ < text_.size()) {
      if (at_end(close)) {
        result_ += {close, '}'};
        at_ += 2;
        return;
      }
      const char c = text_[at_];
      if (c == '-' && at_ + 2 < text_.size() && text_[at_ + 1] == close && text_[at_ + 2] == '}') {
        trims_next_ = true;
        result_ += {close, '}'};
        at_ += 3;
        return;
      }
      if (c == '\'' || c == '"') {
        string(c);
        continue;
      }
      if (!is_space(c))
        result_ += c;
      ++at_;
    }
  }

  /// A string; joined to the one before when only a plus stands between, and written as an
  /// attribute where it is an index.
  void string(char quote) {
    std::string value;
    bool plain = true;
    for (++at_; at_ < text_.size() && text_[at_] != quote; ++at_) {
      const char c = text_[at_];
      if (c == '\\' && at_ + 1 < text_.size()) {
        const char next = text_[++at_];
        value += next == '\'' || next == '"' ? std::string(1, next) : std::string{'\\', next};
        plain = false;
      } else if (c == '\n') {
        value += "\\n";
        plain = false;
      } else {
        value += c;
        plain = plain && is_name(c);
      }
    }
    at_ = std::min(at_ + 1, text_.size());
    if (plain && !value.empty() && result_.ends_with('[') && result_.size() > 1 &&
        (is_name(result_[result_.size() - 2]) || result_[result_.size() - 2] == ']') &&
        at_ < text_.size() && text_[at_] == ']') {
      ++at_;
      result_.back() = '.';
      result_ += value;
    } else if (result_.ends_with("'+")) {
      result_.resize(result_.size() - 2);
      result_ += value + "'";
    } else {
      result_ += "'" + value + "'";
    }
  }

  std::string_view text_;
  std::size_t at_ = 0;
  bool trims_next_ = false;   // the last tag ended with -
  bool after_block_ = false;  // the last tag was a block or comment: its line end goes
  std::string result_;
};

/// Older files give add_generation_prompt a value first.
constexpr std::string_view kPromptDefault =
    "{%ifnotadd_generation_promptisdefined%}{%setadd_generation_prompt=false%}{%endif%}";

}  // namespace

std::string chat_template_digest(std::string_view template_text) {
  std::string text = Speller(template_text).spell();
  if (text.starts_with(kPromptDefault))
    text.erase(0, kPromptDefault.size());
  return io::sha256_hex(io::as_bytes(text)).substr(0, 16);
}

std::string_view recognise_chat_template(std::string_view template_text) {
  const std::string digest = chat_template_digest(template_text);
  for (const KnownText& known : kKnownTexts) {
    if (known.digest == digest)
      return known.name;
  }
  return "";
}

}  // namespace shardtune::data
