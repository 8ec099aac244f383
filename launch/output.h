// Standard output: results only, never logs. With --json it gets exactly one JSON document.
#pragma once

#include <string_view>

#include "io/json.h"

namespace shardtune::launch {

/// Writes to standard output; WriteError when it cannot (disk full, closed).
void print(std::string_view text);
/// One document and a newline.
void print_json(const io::Json& document);
/// Brings everything to the file or pipe; call at the end of a verb and after streamed pieces.
void flush_output();

}  // namespace shardtune::launch
