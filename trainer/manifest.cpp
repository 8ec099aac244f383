#include "trainer/manifest.h"

#include <algorithm>
#include <cstdio>
#include <set>
#include <string_view>

#include "core/error.h"
#include "io/file.h"
#include "io/json.h"
#include "io/text.h"

namespace shardtune::trainer {
namespace {

constexpr int64_t kFormatVersion = 1;
constexpr int64_t kMaxManifestBytes = 64 << 20;

[[noreturn]] void damaged(const fs::path& file, const std::string& what) {
  throw DataError(file.string() + ": " + what + ". The checkpoint is damaged; use an earlier one.");
}

std::string hex32(uint32_t value) {
  char text[16];
  std::snprintf(text, sizeof text, "%08x", value);
  return text;
}

io::Json to_json(const Manifest& manifest) {
  io::Json files = io::Json::array();
  for (const ManifestFile& file : manifest.files) {
    io::Json crcs = io::Json::array();
    for (const uint32_t crc : file.crc32c)
      crcs.push_back(static_cast<int64_t>(crc));
    io::Json entry = io::Json::object();
    entry.set("name", file.name);
    entry.set("size", file.size);
    entry.set("sha256", file.sha256);
    entry.set("crc32c", std::move(crcs));
    files.push_back(std::move(entry));
  }
  io::Json json = io::Json::object();
  json.set("format_version", kFormatVersion);
  json.set("step", manifest.step);
  json.set("seed", static_cast<int64_t>(manifest.seed));
  json.set("config_sha256", manifest.config_sha256);
  json.set("base_sha256", manifest.base_sha256);
  json.set("block_bytes", kManifestBlockBytes);
  json.set("files", std::move(files));
  return json;
}

std::string digest_of(const io::Json& body) { return io::sha256_hex(io::as_bytes(body.dump())); }

/// The text of manifest.json: the body and the checksum of the body's own text.
std::string sealed_text(const io::Json& body) {
  io::Json sealed = io::Json::object();
  sealed.set("manifest", body);
  sealed.set("sha256", digest_of(body));
  return sealed.dump() + "\n";
}

ManifestFile parse_file(const io::Json& entry, const fs::path& path) {
  const std::string name = path.string();
  const io::JsonReader reader(entry, name);
  ManifestFile file;
  file.name = reader.string("name");
  file.size = reader.integer("size");
  file.sha256 = reader.string("sha256");
  const io::Json* crcs = entry.find("crc32c");
  if (crcs == nullptr || !crcs->is_array())
    throw DataError(name + ": crc32c: expected an array of integers");
  for (const io::Json& crc : crcs->as_array()) {
    if (!crc.is_integer() || crc.as_integer() != static_cast<uint32_t>(crc.as_integer()))
      throw DataError(name + ": crc32c: expected an array of integers in [0, 2^32)");
    file.crc32c.push_back(static_cast<uint32_t>(crc.as_integer()));
  }
  // Not ceil_div(): sizes up to 2^63 - 1 come from the file.
  const int64_t num_blocks =
      file.size / kManifestBlockBytes + (file.size % kManifestBlockBytes > 0 ? 1 : 0);
  if (file.size < 0 || std::ssize(file.crc32c) != num_blocks)
    damaged(path, file.name + ": the manifest lists another number of blocks than its size has");
  return file;
}

}  // namespace

Manifest read_manifest(const fs::path& folder) {
  std::error_code error;
  if (!fs::is_directory(folder, error)) {
    throw MissingInputError(folder.string() +
                            ": expected a checkpoint folder, found none. Give a path such as "
                            "runs/NAME/checkpoint-50.");
  }
  const fs::path path = folder / kManifestFile;
  const std::string text = io::read_text_file(path, kMaxManifestBytes);
  const std::string name = path.string();
  const io::Json sealed = io::parse_json(text, name);
  const io::Json* body = sealed.find("manifest");
  if (body == nullptr || !body->is_object())
    damaged(path, "expected a member 'manifest'");
  const io::JsonReader reader(*body, name);
  if (const int64_t version = reader.integer("format_version"); version != kFormatVersion) {
    throw UnsupportedError(name + ": expected checkpoint format_version 1, found " +
                           std::to_string(version) + ". Use the program that wrote it.");
  }
  if (sealed_text(*body) != text)
    damaged(path, "the manifest differs from its own checksum");
  if (const int64_t bytes = reader.integer("block_bytes"); bytes != kManifestBlockBytes)
    damaged(path, "block_bytes: expected " + std::to_string(kManifestBlockBytes) + ", found " +
                      std::to_string(bytes));
  Manifest manifest;
  manifest.step = reader.integer("step");
  if (manifest.step < 0)
    damaged(path, "step: expected an integer from 0, found " + std::to_string(manifest.step));
  manifest.seed = static_cast<uint64_t>(reader.integer("seed"));
  manifest.config_sha256 = reader.string("config_sha256");
  manifest.base_sha256 = reader.string("base_sha256");
  const io::Json* files = body->find("files");
  if (files == nullptr || !files->is_array())
    damaged(path, "expected an array 'files'");
  std::set<std::string_view> names;
  manifest.files.reserve(files->as_array().size());
  for (const io::Json& entry : files->as_array()) {
    manifest.files.push_back(parse_file(entry, path));
    if (!names.insert(manifest.files.back().name).second)
      damaged(path, "files: expected each file once, found " +
                        io::quote_text(manifest.files.back().name) + " twice");
  }
  manifest.sha256 = digest_of(*body);
  return manifest;
}

void check_size(const fs::path& path, const ManifestFile& expected, int64_t size) {
  if (size != expected.size) {
    damaged(path,
            "expected " + std::to_string(expected.size) + " bytes, found " + std::to_string(size));
  }
}

void check_block(const fs::path& path, const ManifestFile& expected, int64_t index, uint32_t crc) {
  const uint32_t listed = expected.crc32c[static_cast<size_t>(index)];
  if (crc != listed) {
    damaged(path, "block " + std::to_string(index) + " (from byte " +
                      std::to_string(index * kManifestBlockBytes) + "): expected CRC-32C " +
                      hex32(listed) + ", found " + hex32(crc));
  }
}

namespace {

void compare_file(const fs::path& path, const ManifestFile& expected, const ManifestFile& found) {
  check_size(path, expected, found.size);
  for (size_t i = 0; i < found.crc32c.size(); ++i)
    check_block(path, expected, static_cast<int64_t>(i), found.crc32c[i]);
  if (found.sha256 != expected.sha256)
    damaged(path, "expected SHA-256 " + expected.sha256 + ", found " + found.sha256);
}

void refuse_unlisted(const fs::path& folder, const Manifest& manifest) {
  std::error_code error;
  for (fs::directory_iterator it(folder, error), end; !error && it != end; it.increment(error)) {
    const std::string name = it->path().filename().string();
    const bool listed = name == kManifestFile ||
                        std::any_of(manifest.files.begin(), manifest.files.end(),
                                    [&](const ManifestFile& file) { return file.name == name; });
    if (!listed)
      damaged(it->path(), "a file that the manifest does not list");
  }
}

}  // namespace

ManifestFile describe_file(const fs::path& folder, const std::string& name) {
  const io::MappedFile mapped(folder / name);
  const std::span<const std::byte> bytes = mapped.bytes();
  ManifestFile file;
  file.name = name;
  file.size = static_cast<int64_t>(bytes.size());
  io::Sha256 sha256;
  for (size_t begin = 0; begin < bytes.size(); begin += kManifestBlockBytes) {
    const auto block =
        bytes.subspan(begin, std::min<size_t>(kManifestBlockBytes, bytes.size() - begin));
    file.crc32c.push_back(io::crc32c(block));
    sha256.update(block);
    mapped.drop(block);
  }
  file.sha256 = sha256.hex_digest();
  return file;
}

void write_manifest(const fs::path& folder, const Manifest& manifest) {
  io::FileWriter writer(folder / kManifestFile);
  writer.write(sealed_text(to_json(manifest)));
  writer.commit();
}

Manifest verify_folder(const fs::path& folder) {
  const Manifest manifest = read_manifest(folder);
  refuse_unlisted(folder, manifest);
  for (const ManifestFile& file : manifest.files) {
    const fs::path path = io::join_untrusted(folder, file.name, kManifestFile);
    std::error_code error;
    if (!fs::is_regular_file(fs::symlink_status(path, error)))
      damaged(path, "expected a file, found none");
    compare_file(path, file, describe_file(folder, file.name));
  }
  return manifest;
}

}  // namespace shardtune::trainer
