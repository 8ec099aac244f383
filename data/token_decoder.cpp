#include "data/token_decoder.h"

#include "data/bpe.h"
#include "data/text_split.h"

namespace shardtune::data {
namespace {

int hex_value(char c) {
  if (c >= '0' && c <= '9')
    return c - '0';
  return c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

bool is_valid_utf8(std::string_view bytes) {
  for (std::size_t offset = 0; offset < bytes.size();) {
    const CodePoint point = decode_code_point(bytes, offset);
    if (point.value < 0)
      return false;
    offset += static_cast<std::size_t>(point.length);
  }
  return true;
}

std::string with_spaces(std::string_view text, std::string_view mark) {
  std::string result;
  std::size_t done = 0;
  for (std::size_t at = 0;
       !mark.empty() && (at = text.find(mark, done)) != std::string_view::npos;) {
    result.append(text.substr(done, at - done)).append(1, ' ');
    done = at + mark.size();
  }
  return result.append(text.substr(done));
}

/// A run of byte tokens becomes its text, or one U+FFFD per byte where it is none.
void append_run(std::string& text, std::string& run) {
  if (is_valid_utf8(run)) {
    text += run;
  } else {
    for (std::size_t i = 0; i < run.size(); ++i)
      text += "\xEF\xBF\xBD";
  }
  run.clear();
}

}  // namespace

int byte_of_token_text(std::string_view text) {
  if (text.size() != 6 || !text.starts_with("<0x") || text[5] != '>')
    return -1;
  const int high = hex_value(text[3]);
  const int low = hex_value(text[4]);
  return high < 0 || low < 0 ? -1 : high * 16 + low;
}

TokenDecoder::TokenDecoder(const std::vector<std::string>& texts, DecoderOptions options)
    : options_(std::move(options)), is_byte_(texts.size(), 0) {
  bytes_.reserve(texts.size());
  for (std::size_t id = 0; id < texts.size(); ++id) {
    const std::string& text = texts[id];
    if (options_.alphabet == TokenAlphabet::kByteLevel) {
      bytes_.push_back(bytes_of_token_text(text).value_or(text));
      continue;
    }
    const int byte = options_.byte_fallback ? byte_of_token_text(text) : -1;
    is_byte_[id] = byte >= 0 ? 1 : 0;
    bytes_.push_back(byte >= 0 ? std::string(1, static_cast<char>(byte))
                               : with_spaces(text, options_.space_mark));
  }
}

std::string TokenDecoder::decode(const std::vector<int32_t>& ids) const {
  std::string text;
  std::string run;
  bool first = true;
  for (const int32_t id : ids) {
    const auto index = static_cast<std::size_t>(id);
    if (is_byte_[index]) {
      run += bytes_[index];
    } else {
      append_run(text, run);
      std::string_view bytes = bytes_[index];
      const bool strip =
          first && options_.leading_space == DecoderOptions::LeadingSpace::kStripFirstToken;
      for (const char c : bytes) {
        if (!strip || c != ' ')
          text += c;
      }
    }
    first = false;
  }
  append_run(text, run);
  if (options_.leading_space == DecoderOptions::LeadingSpace::kStripOne && text.starts_with(' '))
    text.erase(0, 1);
  return replace_invalid_utf8(text);
}

}  // namespace shardtune::data
