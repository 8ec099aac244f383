// Source  safetensors 0.8.0 (README "Format" and its validation)
#include "io/safetensors_parse.h"

#include <algorithm>

#include "core/checked.h"
#include "io/json.h"
#include "io/reader.h"
#include "io/tensor_table.h"
#include "io/text.h"

namespace shardtune::io {

namespace {
constexpr uint64_t kMaxHeaderBytes = 100'000'000;

class HeaderParser {
 public:
  HeaderParser(const std::string& name, std::span<const std::byte> bytes)
      : reader_(name, bytes), name_(name) {}

  std::vector<SafetensorsEntry> parse() {
    const auto length = reader_.read<uint64_t>("header length");
    if (length > kMaxHeaderBytes)
      fail_at(0, "header length: expected at most 100000000, found " + std::to_string(length) +
                     ". This is not a safetensors file, or it is damaged; fetch it again.");
    header_ = reader_.take_text(length, "header");
    data_start_ = reader_.offset();
    if (const auto bad = find_invalid_utf8(header_))
      fail_at(8 + *bad, "header: expected UTF-8, found the byte " +
                            quote_text(header_.substr(static_cast<size_t>(*bad), 1)) + ".");
    const Json root =
        parse_json(header_, name_ + ": byte 8: header",
                   {.max_bytes = static_cast<int64_t>(kMaxHeaderBytes), .max_nodes = 4'000'000});
    if (!root.is_object())
      fail_at(8, "header: expected an object, found a value of type " +
                     std::string(root.type_name()) + ".");
    for (const auto& [key, value] : root.as_object()) {
      if (key == "__metadata__")
        check_metadata(value);
      else
        entries_.push_back(read_entry(key, value));
    }
    check_coverage();
    return std::move(entries_);
  }

 private:
  [[noreturn]] void fail_at(int64_t offset, const std::string& message) const {
    throw DataError(name_ + ": byte " + std::to_string(offset) + ": " + message);
  }

  // Points at the key in the header; escapes in it may hide it, then at the header's start.
  [[noreturn]] void fail_key(const std::string& key, const std::string& message) const {
    const size_t found = header_.find(Json(key).dump());
    fail_at(8 + static_cast<int64_t>(found == std::string_view::npos ? 0 : found),
            quote_text(key) + ": " + message + ".");
  }

  void check_metadata(const Json& value) const {
    if (!value.is_object())
      fail_key("__metadata__",
               "expected an object, found a value of type " + std::string(value.type_name()));
    for (const auto& [key, text] : value.as_object()) {
      if (!text.is_string())
        fail_key("__metadata__", quote_text(key) + ": expected a string, found a value of type " +
                                     std::string(text.type_name()));
    }
  }

  std::vector<int64_t> read_sizes(const std::string& tensor, const Json* value,
                                  const std::string& what) const {
    if (value == nullptr || !value->is_array())
      fail_key(tensor, what + ": expected an array of integers, found " +
                           (value == nullptr ? "nothing" : std::string(value->type_name())));
    std::vector<int64_t> sizes;
    for (const Json& element : value->as_array()) {
      if (!element.is_integer() || element.as_integer() < 0)
        fail_key(tensor,
                 what + ": expected integers from 0 to 2^63 - 1, found " +
                     (element.is_number() ? element.dump() : std::string(element.type_name())));
      sizes.push_back(element.as_integer());
    }
    return sizes;
  }

  SafetensorsEntry read_entry(const std::string& key, const Json& value) const {
    if (!value.is_object())
      fail_key(key, "expected an object, found a value of type " + std::string(value.type_name()));
    const Json* dtype = value.find("dtype");
    const int64_t bits =
        dtype != nullptr && dtype->is_string() ? safetensors_bits(dtype->as_string()) : 0;
    if (bits == 0)
      fail_key(key, "dtype: expected a known dtype such as \"BF16\", found " +
                        (dtype == nullptr || !dtype->is_string() ? "none"
                                                                 : quote_text(dtype->as_string())) +
                        ". Fetch the file again, or save it in bfloat16 or float32");
    SafetensorsEntry entry{{key, dtype->as_string(), read_sizes(key, value.find("shape"), "shape")},
                           0};
    const std::vector<int64_t> range = read_sizes(key, value.find("data_offsets"), "data_offsets");
    if (range.size() != 2 || range[0] > range[1])
      fail_key(key, "data_offsets: expected [begin, end) with begin <= end, found " +
                        value.find("data_offsets")->dump().substr(0, 80));
    const auto numel = try_numel(entry.info.shape);
    const auto num_bits = numel ? try_mul(*numel, bits) : std::nullopt;
    if (!num_bits)
      fail_key(key, "shape: the size of " + shape_text(entry.info.shape).substr(0, 80) +
                        " does not fit 63 bits");
    if (*num_bits % 8 != 0 || *num_bits / 8 != range[1] - range[0])
      fail_key(key, "data_offsets: expected " + std::to_string(*num_bits / 8) + " bytes for " +
                        entry.info.dtype + " " + shape_text(entry.info.shape).substr(0, 80) +
                        ", found " + std::to_string(range[1] - range[0]));
    const auto offset = try_add(data_start_, range[0]);
    if (!offset || !try_add(data_start_, range[1]))
      fail_key(key, "data_offsets: past the end of the file");
    entry.info.num_bytes = range[1] - range[0];
    entry.offset = *offset;
    return entry;
  }

  // The tensors tile the data exactly: no hole, no overlap, nothing before or after.
  void check_coverage() {
    std::sort(entries_.begin(), entries_.end(), [](const auto& a, const auto& b) {
      return std::pair(a.offset, a.offset + a.info.num_bytes) <
             std::pair(b.offset, b.offset + b.info.num_bytes);
    });
    int64_t end = data_start_;
    for (const SafetensorsEntry& entry : entries_) {
      if (entry.offset != end)
        fail_at(entry.offset, quote_text(entry.info.name) +
                                  (entry.offset > end ? ": expected no gap before its data"
                                                      : ": its data overlaps another tensor's") +
                                  ", which should start at byte " + std::to_string(end) +
                                  ". The file is damaged; fetch it again.");
      end += entry.info.num_bytes;
    }
    const int64_t file_end = data_start_ + reader_.remaining();
    if (end != file_end)
      fail_at(std::min(end, file_end),
              "expected the file to end at byte " + std::to_string(end) +
                  ", as its header says, found " + std::to_string(file_end) + " bytes. It is " +
                  (end > file_end ? "truncated" : "damaged") + "; fetch it again.");
  }

  BoundedReader reader_;
  const std::string& name_;
  std::string_view header_;
  int64_t data_start_ = 0;
  std::vector<SafetensorsEntry> entries_;
};
}  // namespace

int64_t safetensors_bits(std::string_view dtype) {
  static constexpr std::pair<std::string_view, int64_t> kBits[] = {
      {"BOOL", 8},        {"U8", 8},         {"I8", 8},   {"F8_E4M3", 8}, {"F8_E5M2", 8},
      {"F8_E8M0", 8},     {"U16", 16},       {"I16", 16}, {"F16", 16},    {"BF16", 16},
      {"U32", 32},        {"I32", 32},       {"F32", 32}, {"U64", 64},    {"I64", 64},
      {"F64", 64},        {"C64", 64},       {"F4", 4},   {"F6_E2M3", 6}, {"F6_E3M2", 6},
      {"F8_E4M3FNUZ", 8}, {"F8_E5M2FNUZ", 8}};
  for (const auto& [name, bits] : kBits) {
    if (name == dtype)
      return bits;
  }
  return 0;
}

std::vector<SafetensorsEntry> parse_safetensors(const std::string& name,
                                                std::span<const std::byte> bytes) {
  return HeaderParser(name, bytes).parse();
}

}  // namespace shardtune::io
