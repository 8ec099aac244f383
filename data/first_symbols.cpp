#include "data/first_symbols.h"

#include <algorithm>

#include "data/text_split.h"

namespace shardtune::data {
namespace {

constexpr int32_t kCommon = 0x3000;

}  // namespace

FirstSymbols::FirstSymbols(Options options) : options_(std::move(options)) {
  if (options_.alphabet == TokenAlphabet::kByteLevel)
    return;
  common_.assign(kCommon, -1);
  for (const auto& [code_point, id] : options_.character_ids) {
    if (code_point < kCommon)
      common_[static_cast<std::size_t>(code_point)] = id;
  }
}

int32_t FirstSymbols::character_id(int32_t code_point) const {
  if (code_point < 0)
    return -1;
  if (code_point < kCommon)
    return common_[static_cast<std::size_t>(code_point)];
  const auto found = options_.character_ids.find(code_point);
  return found != options_.character_ids.end() ? found->second : -1;
}

void FirstSymbols::append(std::string_view piece, std::vector<int32_t>& symbols) const {
  Cursor at;
  append_some(piece, piece.size(), at, symbols);
}

void FirstSymbols::append_some(std::string_view piece, std::size_t num_bytes, Cursor& at,
                               std::vector<int32_t>& symbols) const {
  const std::size_t end = at.offset + std::min(num_bytes, piece.size() - at.offset);
  symbols.reserve(symbols.size() + end - at.offset);
  if (options_.alphabet == TokenAlphabet::kByteLevel)
    append_bytes(piece, end, at, symbols);
  else
    append_characters(piece, end, at, symbols);
}

void FirstSymbols::append_bytes(std::string_view piece, std::size_t end, Cursor& at,
                                std::vector<int32_t>& symbols) const {
  bool in_unknown_run = at.in_unknown_run;
  for (const char byte : piece.substr(at.offset, end - at.offset)) {
    const int32_t id = options_.byte_ids[static_cast<unsigned char>(byte)];
    if (id >= 0) {
      symbols.push_back(id);
      in_unknown_run = false;
    } else if (options_.unknown_id >= 0) {
      if (!in_unknown_run || !options_.fuse_unknown)
        symbols.push_back(options_.unknown_id);
      in_unknown_run = true;
    }
  }
  at = {end, in_unknown_run};
}

void FirstSymbols::append_characters(std::string_view piece, std::size_t end, Cursor& at,
                                     std::vector<int32_t>& symbols) const {
  bool in_unknown_run = at.in_unknown_run;
  std::size_t offset = at.offset;
  while (offset < end) {
    const CodePoint point = decode_code_point(piece, offset);
    const std::string_view bytes = piece.substr(offset, static_cast<std::size_t>(point.length));
    offset += bytes.size();
    const auto byte_id = [&](char byte) {
      return options_.byte_ids[static_cast<unsigned char>(byte)];
    };
    if (const int32_t id = character_id(point.value); id >= 0) {
      symbols.push_back(id);
    } else if (std::all_of(bytes.begin(), bytes.end(),
                           [&](char byte) { return byte_id(byte) >= 0; })) {
      for (const char byte : bytes)
        symbols.push_back(byte_id(byte));
    } else {
      if (options_.unknown_id >= 0 && !(in_unknown_run && options_.fuse_unknown))
        symbols.push_back(options_.unknown_id);
      in_unknown_run = true;
      continue;
    }
    in_unknown_run = false;
  }
  at = {offset, in_unknown_run};
}

}  // namespace shardtune::data
