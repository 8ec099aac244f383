// tokenizer.model: the few fields of SentencePiece's protobuf that a BPE vocabulary needs, read
// with every length checked (src/sentencepiece_model.proto of google/sentencepiece).
#include <cstring>

#include "core/error.h"
#include "data/sentencepiece.h"
#include "data/text_split.h"

namespace shardtune::data {
namespace {

/// Fields of one message, one after the other.
class ProtoReader {
 public:
  ProtoReader(std::string_view bytes, const std::string& name) : bytes_(bytes), name_(name) {}

  /// Goes to the next field; false at the end.
  bool next() {
    if (at_ == bytes_.size())
      return false;
    const uint64_t key = varint();
    field_ = key >> 3;
    wire_type_ = static_cast<int>(key & 7);
    value_ = 0;
    data_ = {};
    switch (wire_type_) {
      case 0:
        value_ = varint();
        break;
      case 1:
        take(8);
        break;
      case 2:
        data_ = take(varint());
        break;
      case 5:
        data_ = take(4);
        break;
      default:
        damaged("a field of a known kind", "kind " + std::to_string(wire_type_));
    }
    return true;
  }

  uint64_t field() const { return field_; }
  uint64_t number() const {
    expect(0);
    return value_;
  }
  std::string_view data() const {
    expect(2);
    return data_;
  }
  float real() const {
    expect(5);
    float value;
    std::memcpy(&value, data_.data(), 4);
    return value;
  }

  [[noreturn]] void damaged(const std::string& expected, const std::string& found) const {
    throw DataError(name_ + ": byte " + std::to_string(at_) + " of a message: expected " +
                    expected + ", found " + found +
                    ". This is no SentencePiece model, or a damaged one: fetch the file again.");
  }

 private:
  void expect(int wire_type) const {
    if (wire_type_ != wire_type)
      damaged("field " + std::to_string(field_) + " of kind " + std::to_string(wire_type),
              "kind " + std::to_string(wire_type_));
  }
  uint64_t varint() {
    uint64_t value = 0;
    for (int shift = 0; shift < 64; shift += 7) {
      const auto byte = static_cast<unsigned char>(take(1)[0]);
      value |= static_cast<uint64_t>(byte & 0x7F) << shift;
      if (byte < 0x80)
        return value;
    }
    damaged("a number of at most 64 bits", "a longer one");
  }
  std::string_view take(uint64_t count) {
    if (count > bytes_.size() - at_)
      damaged(std::to_string(count) + " bytes", std::to_string(bytes_.size() - at_));
    const std::string_view part = bytes_.substr(at_, count);
    at_ += count;
    return part;
  }

  std::string_view bytes_;
  const std::string& name_;
  std::size_t at_ = 0;
  uint64_t field_ = 0;
  int wire_type_ = 0;
  uint64_t value_ = 0;
  std::string_view data_;
};

void read_piece(std::string_view bytes, const std::string& name, SentencePieces& pieces) {
  std::string text;
  float score = 0.0F;
  uint64_t type = 1;
  for (ProtoReader piece(bytes, name); piece.next();) {
    if (piece.field() == 1)
      text = piece.data();
    else if (piece.field() == 2)
      score = piece.real();
    else if (piece.field() == 3)
      type = piece.number();
  }
  const std::string where = name + ": pieces[" + std::to_string(pieces.texts.size()) + "]";
  if (text.empty() || text.size() > kMaxTokenBytes || text != replace_invalid_utf8(text))
    throw DataError(where + ": expected 1 to " + std::to_string(kMaxTokenBytes) +
                    " bytes of UTF-8, found " + std::to_string(text.size()) +
                    " bytes. Fetch the file again.");
  if (type < 1 || type > 6)
    throw DataError(where + ": expected a type from 1 to 6, found " + std::to_string(type) +
                    ". Fetch the file again.");
  pieces.texts.push_back(std::move(text));
  pieces.scores.push_back(score);
  pieces.types.push_back(static_cast<PieceType>(type));
}

[[noreturn]] void not_there(const std::string& name, const std::string& what) {
  throw UnsupportedError(name + ": " + what + " is not there yet, see docs/status.md. Save the " +
                         "tokenizer as tokenizer.json if it is a BPE one.");
}

void read_trainer(std::string_view bytes, const std::string& name) {
  uint64_t model_type = 1;  // unigram
  for (ProtoReader trainer(bytes, name); trainer.next();) {
    if (trainer.field() == 3)
      model_type = trainer.number();
  }
  if (model_type != 2)
    not_there(name, model_type == 1 ? "a unigram model"
                                    : "a model of type " + std::to_string(model_type));
}

void read_normalizer_spec(std::string_view bytes, const std::string& name, SentencePieces& pieces) {
  bool removes_spaces = true;  // the message's default
  for (ProtoReader normalizer(bytes, name); normalizer.next();) {
    if (normalizer.field() == 2 && !normalizer.data().empty())
      not_there(name, "a map of characters (normalizer_spec.precompiled_charsmap)");
    if (normalizer.field() == 3)
      pieces.add_dummy_prefix = normalizer.number() != 0;
    if (normalizer.field() == 4)
      removes_spaces = normalizer.number() != 0;
    if (normalizer.field() == 5 && normalizer.number() == 0)
      not_there(name, "a vocabulary with plain spaces (escape_whitespaces: false)");
  }
  if (removes_spaces)
    not_there(name, "leaving out repeated spaces (remove_extra_whitespaces)");
}

}  // namespace

SentencePieces parse_sentencepiece_model(const std::string& bytes, const std::string& name) {
  SentencePieces pieces;
  bool has_trainer = false;
  bool has_normalizer = false;
  for (ProtoReader model(bytes, name); model.next();) {
    if (model.field() == 1) {
      if (pieces.texts.size() >= static_cast<std::size_t>(kMaxVocabulary))
        throw DataError(name + ": expected at most " + std::to_string(kMaxVocabulary) +
                        " pieces, found more. Fetch the file again.");
      read_piece(model.data(), name, pieces);
    } else if (model.field() == 2) {
      has_trainer = true;
      read_trainer(model.data(), name);
    } else if (model.field() == 3) {
      has_normalizer = true;
      read_normalizer_spec(model.data(), name, pieces);
    }
  }
  if (pieces.texts.empty() || !has_trainer || !has_normalizer)
    throw DataError(name + ": expected pieces, trainer_spec and normalizer_spec, found " +
                    std::to_string(pieces.texts.size()) + " pieces" +
                    (has_trainer ? "" : ", no trainer_spec") +
                    (has_normalizer ? "" : ", no normalizer_spec") +
                    ". This is no SentencePiece model, or a damaged one: fetch the file again.");
  return pieces;
}

}  // namespace shardtune::data
