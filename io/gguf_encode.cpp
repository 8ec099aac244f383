#include "io/gguf_encode.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/dtype.h"
#include "core/error.h"
#include "io/float_encode.h"
#include "io/gguf_types.h"

namespace shardtune::io {

namespace {
using Encode = void (*)(std::span<const float> values, std::byte* out);

template <typename T>
void store(std::byte* out, T value) {
  std::memcpy(out, &value, sizeof(value));
}

void encode_f32(std::span<const float> values, std::byte* out) {
  std::memcpy(out, values.data(), values.size_bytes());
}

void encode_f16(std::span<const float> values, std::byte* out) {
  for (size_t i = 0; i < values.size(); ++i)
    store(out + 2 * i, encode_half(values[i]));
}

void encode_bf16(std::span<const float> values, std::byte* out) {
  for (size_t i = 0; i < values.size(); ++i)
    store(out + 2 * i, BFloat16(values[i]).bits);
}

void encode_q8_0(std::span<const float> values, std::byte* out) {
  constexpr size_t kBlock = 32;
  for (size_t i = 0; i < values.size(); i += kBlock, out += 34) {
    const auto block = values.subspan(i, kBlock);
    float absmax = 0.0f;
    for (const float value : block)
      absmax = std::max(absmax, std::fabs(value));
    const float d = absmax / 127.0f;
    const float inverse = d == 0.0f ? 0.0f : 1.0f / d;
    store(out, encode_half(d));
    for (size_t j = 0; j < kBlock; ++j)
      store(out + 2 + j, static_cast<int8_t>(std::round(block[j] * inverse)));
  }
}

Encode encoder_of(std::string_view type) {
  static constexpr std::pair<std::string_view, Encode> kEncoders[] = {
      {"F32", encode_f32}, {"F16", encode_f16}, {"BF16", encode_bf16}, {"Q8_0", encode_q8_0}};
  for (const auto& [name, encode] : kEncoders) {
    if (name == type)
      return encode;
  }
  return nullptr;
}
}  // namespace

void encode_gguf(std::string_view type, std::span<const float> values, std::span<std::byte> out) {
  const Encode encode = encoder_of(type);
  const GgufType* const layout = find_gguf_type(type);
  const auto count = static_cast<int64_t>(values.size());
  if (encode == nullptr || count % layout->block_size != 0 ||
      static_cast<int64_t>(out.size()) != count / layout->block_size * layout->block_bytes)
    throw ArgumentError("GGUF: " + std::to_string(count) + " values cannot be written as " +
                        std::string(type) + " into " + std::to_string(out.size()) + " bytes");
  encode(values, out.data());
}

}  // namespace shardtune::io
