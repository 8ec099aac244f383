// A family as GGUF has it: its keys, and what its tensors are called and how they are ordered.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "io/gguf_write.h"
#include "models/model_config.h"

namespace shardtune::models {

/// "llama", "qwen2", ...: what general.architecture says of such a model.
/// UnsupportedError: a rope scaling that llama.cpp does not apply to such a model
std::string gguf_architecture(const ModelConfig& config);
/// general.architecture and the keys under it.
/// UnsupportedError: as above, or something else that llama.cpp does not compute
std::vector<io::GgufPair> gguf_keys(const ModelConfig& config);
/// "model.layers.3.self_attn.q_proj.weight" -> "blk.3.attn_q.weight"; "" when GGUF has no such
/// name.
std::string gguf_tensor_name(const ModelConfig& config, const std::string& name);
/// Whether the rows of this tensor stand in interleaved-pair order in GGUF (q and k of llama).
bool has_interleaved_rows(const ModelConfig& config, const std::string& name);
/// Of such a tensor, the row in Hugging Face's order (halves) that a row of the file holds: row
/// h*D + 2*i + b of the file is row h*D + b*D/2 + i.
inline int64_t halves_row(int64_t file_row, int64_t head_dim) {
  const int64_t within = file_row % head_dim;
  return file_row - within + within % 2 * (head_dim / 2) + within / 2;
}
/// The other way: where the file has a row.
inline int64_t interleaved_row(int64_t row, int64_t head_dim) {
  const int64_t within = row % head_dim;
  const int64_t half = head_dim / 2;
  return row - within + within % half * 2 + within / half;
}

}  // namespace shardtune::models
