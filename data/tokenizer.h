// Text to token ids and back: byte-level BPE and SentencePiece's BPE, from GGUF metadata,
// tokenizer.json or tokenizer.model; other kinds are refused by name. Ids equal those of
// tokenizers.Tokenizer.from_file (FORMATS section 3).
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "data/split_step.h"
#include "io/gguf.h"

namespace shardtune::data {

/// kParse: added/special tokens written in the text become their ids (as the reference does).
/// kPlain: the text is data of a user; special tokens in it are encoded as ordinary characters.
enum class SpecialTokens { kParse, kPlain };
/// Whether the tokenizer's own BOS/EOS (post-processor, add_bos_token) is added.
enum class AddedEnds { kAsTokenizer, kNone };

struct EncodeOptions {
  SpecialTokens special = SpecialTokens::kParse;
  AddedEnds ends = AddedEnds::kAsTokenizer;
};

/// A run of text that is encoded together with its neighbours.
struct EncodePart {
  std::string_view text;
  SpecialTokens special = SpecialTokens::kParse;
};

struct DecodeOptions {
  bool skip_special = false;
};

class Tokenizer {
 public:
  virtual ~Tokenizer() = default;

  /// Linear in the text's length, thread safe. Any bytes are accepted.
  virtual std::vector<int32_t> encode(std::string_view text,
                                      const EncodeOptions& options) const = 0;
  /// Encodes the parts' texts laid end to end, as one text, but with the special tokens of the
  /// kParse parts only; no ends are added. So template and content merge as in the reference, while
  /// content cannot forge a control token. `start` says what stands before the first part.
  virtual std::vector<int32_t> encode_parts(const std::vector<EncodePart>& parts,
                                            TextStart start = TextStart::kOfInput) const = 0;
  /// Bytes of the tokens; invalid UTF-8 becomes U+FFFD. DataError: id outside the vocabulary.
  virtual std::string decode(const std::vector<int32_t>& ids,
                             const DecodeOptions& options) const = 0;
  /// Raw bytes of one token, for streaming (may be part of a character).
  virtual std::string token_bytes(int32_t id) const = 0;

  virtual int64_t vocab_size() const = 0;
  virtual std::optional<int32_t> token_id(std::string_view token) const = 0;
  virtual bool is_special(int32_t id) const = 0;
  virtual std::optional<int32_t> bos_id() const = 0;
  virtual std::optional<int32_t> eos_id() const = 0;
  virtual std::optional<int32_t> pad_id() const = 0;
  /// Ids that end a generated answer: eos plus end-of-turn tokens the model declares.
  virtual std::vector<int32_t> stop_ids() const = 0;
  /// Jinja text of the model's own chat template, "" when it has none.
  virtual const std::string& chat_template_text() const = 0;
  /// A tokenizer.json with the same ids (the file itself, or one built from GGUF metadata), and
  /// the matching tokenizer_config.json (PreTrainedTokenizerFast, DESIGN section 8.13).
  virtual std::string tokenizer_json() const = 0;
  virtual std::string tokenizer_config_json() const = 0;
};

/// `model` is a folder with tokenizer.json or tokenizer.model, or a .gguf file.
/// Errors  MissingInputError: no tokenizer; DataError: damaged; UnsupportedError: a kind of model,
///         normalizer or split pattern that is not there yet, named with docs/status.md
std::unique_ptr<Tokenizer> load_tokenizer(const std::string& model);
std::unique_ptr<Tokenizer> load_tokenizer_from_gguf(const io::GgufFile& file);
std::unique_ptr<Tokenizer> load_tokenizer_from_folder(const std::string& folder);

}  // namespace shardtune::data
