// Ids back to bytes: what each token stands for, and how the reference's decoders join them.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace shardtune::data {

/// How token texts are read. kByteLevel: in the byte alphabet. kText: as they are, with a mark for
/// spaces, and <0xHH> for a byte.
enum class TokenAlphabet { kByteLevel, kText };

struct DecoderOptions {
  enum class LeadingSpace {
    kKeep,
    kStripOne,        // Strip{" ", start 1} of the whole text
    kStripFirstToken  // Metaspace: no mark of the first token becomes a space
  };
  TokenAlphabet alphabet = TokenAlphabet::kByteLevel;
  std::string space_mark;      // kText: becomes a space; "" = none does
  bool byte_fallback = false;  // kText: <0xHH> tokens are bytes
  LeadingSpace leading_space = LeadingSpace::kKeep;
};

/// Value of "<0xHH>", -1 for any other text.
int byte_of_token_text(std::string_view text);

class TokenDecoder {
 public:
  TokenDecoder() = default;
  TokenDecoder(const std::vector<std::string>& texts, DecoderOptions options);

  /// Bytes of one token, for streaming.
  const std::string& bytes(std::size_t id) const { return bytes_[id]; }
  /// The tokens joined; invalid UTF-8 becomes U+FFFD. Ids must be of the vocabulary.
  std::string decode(const std::vector<int32_t>& ids) const;

 private:
  DecoderOptions options_;
  std::vector<std::string> bytes_;
  std::vector<uint8_t> is_byte_;
};

}  // namespace shardtune::data
