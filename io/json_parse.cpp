// parse_json: nlohmann-json's iterative parser drives a handler that builds the tree and enforces
// caps, so that neither depth nor size of the input decides about stack or memory.
#include <xxhash.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <random>

#include "io/json.h"
#include "io/text.h"

namespace shardtune::io {

namespace {
// Reads the text byte by byte and tells the handler how far the parser has come.
class TrackingIterator {
 public:
  using iterator_category = std::input_iterator_tag;
  using value_type = char;
  using difference_type = std::ptrdiff_t;
  using pointer = const char*;
  using reference = const char&;

  TrackingIterator(const char* current, const char** position)
      : current_(current), position_(position) {}
  reference operator*() const { return *current_; }
  TrackingIterator& operator++() {
    *position_ = ++current_;
    return *this;
  }
  bool operator==(const TrackingIterator& other) const { return current_ == other.current_; }
  bool operator!=(const TrackingIterator& other) const { return current_ != other.current_; }

 private:
  const char* current_;
  const char** position_;
};

// The keys of one object. Small objects are searched; larger ones get an open-addressing table of
// member numbers, hashed with a seed of this process so that no file can be made to collide.
class KeySet {
 public:
  // False when the key of the last member was there before.
  bool insert_last(const Json::Object& members) {
    if (members.size() <= kSearched) {
      const std::string& key = members.back().first;
      return std::none_of(members.begin(), members.end() - 1,
                          [&](const Json::Member& member) { return member.first == key; });
    }
    if (2 * members.size() > slots_.size())
      grow(members);
    return insert(members, members.size() - 1);
  }

 private:
  static constexpr size_t kSearched = 16;

  static uint64_t hash(const std::string& key) {
    static const uint64_t seed = std::random_device()();
    return XXH3_64bits_withSeed(key.data(), key.size(), seed);
  }

  bool insert(const Json::Object& members, size_t index) {
    const size_t mask = slots_.size() - 1;
    const std::string& key = members[index].first;
    size_t slot = hash(key) & mask;
    while (slots_[slot] != 0) {
      if (members[slots_[slot] - 1].first == key)
        return false;
      slot = (slot + 1) & mask;
    }
    slots_[slot] = static_cast<uint32_t>(index + 1);
    return true;
  }

  void grow(const Json::Object& members) {
    slots_.assign(std::max<size_t>(64, 2 * slots_.size()), 0);
    for (size_t i = 0; i + 1 < members.size(); ++i)
      insert(members, i);
  }

  std::vector<uint32_t> slots_;  // member number + 1, 0 = free; a power of two of them
};

class TreeBuilder {
 public:
  TreeBuilder(std::string_view text, const std::string& name, const JsonLimits& limits)
      : text_(text), name_(name), limits_(limits), position_(text.data()) {}

  const char** position() { return &position_; }
  Json take() { return std::move(root_); }

  bool null() { return add(Json()); }
  bool boolean(bool value) { return add(Json(value)); }
  /// Of numbers with a minus. "-0" is no integer, as in the reference reader of safetensors.
  bool number_integer(int64_t value) { return add(value == 0 ? Json(-0.0) : Json(value)); }
  bool number_unsigned(uint64_t value) {
    if (value > static_cast<uint64_t>(INT64_MAX))
      return add(Json(static_cast<double>(value)));
    return add(Json(static_cast<int64_t>(value)));
  }
  bool number_float(double value, const std::string&) { return add(Json(value)); }
  bool string(std::string& value) { return add(Json(std::move(value))); }
  bool binary(std::vector<uint8_t>&) { fail("binary data is not JSON"); }

  bool start_object(size_t) { return open(Json::object()); }
  bool start_array(size_t) { return open(Json::array()); }
  bool end_object() { return close(); }
  bool end_array() { return close(); }

  bool key(std::string& value) {
    Frame& frame = stack_.back();
    Json::Object& members = frame.container->as_object();
    members.emplace_back(std::move(value), Json());
    if (!frame.keys.insert_last(members))
      fail("duplicate key " + quote_text(members.back().first) + ". Keep one of the two");
    return true;
  }

  bool parse_error(size_t position, const std::string&, const nlohmann::detail::exception& error) {
    std::string what = error.what();
    // "[json.exception.parse_error.101] parse error at line 1, column 5: ..." keeps its last part.
    if (const size_t bracket = what.find("] "); bracket != std::string::npos)
      what.erase(0, bracket + 2);
    if (what.starts_with("parse error")) {
      if (const size_t colon = what.find(": "); colon != std::string::npos)
        what.erase(0, colon + 2);
    }
    const std::string text = quote_text(what, 300);
    fail_at(std::min(position, text_.size()),
            "expected JSON, found what is none: " + text.substr(1, text.size() - 2) +
                ". Correct it there, or fetch the file again");
  }

  [[noreturn]] void fail_at(size_t offset, const std::string& what) const {
    const std::string_view before = text_.substr(0, offset);
    const auto line = 1 + std::count(before.begin(), before.end(), '\n');
    const size_t newline = before.rfind('\n');
    const size_t column = newline == std::string_view::npos ? offset : offset - newline - 1;
    throw DataError(name_ + ": line " + std::to_string(line) + ", column " +
                    std::to_string(column) + ": " + what + ".");
  }

  [[noreturn]] void fail(const std::string& what) const {
    fail_at(static_cast<size_t>(position_ - text_.data()), what);
  }

 private:
  struct Frame {
    Json* container;
    KeySet keys;
  };

  void count_node() {
    if (++nodes_ > limits_.max_nodes)
      fail("more than " + std::to_string(limits_.max_nodes) + " values");
  }

  // Where the next value belongs. A pointer into a growing array stays valid because only the
  // innermost open container grows.
  Json* place(Json value) {
    count_node();
    if (stack_.empty()) {
      root_ = std::move(value);
      return &root_;
    }
    Json& container = *stack_.back().container;
    if (container.is_array()) {
      Json::Array& values = container.as_array();
      values.push_back(std::move(value));
      return &values.back();
    }
    Json& slot = container.as_object().back().second;
    slot = std::move(value);
    return &slot;
  }

  bool add(Json value) {
    place(std::move(value));
    return true;
  }

  bool open(Json container) {
    if (static_cast<int>(stack_.size()) >= limits_.max_depth)
      fail("nested deeper than " + std::to_string(limits_.max_depth) + " levels");
    Json* placed = place(std::move(container));
    stack_.push_back({placed, {}});
    return true;
  }

  bool close() {
    stack_.pop_back();
    return true;
  }

  std::string_view text_;
  const std::string& name_;
  JsonLimits limits_;
  const char* position_;
  Json root_;
  std::vector<Frame> stack_;
  int64_t nodes_ = 0;
};
}  // namespace

Json parse_json(std::string_view text, const std::string& name, const JsonLimits& limits) {
  if (static_cast<int64_t>(text.size()) > limits.max_bytes)
    throw DataError(name + ": expected at most " + std::to_string(limits.max_bytes) +
                    " bytes of JSON, found " + std::to_string(text.size()) + ".");
  TreeBuilder builder(text, name, limits);
  // The engine would skip a byte order mark and take a NUL byte for the end of the text.
  if (text.starts_with("\xef\xbb\xbf"))
    builder.fail_at(0, "expected JSON, found a byte order mark. Save the file without it");
  if (const size_t nul = text.find('\0'); nul != std::string_view::npos)
    builder.fail_at(nul, "expected JSON, found a NUL byte. Check that it is the right file");
  const char* const end = text.data() + text.size();
  nlohmann::json::sax_parse(TrackingIterator(text.data(), builder.position()),
                            TrackingIterator(end, builder.position()), &builder);
  return builder.take();
}

}  // namespace shardtune::io
