// Json::dump.
#include <charconv>
#include <cmath>

#include "io/json.h"

namespace shardtune::io {

namespace {
class JsonWriter {
 public:
  explicit JsonWriter(int indent) : indent_(indent) {}

  // Recursion depth is that of a tree built by our own code or capped by JsonLimits::max_depth.
  void value(const Json& json) {
    if (json.is_null())
      text_ += "null";
    else if (json.is_bool())
      text_ += json.as_bool() ? "true" : "false";
    else if (json.is_integer())
      text_ += std::to_string(json.as_integer());
    else if (json.is_number())
      number(json.as_number());
    else if (json.is_string())
      string(json.as_string());
    else if (json.is_array())
      array(json.as_array());
    else
      object(json.as_object());
  }

  std::string take() { return std::move(text_); }

 private:
  void number(double value) {
    if (!std::isfinite(value))
      throw ArgumentError("JSON has no text for a number that is not finite");
    char buffer[32];
    const auto end = std::to_chars(buffer, buffer + sizeof(buffer), value).ptr;
    const std::string_view digits(buffer, static_cast<size_t>(end - buffer));
    text_ += digits;
    // Without a point or exponent the text would read back as an integer (and lose -0.0).
    if (digits.find_first_of(".e") == std::string_view::npos)
      text_ += ".0";
  }

  void string(std::string_view value) {
    constexpr char kHex[] = "0123456789abcdef";
    text_ += '"';
    for (const char c : value) {
      const auto byte = static_cast<unsigned char>(c);
      if (c == '"' || c == '\\')
        text_ += {'\\', c};
      else if (c == '\b')
        text_ += "\\b";
      else if (c == '\f')
        text_ += "\\f";
      else if (c == '\n')
        text_ += "\\n";
      else if (c == '\r')
        text_ += "\\r";
      else if (c == '\t')
        text_ += "\\t";
      else if (byte < 0x20)
        text_ += {'\\', 'u', '0', '0', kHex[byte >> 4], kHex[byte & 15u]};
      else
        text_ += c;
    }
    text_ += '"';
  }

  void line() {
    if (indent_ < 0)
      return;
    text_ += '\n';
    text_.append(static_cast<size_t>(depth_ * indent_), ' ');
  }

  void separator(bool first) {
    if (!first)
      text_ += ',';
    line();
  }

  void array(const Json::Array& values) {
    text_ += '[';
    ++depth_;
    for (const Json& element : values) {
      separator(&element == values.data());
      value(element);
    }
    --depth_;
    if (!values.empty())
      line();
    text_ += ']';
  }

  void object(const Json::Object& members) {
    text_ += '{';
    ++depth_;
    for (const Json::Member& member : members) {
      separator(&member == members.data());
      string(member.first);
      text_ += indent_ < 0 ? ":" : ": ";
      value(member.second);
    }
    --depth_;
    if (!members.empty())
      line();
    text_ += '}';
  }

  int indent_;
  int depth_ = 0;
  std::string text_;
};
}  // namespace

std::string Json::dump(int indent) const {
  JsonWriter writer(indent);
  writer.value(*this);
  return writer.take();
}

}  // namespace shardtune::io
