// Writing, byte for byte as the reference writer orders and pads a file.
#include <algorithm>
#include <set>

#include "core/checked.h"
#include "io/json.h"
#include "io/safetensors.h"
#include "io/safetensors_parse.h"
#include "io/text.h"

namespace shardtune::io {

namespace {
// Rank of a dtype in the reference writer's order: the widest first, ties in its enumeration.
int order_of(std::string_view dtype) {
  constexpr std::string_view kOrder[] = {"I64", "F32", "BF16", "F16", "I8", "U8"};
  const auto* found = std::find(std::begin(kOrder), std::end(kOrder), dtype);
  return static_cast<int>(found - std::begin(kOrder));
}

int64_t size_in_bytes(const TensorToWrite& tensor) {
  const auto numel = try_numel(tensor.shape);
  if (order_of(tensor.dtype) == 6 || !numel)
    throw ArgumentError(tensor.name + ": cannot be written as " + tensor.dtype +
                        " safetensors: unknown dtype or impossible shape");
  return checked_mul(*numel, safetensors_bits(tensor.dtype) / 8);
}

std::string make_header(const std::vector<TensorToWrite>& tensors,
                        const std::map<std::string, std::string>& metadata) {
  Json::Object root;
  Json::Object texts;
  if (!metadata.contains("format"))
    texts.emplace_back("format", "pt");
  for (const auto& [key, value] : metadata)
    texts.emplace_back(key, value);
  root.emplace_back("__metadata__", std::move(texts));
  int64_t offset = 0;
  for (const TensorToWrite& tensor : tensors) {
    Json::Array shape(tensor.shape.begin(), tensor.shape.end());
    const int64_t end = checked_add(offset, size_in_bytes(tensor));
    Json::Object entry;
    entry.emplace_back("dtype", tensor.dtype);
    entry.emplace_back("shape", std::move(shape));
    entry.emplace_back("data_offsets", Json::Array{Json(offset), Json(end)});
    root.emplace_back(tensor.name, std::move(entry));
    offset = end;
  }
  std::string text = Json(std::move(root)).dump();
  text.append(static_cast<size_t>(round_up(static_cast<int64_t>(text.size()), 8)) - text.size(),
              ' ');
  return text;
}

void check_names(const std::vector<TensorToWrite>& tensors) {
  std::set<std::string_view> names;
  for (const TensorToWrite& tensor : tensors) {
    if (tensor.name == "__metadata__" || find_invalid_utf8(tensor.name) ||
        !names.insert(tensor.name).second)
      throw ArgumentError("safetensors: the tensor name " + quote_text(tensor.name) +
                          " is taken, reserved or not UTF-8");
  }
}
}  // namespace

void write_safetensors(const fs::path& path, std::vector<TensorToWrite> tensors,
                       const std::map<std::string, std::string>& metadata) {
  check_names(tensors);
  std::sort(tensors.begin(), tensors.end(), [](const TensorToWrite& a, const TensorToWrite& b) {
    const int64_t bits_a = safetensors_bits(a.dtype);
    const int64_t bits_b = safetensors_bits(b.dtype);
    if (bits_a != bits_b)
      return bits_a > bits_b;
    return std::pair(order_of(a.dtype), std::string_view(a.name)) <
           std::pair(order_of(b.dtype), std::string_view(b.name));
  });
  const std::string header = make_header(tensors, metadata);
  fs::path partial = path;
  partial += ".partial";
  FileWriter file(partial);
  const auto length = static_cast<uint64_t>(header.size());
  file.write({reinterpret_cast<const std::byte*>(&length), sizeof(length)});
  file.write(header);
  for (const TensorToWrite& tensor : tensors)
    write_tensor(file, tensor, size_in_bytes(tensor));
  file.commit();
  rename_durably(partial, path);
}

}  // namespace shardtune::io
