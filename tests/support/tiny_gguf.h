// The tiny llama as one GGUF file: rows of blocks with random codes and finite scales, in whatever
// types a test asks for, a byte-level tokenizer and the chatml template's tokens.
#pragma once

#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "core/dtype.h"
#include "core/rng.h"
#include "io/float_encode.h"
#include "io/gguf_types.h"
#include "io/gguf_write.h"
#include "tests/trainer/tiny_model.h"

namespace shardtune::testing {

/// The type of a tensor by its GGUF name and row length.
using GgufTypeOf = std::function<std::string(const std::string& name, int64_t row_length)>;

struct TinyGgufShape {
  int64_t hidden = 256;       // one super-block of the K types
  int64_t intermediate = 64;  // ffn_down: blocks of 32 only
  int64_t layers = 2;
  int64_t heads = 4;
  int64_t kv_heads = 2;
  int64_t head_dim = 16;
  int64_t vocab = 260;
};

/// Bytes of num_blocks blocks whose F16 scales are near `scale`; F32, F16 and BF16 are values.
inline std::string random_blocks(const io::GgufType& type, int64_t num_blocks, float scale,
                                 float offset, const std::string& key) {
  const CounterRng rng(mix_key(11, key));
  std::string bytes(static_cast<size_t>(num_blocks * type.block_bytes), '\0');
  uint64_t draw = 0;
  const auto put16 = [&](int64_t at, float value, bool is_bf16) {
    const uint16_t bits = is_bf16 ? BFloat16(value).bits : io::encode_half(value);
    std::memcpy(bytes.data() + at, &bits, 2);
  };
  const std::string_view name = type.name;
  for (int64_t block = 0; block < num_blocks; ++block) {
    const int64_t at = block * type.block_bytes;
    const float value = offset + scale * rng.normal(draw++);
    if (name == "F32") {
      std::memcpy(bytes.data() + at, &value, 4);
      continue;
    }
    if (name == "F16" || name == "BF16") {
      put16(at, value, name == "BF16");
      continue;
    }
    for (int64_t i = 0; i < type.block_bytes; ++i)
      bytes[static_cast<size_t>(at + i)] = static_cast<char>(rng.bits(draw++) & 0xff);
    // d, then what is taken from or added to d * q, so that values lie around 0.
    const bool is_k = name.ends_with("_K");
    const float step = scale / (is_k ? 300.0f : name == "Q8_0" || name == "IQ4_NL" ? 64.0f : 6.0f);
    if (name == "Q6_K") {
      put16(at + 208, step, false);
    } else if (name == "Q3_K") {
      put16(at + 108, step, false);
    } else if (name == "Q2_K") {
      put16(at + 80, step * 4, false);
      put16(at + 82, step * 4, false);
    } else {
      put16(at, step, false);
      if (is_k)
        put16(at + 2, step * 8, false);
      else if (name == "Q4_1" || name == "Q5_1")
        put16(at + 2, -step * (name == "Q4_1" ? 7.5f : 15.5f), false);
    }
  }
  return bytes;
}

inline std::vector<io::GgufPair> tiny_gguf_metadata(const TinyGgufShape& shape) {
  const auto count = [](int64_t value) { return static_cast<uint32_t>(value); };
  std::vector<std::string> tokens;
  for (int byte = 0; byte < 256; ++byte)
    tokens.push_back(byte_token(byte));
  for (const char* special : {"<|endoftext|>", "<|im_start|>", "<|im_end|>"})
    tokens.emplace_back(special);
  std::vector<int32_t> kinds(tokens.size(), 1);
  std::fill(kinds.end() - 3, kinds.end(), 3);
  return {io::gguf_string("general.architecture", "llama"),
          io::gguf_uint32("llama.block_count", count(shape.layers)),
          io::gguf_uint32("llama.context_length", 512),
          io::gguf_uint32("llama.embedding_length", count(shape.hidden)),
          io::gguf_uint32("llama.feed_forward_length", count(shape.intermediate)),
          io::gguf_uint32("llama.attention.head_count", count(shape.heads)),
          io::gguf_uint32("llama.attention.head_count_kv", count(shape.kv_heads)),
          io::gguf_uint32("llama.attention.key_length", count(shape.head_dim)),
          io::gguf_uint32("llama.attention.value_length", count(shape.head_dim)),
          io::gguf_uint32("llama.rope.dimension_count", count(shape.head_dim)),
          io::gguf_float32("llama.rope.freq_base", 10000.0f),
          io::gguf_float32("llama.attention.layer_norm_rms_epsilon", 1e-5f),
          io::gguf_string("tokenizer.ggml.model", "gpt2"),
          io::gguf_string("tokenizer.ggml.pre", "gpt-2"),
          io::gguf_strings("tokenizer.ggml.tokens", tokens),
          io::gguf_int32s("tokenizer.ggml.token_type", kinds),
          io::gguf_strings("tokenizer.ggml.merges", {}),
          io::gguf_uint32("tokenizer.ggml.eos_token_id", 258),
          io::gguf_uint32("tokenizer.ggml.padding_token_id", 256)};
}

/// Writes the file. Norms are F32.
inline void make_tiny_gguf(const fs::path& path, const GgufTypeOf& type_of,
                           const TinyGgufShape& shape = {}) {
  std::vector<io::TensorToWrite> tensors;
  const auto add = [&](const std::string& name, std::vector<int64_t> extents, float scale,
                       float offset) {
    const std::string type = extents.size() == 1 ? "F32" : type_of(name, extents.back());
    const io::GgufType* const blocks = io::find_gguf_type(type);
    const int64_t numel = extents.size() == 1 ? extents[0] : extents[0] * extents[1];
    const std::string bytes =
        random_blocks(*blocks, numel / blocks->block_size, scale, offset, name);
    tensors.push_back(
        {name, type, std::move(extents), [bytes](const auto& sink) { sink(io::as_bytes(bytes)); }});
  };
  const auto matrix = [&](const std::string& name, int64_t out, int64_t in) {
    add(name + ".weight", {out, in}, 0.08f, 0.0f);
  };
  const auto norm = [&](const std::string& name) {
    add(name + ".weight", {shape.hidden}, 0.05f, 1.0f);
  };
  matrix("token_embd", shape.vocab, shape.hidden);
  for (int64_t i = 0; i < shape.layers; ++i) {
    const std::string layer = "blk." + std::to_string(i) + ".";
    norm(layer + "attn_norm");
    norm(layer + "ffn_norm");
    matrix(layer + "attn_q", shape.heads * shape.head_dim, shape.hidden);
    matrix(layer + "attn_k", shape.kv_heads * shape.head_dim, shape.hidden);
    matrix(layer + "attn_v", shape.kv_heads * shape.head_dim, shape.hidden);
    matrix(layer + "attn_output", shape.hidden, shape.heads * shape.head_dim);
    matrix(layer + "ffn_gate", shape.intermediate, shape.hidden);
    matrix(layer + "ffn_up", shape.intermediate, shape.hidden);
    matrix(layer + "ffn_down", shape.hidden, shape.intermediate);
  }
  norm("output_norm");
  io::write_gguf(path, tiny_gguf_metadata(shape), tensors);
}

/// One type wherever its blocks divide a row, else `other`.
inline GgufTypeOf one_type(const std::string& type, const std::string& other = "Q8_0") {
  return [type, other](const std::string&, int64_t row_length) {
    return row_length % io::find_gguf_type(type)->block_size == 0 ? type : other;
  };
}

/// A mix as llama-quantize makes it of Q4_K_M: Q4_K, Q6_K for some, fall-backs for short rows.
inline std::string q4_k_m(const std::string& name, int64_t row_length) {
  if (row_length % 256 != 0)
    return name.find("ffn_down") != std::string::npos ? "Q5_1" : "Q5_0";
  const bool is_fine = name.find("attn_v") != std::string::npos || name == "token_embd.weight";
  return is_fine ? "Q6_K" : name.find("attn_k") != std::string::npos ? "Q5_K" : "Q4_K";
}

/// Every type that q4_k_m() leaves out, each on some linear.
inline std::string all_other_types(const std::string& name, int64_t row_length) {
  const auto is = [&](const char* part) { return name.find(part) != std::string::npos; };
  if (row_length % 256 != 0)
    return is("blk.0") ? "Q4_0" : "IQ4_NL";
  if (is("attn_q"))
    return is("blk.0") ? "Q2_K" : "F32";
  if (is("attn_k"))
    return is("blk.0") ? "Q3_K" : "BF16";
  if (is("attn_v"))
    return is("blk.0") ? "Q4_1" : "F16";
  return "Q8_0";
}

}  // namespace shardtune::testing
