// tokenizer.json to a TokenizerSpec. Only what byte-level BPE needs is taken; every other
// normalizer, pre-tokenizer, model and post-processor is refused by name.
#pragma once

#include <string>

#include "data/tokenizer_spec.h"

namespace shardtune::data {

/// Errors  DataError "name: key: ...": damaged; UnsupportedError: a part that is not there yet
TokenizerSpec parse_tokenizer_json(const std::string& text, const std::string& name);

}  // namespace shardtune::data
