// A tokenizer.json that is being read: its name, and members with their errors.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "data/tokenizer_spec.h"
#include "io/json.h"

namespace shardtune::data {

struct TokenizerDocument {
  std::string name;
  const io::Json& root;
  int64_t max_ids = 0;

  [[noreturn]] void damaged(const std::string& key, const std::string& what) const;
  [[noreturn]] void not_there(const std::string& key, const std::string& what) const;

  bool flag(const io::Json& object, const std::string& path, const std::string& key,
            bool otherwise) const;
  const std::string& text(const io::Json& object, const std::string& path,
                          const std::string& key) const;
  /// Flattens Sequence into the list of its steps, each of which has a type.
  std::vector<const io::Json*> steps_of(const io::Json& step, const std::string& list_key) const;
};

/// Value of the key, nullptr when absent or null.
const io::Json* present(const io::Json& object, std::string_view key);

/// The parts of the document that say how text is treated, into the spec.
void read_normalizer(const TokenizerDocument& document, TokenizerSpec& spec);
void read_pre_tokenizer(const TokenizerDocument& document, TokenizerSpec& spec);
void read_decoder(const TokenizerDocument& document, TokenizerSpec& spec);

/// The same of a source without a tokenizer.json: `spec.pipeline` read into the spec.
void apply_pipeline(const std::string& name, TokenizerSpec& spec);

}  // namespace shardtune::data
