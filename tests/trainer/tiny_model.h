// A random model of some thousand weights as a Hugging Face folder (weights, config, byte-level
// tokenizer) and a small data set, for tests that run whole trainings in a second.
#pragma once

#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "core/rng.h"
#include "io/file.h"
#include "io/json.h"
#include "io/safetensors.h"

namespace shardtune::testing {

namespace fs = std::filesystem;

/// A folder that is removed at the end of the test.
class TempFolder {
 public:
  TempFolder() {
    std::string name = (fs::temp_directory_path() / "shardtune-XXXXXX").string();
    if (mkdtemp(name.data()) == nullptr)
      throw std::runtime_error("cannot create a temporary folder");
    path_ = name;
  }
  ~TempFolder() {
    std::error_code error;
    fs::remove_all(path_, error);
  }
  TempFolder(const TempFolder&) = delete;
  TempFolder& operator=(const TempFolder&) = delete;
  const fs::path& path() const { return path_; }

 private:
  fs::path path_;
};

inline void write_text(const fs::path& path, const std::string& text) {
  std::ofstream(path, std::ios::binary) << text;
}

inline std::string read_text(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

/// GPT-2's printable character of a byte, in UTF-8.
inline std::string byte_token(int byte) {
  const auto printable = [](int b) {
    return (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || (b >= 174 && b <= 255);
  };
  int code = byte;
  if (!printable(byte)) {
    code = 256;
    for (int b = 0; b < byte; ++b)
      code += printable(b) ? 0 : 1;
  }
  if (code < 0x80)
    return std::string(1, static_cast<char>(code));
  return {static_cast<char>(0xc0 | (code >> 6)), static_cast<char>(0x80 | (code & 0x3f))};
}

inline void write_tokenizer(const fs::path& folder) {
  io::Json vocab = io::Json::object();
  for (int byte = 0; byte < 256; ++byte)
    vocab.set(byte_token(byte), byte);
  io::Json added = io::Json::array();
  const char* specials[] = {"<|endoftext|>", "<|im_start|>", "<|im_end|>"};
  for (int i = 0; i < 3; ++i) {
    io::Json token = io::Json::object();
    token.set("id", 256 + i);
    token.set("content", specials[i]);
    token.set("special", true);
    added.push_back(std::move(token));
  }
  io::Json model = io::Json::object();
  model.set("type", "BPE");
  model.set("vocab", std::move(vocab));
  model.set("merges", io::Json::array());
  io::Json split = io::Json::object();
  split.set("type", "ByteLevel");
  split.set("add_prefix_space", false);
  io::Json decoder = split;
  io::Json json = io::Json::object();
  json.set("version", "1.0");
  json.set("added_tokens", std::move(added));
  json.set("pre_tokenizer", std::move(split));
  json.set("decoder", std::move(decoder));
  json.set("model", std::move(model));
  write_text(folder / "tokenizer.json", json.dump());
  write_text(folder / "tokenizer_config.json",
             R"({"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"})");
}

struct TinyShape {
  int64_t hidden = 64;
  int64_t intermediate = 288;  // 16 x 288: a LoRA tensor of more than one shard granule
  int64_t layers = 2;
  int64_t heads = 4;
  int64_t kv_heads = 2;
  int64_t vocab = 260;
  std::string model_type = "llama";  // | mistral (window of 20) | qwen2 (biases) | gpt2
};

inline io::TensorToWrite random_tensor(const std::string& name, std::vector<int64_t> shape,
                                       float scale, float offset) {
  return {name, "F32", shape, [=](const std::function<void(std::span<const std::byte>)>& sink) {
            const CounterRng rng(mix_key(7, name));
            std::vector<float> values(
                static_cast<size_t>(shape[0] * (shape.size() > 1 ? shape[1] : 1)));
            for (size_t i = 0; i < values.size(); ++i)
              values[i] = offset + scale * rng.normal(i);
            sink(std::as_bytes(std::span<const float>(values)));
          }};
}

/// GPT-2's tensors: layer norms with bias, [in,out] weights, learned positions.
inline std::vector<io::TensorToWrite> gpt2_tensors(const TinyShape& shape) {
  const int64_t hidden = shape.hidden;
  std::vector<io::TensorToWrite> tensors;
  const auto add = [&](const std::string& name, std::vector<int64_t> extents) {
    const bool is_norm = name.find(".ln_") != std::string::npos && name.ends_with("weight");
    tensors.push_back(random_tensor("transformer." + name, std::move(extents),
                                    is_norm ? 0.05f : 0.1f, is_norm ? 1.0f : 0.0f));
  };
  const auto norm = [&](const std::string& name) {
    add(name + ".weight", {hidden});
    add(name + ".bias", {hidden});
  };
  const auto linear = [&](const std::string& name, int64_t in, int64_t out) {
    add(name + ".weight", {in, out});
    add(name + ".bias", {out});
  };
  add("wte.weight", {shape.vocab, hidden});
  add("wpe.weight", {512, hidden});
  for (int64_t i = 0; i < shape.layers; ++i) {
    const std::string layer = "h." + std::to_string(i) + ".";
    norm(layer + "ln_1");
    linear(layer + "attn.c_attn", hidden, 3 * hidden);
    linear(layer + "attn.c_proj", hidden, hidden);
    norm(layer + "ln_2");
    linear(layer + "mlp.c_fc", hidden, shape.intermediate);
    linear(layer + "mlp.c_proj", shape.intermediate, hidden);
  }
  norm("ln_f");
  return tensors;
}

/// Writes the model folder.
inline void make_tiny_model(const fs::path& folder, const TinyShape& shape = {}) {
  fs::create_directories(folder);
  write_text(folder / "config.json",
             "{\"model_type\": \"" + shape.model_type +
                 R"(", "hidden_act": "silu", "sliding_window": 20, "hidden_size": )" +
                 std::to_string(shape.hidden) +
                 ", \"intermediate_size\": " + std::to_string(shape.intermediate) +
                 ", \"num_hidden_layers\": " + std::to_string(shape.layers) +
                 ", \"num_attention_heads\": " + std::to_string(shape.heads) +
                 ", \"num_key_value_heads\": " + std::to_string(shape.kv_heads) +
                 ", \"n_embd\": " + std::to_string(shape.hidden) +
                 ", \"n_inner\": " + std::to_string(shape.intermediate) + ", \"n_layer\": " +
                 std::to_string(shape.layers) + ", \"n_head\": " + std::to_string(shape.heads) +
                 ", \"n_positions\": 512" + ", \"vocab_size\": " + std::to_string(shape.vocab) +
                 R"(, "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
"tie_word_embeddings": true, "eos_token_id": 258})");
  write_tokenizer(folder);
  if (shape.model_type == "gpt2") {
    io::write_safetensors(folder / "model.safetensors", gpt2_tensors(shape));
    return;
  }
  const int64_t kv = shape.hidden / shape.heads * shape.kv_heads;
  std::vector<io::TensorToWrite> tensors;
  const auto matrix = [&](const std::string& name, int64_t out, int64_t in) {
    tensors.push_back(random_tensor(name, {out, in}, 0.1f, 0.0f));
  };
  matrix("model.embed_tokens.weight", shape.vocab, shape.hidden);
  for (int64_t i = 0; i < shape.layers; ++i) {
    const std::string layer = "model.layers." + std::to_string(i) + ".";
    matrix(layer + "self_attn.q_proj.weight", shape.hidden, shape.hidden);
    matrix(layer + "self_attn.k_proj.weight", kv, shape.hidden);
    matrix(layer + "self_attn.v_proj.weight", kv, shape.hidden);
    matrix(layer + "self_attn.o_proj.weight", shape.hidden, shape.hidden);
    matrix(layer + "mlp.gate_proj.weight", shape.intermediate, shape.hidden);
    matrix(layer + "mlp.up_proj.weight", shape.intermediate, shape.hidden);
    matrix(layer + "mlp.down_proj.weight", shape.hidden, shape.intermediate);
    for (const char* part : {"q", "k", "v"}) {
      const int64_t out = part[0] == 'q' ? shape.hidden : kv;
      if (shape.model_type == "qwen2")
        tensors.push_back(
            random_tensor(layer + "self_attn." + part + "_proj.bias", {out}, 0.1f, 0.0f));
    }
    for (const char* norm : {"input_layernorm.weight", "post_attention_layernorm.weight"})
      tensors.push_back(random_tensor(layer + norm, {shape.hidden}, 0.05f, 1.0f));
  }
  tensors.push_back(random_tensor("model.norm.weight", {shape.hidden}, 0.05f, 1.0f));
  io::write_safetensors(folder / "model.safetensors", std::move(tensors));
}

/// Completion records of different lengths.
inline void write_records(const fs::path& path, int count, int first = 0) {
  static const char* const kWords[] = {"red", "green", "blue", "one", "two", "three", "up", "down"};
  std::string text;
  for (int i = first; i < first + count; ++i) {
    std::string prompt = "say " + std::to_string(i);
    for (int k = 0; k < i % 4; ++k)
      prompt += std::string(" ") + kWords[(i + k) % 8];
    text += "{\"prompt\": \"" + prompt + "\", \"completion\": \"" + kWords[i % 8] + " " +
            kWords[(i * 3) % 8] + "\"}\n";
  }
  write_text(path, text);
}

}  // namespace shardtune::testing
