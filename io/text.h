// Small helpers for text of unknown origin: the UTF-8 check and quoting for error messages.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace shardtune::io {

/// Offset of the first byte that is not well-formed UTF-8 (overlong forms and surrogates count as
/// ill-formed), or nullopt.
std::optional<int64_t> find_invalid_utf8(std::string_view text);

/// `text` in double quotes, safe for a terminal: control and non-UTF-8 bytes as \xNN, cut after
/// about `max_bytes` with "...".
std::string quote_text(std::string_view text, size_t max_bytes = 80);

}  // namespace shardtune::io
