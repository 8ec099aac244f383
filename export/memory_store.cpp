#include "export/memory_store.h"

#include <algorithm>
#include <cstring>

#include "core/error.h"

namespace shardtune::exporting {

ParameterId MemoryStore::declare(ParameterSpec spec) {
  Tensor value(spec.shape, spec.dtype);
  entries_.push_back({std::move(spec), std::move(value)});
  return ParameterId{static_cast<int32_t>(entries_.size() - 1)};
}

void MemoryStore::publish(ParameterId id, std::span<const std::byte> bytes) {
  const Entry& entry = at(id);
  const auto expected = entry.value.view().bytes().size();
  if (bytes.size() != expected)
    throw ArgumentError("publish of " + entry.spec.name + ": expected " + std::to_string(expected) +
                        " bytes, found " + std::to_string(bytes.size()));
  std::memcpy(entry.value.view().raw(), bytes.data(), bytes.size());
}

ParameterId MemoryStore::find(std::string_view name) const {
  const auto found =
      std::ranges::find_if(entries_, [&](const Entry& entry) { return entry.spec.name == name; });
  return found == entries_.end() ? kNoParameter
                                 : ParameterId{static_cast<int32_t>(found - entries_.begin())};
}

void MemoryStore::fetch_rows(std::span<const RowFetch>) {
  throw ArgumentError("a store of frozen bytes in memory holds no tables");
}

TensorView MemoryStore::value_bf16(ParameterId id) const {
  throw ArgumentError(at(id).spec.name + ": expected a trainable, found a frozen parameter");
}

void MemoryStore::grad(ParameterId id, const TensorView&) {
  throw ArgumentError(at(id).spec.name + ": expected a trainable, found a frozen parameter");
}

}  // namespace shardtune::exporting
