#include "tests/fuzz/parsers.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <filesystem>
#include <fstream>
#include <vector>

#include "core/error.h"
#include "data/dataset.h"
#include "data/tokenizer.h"
#include "io/file.h"
#include "io/gguf.h"
#include "io/json.h"
#include "io/safetensors.h"
#include "io/yaml_node.h"
#include "models/model_config.h"
#include "tests/fuzz/swap_blocks.h"
#include "trainer/verified_file.h"

namespace shardtune::fuzz {
namespace {

/// Ends the program where a parser contradicts itself: the fuzzer takes it for a crash.
void require(bool condition) {
  if (!condition)
    std::abort();
}

/// The first values of every tensor, as loading would read them.
void read_tensors(const io::TensorSource& source) {
  constexpr int64_t kMost = 4096;
  for (const io::TensorInfo& info : source.tensors()) {
    require(source.find(info.name) != nullptr);
    require(std::ssize(source.bytes(info)) == info.num_bytes);
    int64_t numel = 1;
    for (const int64_t extent : info.shape)
      numel *= extent;
    std::vector<float> values(static_cast<size_t>(std::min(numel, kMost)));
    try {
      source.check_readable(info);
      source.read_float32(info, 0, std::ssize(values), values.data());
    } catch (const Error&) {  // a type without a decoder, a range that cuts a block
    }
  }
}

void use_tokenizer(const data::Tokenizer& tokenizer) {
  const std::string text =
      "The 12 caf\xC3\xA9s\n\n  \xE2\x96\x81<|im_end|>\xF0\x9F\x98\x80\xFF <0x0A>";
  for (const auto special : {data::SpecialTokens::kParse, data::SpecialTokens::kPlain}) {
    const auto ids = tokenizer.encode(text, {special, data::AddedEnds::kAsTokenizer});
    for (const int32_t id : ids)
      require(id >= 0 && id < tokenizer.vocab_size());
    tokenizer.decode(ids, {});
  }
  for (const int32_t id : tokenizer.stop_ids())
    tokenizer.token_bytes(id);
  tokenizer.tokenizer_json();
}

void read_safetensors(const std::filesystem::path& file) {
  read_tensors(*io::open_safetensors(file));
}

void read_gguf(const std::filesystem::path& file) {
  const auto gguf = io::open_gguf(file);
  read_tensors(*gguf);
  try {
    models::parse_gguf_config(*gguf);
  } catch (const Error&) {  // the seeds' errors are those of the tokenizer
  }
  use_tokenizer(*data::load_tokenizer_from_gguf(*gguf));
}

void read_json(const std::filesystem::path& file) {
  const io::Json json = io::read_json_file(file.string());
  const std::string text = json.dump();
  require(io::parse_json(text, "dumped").dump() == text);
}

/// Asks as the program does: for some keys of each section (those asked for are remembered in a
/// list).
void visit(const io::YamlNode& node) {
  constexpr size_t kMostKeys = 200;
  std::vector<std::string> keys = node.keys();
  keys.resize(std::min(keys.size(), kMostKeys));
  for (const std::string& key : keys) {
    const io::YamlNode section = node.section(key);
    if (section.is_mapping())
      visit(section);
    node.string(key);
    node.integer(key, {-1e9, 1e9});
    node.number(key, {-1e9, 1e9});
    node.strings_or(key, {});
  }
}

void read_yaml(const std::filesystem::path& file) {
  io::ConfigErrors errors;
  const io::YamlNode root =
      io::YamlNode::parse(io::read_text_file(file, int64_t{1} << 30), file.string(), errors);
  errors.throw_if_any();
  if (root.is_mapping())
    visit(root);
  io::ConfigErrors again;
  io::YamlNode::parse(root.dump(), "dumped", again);
  require(again.messages().empty());
}

void read_tokenizer_folder(const std::filesystem::path& file) {
  use_tokenizer(*data::load_tokenizer_from_folder(file.parent_path().string()));
}

/// Beside a tokenizer.json and, in a folder of its own, beside a tokenizer.model. Both are tried;
/// the first error is told.
void read_tokenizer_config(const std::filesystem::path& file) {
  constexpr std::string_view kJson =
      R"({"added_tokens":[{"id":3,"content":"<|im_end|>","special":true}],)"
      R"("pre_tokenizer":{"type":"ByteLevel","add_prefix_space":false,"use_regex":true},)"
      R"("decoder":{"type":"ByteLevel"},)"
      R"("model":{"type":"BPE","vocab":{"a":0,"b":1,"ab":2},"merges":["a b"]}})";
  const std::filesystem::path folder = file.parent_path(), other = folder / "model";
  if (!std::filesystem::exists(other)) {
    std::filesystem::create_directory(other);
    std::ofstream(folder / "tokenizer.json", std::ios::binary) << kJson;
    std::filesystem::copy_file(
        std::string(SHARDTUNE_SOURCE_DIR) + "/tests/fuzz/seeds/tokenizer_model/valid",
        other / "tokenizer.model");
  }
  std::filesystem::copy_file(file, other / "tokenizer_config.json",
                             std::filesystem::copy_options::overwrite_existing);
  std::exception_ptr first;
  for (const std::filesystem::path& at : {folder, other}) {
    try {
      use_tokenizer(*data::load_tokenizer_from_folder(at.string()));
    } catch (const Error&) {
      first = first != nullptr ? first : std::current_exception();
    }
  }
  if (first != nullptr)
    std::rethrow_exception(first);
}

void read_data(const std::filesystem::path& file) {
  std::vector<std::string> formats = data::dataset_formats().names();
  for (const std::string& format : formats) {
    try {
      data::read_records({file.string(), format, {}});
    } catch (const Error&) {  // of another format; the seeds' errors are those of "auto"
    }
  }
  data::read_records({file.string(), "auto", {}});
}

namespace fs = std::filesystem;

void write(const fs::path& path, std::string_view text) {
  std::ofstream(path, std::ios::binary).write(text.data(), std::ssize(text));
}

/// The index of a folder that has two shards: "a" and "b" in the first, "c" in the second.
void read_shard_index(const fs::path& file) {
  const fs::path folder = file.parent_path();
  if (!fs::exists(folder / "model-1.safetensors")) {
    const auto shard = [](const std::string& header, size_t num_bytes) {
      const uint64_t length = header.size();
      std::string text(sizeof length, '\0');
      std::memcpy(text.data(), &length, sizeof length);
      return text + header + std::string(num_bytes, '\1');
    };
    write(folder / "model-1.safetensors",
          shard(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},)"
                R"("b":{"dtype":"BF16","shape":[2,1],"data_offsets":[8,12]}})",
                12));
    write(folder / "model-2.safetensors",
          shard(R"({"c":{"dtype":"F16","shape":[3],"data_offsets":[0,6]}})", 6));
    write(folder / "notes.txt", "no tensors\n");
  }
  read_tensors(*io::open_safetensors(folder));
}

void read_model_config(const fs::path& file) {
  const auto config = models::parse_model_config(io::read_json_file(file.string()), file.string());
  // What is written of it is the same model.
  std::string text;
  try {
    text = models::to_config_json(config, "float32").dump();
  } catch (const Error&) {  // what transformers cannot be told
    return;
  }
  const auto again = models::parse_model_config(io::parse_json(text, "written"), "written");
  require(models::to_config_json(again, "float32").dump() == text);
}

void read_checkpoint_folder(const fs::path& folder) {
  for (const trainer::ManifestFile& listed : trainer::verify_folder(folder).files) {
    trainer::VerifiedFile verified(folder / listed.name, listed);
    std::vector<std::byte> bytes(static_cast<size_t>(verified.size()));
    verified.read(0, bytes);
  }
}

/// The manifest of a folder that holds data.bin: first with the checksum that it should have, as no
/// change of its body would get past a wrong one, then as it is.
void read_manifest(const fs::path& file) {
  const fs::path folder = file.parent_path();
  if (!fs::exists(folder / "data.bin"))
    write(folder / "data.bin", "hello");
  io::Json given;
  try {
    given = io::read_json_file(file.string());
  } catch (const Error&) {  // told below
  }
  const io::Json* const body = given.find("manifest");
  if (body != nullptr) {
    const std::string text = io::read_text_file(file, int64_t{1} << 30);
    io::Json whole = io::Json::object();
    whole.set("manifest", *body);
    whole.set("sha256", io::sha256_hex(io::as_bytes(body->dump())));
    write(file, whole.dump() + "\n");
    read_checkpoint_folder(folder);
    write(file, text);
  }
  read_checkpoint_folder(folder);
}

constexpr Parser kParsers[] = {
    {"safetensors", "model.safetensors", &read_safetensors},
    {"gguf", "model.gguf", &read_gguf},
    {"json", "file.json", &read_json},
    {"yaml", "run.yaml", &read_yaml},
    {"tokenizer_json", "tokenizer.json", &read_tokenizer_folder},
    {"tokenizer_model", "tokenizer.model", &read_tokenizer_folder},
    {"tokenizer_config", "tokenizer_config.json", &read_tokenizer_config},
    {"data", "data.jsonl", &read_data},
    {"shard_index", "model.safetensors.index.json", &read_shard_index},
    {"model_config", "config.json", &read_model_config},
    {"manifest", trainer::kManifestFile, &read_manifest},
    {"swap", "script.bin", &read_swap_blocks},
};

}  // namespace

std::span<const Parser> parsers() { return kParsers; }

}  // namespace shardtune::fuzz
