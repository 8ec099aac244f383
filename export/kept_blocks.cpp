#include "export/kept_blocks.h"

#include <cstdint>
#include <cstring>
#include <string>

#include "core/dtype.h"
#include "core/error.h"
#include "io/gguf_types.h"

namespace shardtune::exporting {

namespace {
constexpr size_t kPlaceOfMinimum = 2;  // behind the scale
}

bool has_minima(std::string_view type) { return type == "Q4_1" || type == "Q5_1"; }

void add_to_minima(std::string_view type, std::span<const float> delta,
                   std::span<std::byte> blocks) {
  const io::GgufType* const layout = io::find_gguf_type(type);
  const bool fits =
      has_minima(type) && std::ssize(delta) % layout->block_size == 0 &&
      std::ssize(delta) / layout->block_size * layout->block_bytes == std::ssize(blocks);
  if (!fits)
    throw ArgumentError("add_to_minima: " + std::to_string(delta.size()) + " values of " +
                        std::string(type) + " do not fit " + std::to_string(blocks.size()) +
                        " bytes");
  for (int64_t block = 0; block < std::ssize(delta) / layout->block_size; ++block) {
    std::byte* const place = blocks.data() + block * layout->block_bytes + kPlaceOfMinimum;
    uint16_t half = 0;
    std::memcpy(&half, place, sizeof(half));
    half =
        float_to_half(half_to_float(half) + delta[static_cast<size_t>(block * layout->block_size)]);
    std::memcpy(place, &half, sizeof(half));
  }
}

}  // namespace shardtune::exporting
