// The K types: super-blocks of 256 values. d (and dmin) of the super-block times a small integer is
// rounded to the scale (and minimum) of 16 or 32 values first, as the gguf package does it.
#include <array>

#include "io/gguf_decode.h"

namespace shardtune::io {

namespace {
constexpr size_t kSuperBlock = 256;

const uint8_t* bytes_at(const std::byte* from) { return reinterpret_cast<const uint8_t*>(from); }

// Scale and minimum of the 8 groups of 32 of Q4_K and Q5_K: 6 bits each in 12 bytes; groups 4..7
// have their upper two bits in the bytes of groups 0..3.
struct GroupScales {
  std::array<float, 8> scale;
  std::array<float, 8> minimum;

  GroupScales(const std::byte* from, float d, float dmin) {
    const uint8_t* s = bytes_at(from);
    for (size_t j = 0; j < 4; ++j) {
      set(j, d, dmin, s[j] & 63, s[j + 4] & 63);
      set(j + 4, d, dmin, (s[j + 8] & 15) | (s[j] >> 6) << 4,
          (s[j + 8] >> 4) | (s[j + 4] >> 6) << 4);
    }
  }

 private:
  void set(size_t j, float d, float dmin, int s, int m) {
    scale[j] = d * static_cast<float>(s);
    minimum[j] = dmin * static_cast<float>(m);
  }
};

// Scales of the 16 groups of 16 of Q3_K, less 32: low nibbles in 8 bytes, upper two bits in 4.
std::array<float, 16> q3_scales(const std::byte* from, float d) {
  const uint8_t* s = bytes_at(from);
  std::array<float, 16> scales;
  for (size_t j = 0; j < 16; ++j) {
    const int low = (s[j % 8] >> (4 * (j / 8))) & 15;
    const int high = (s[8 + j % 4] >> (2 * (j / 4))) & 3;
    scales[j] = d * static_cast<float>((low | high << 4) - 32);
  }
  return scales;
}
}  // namespace

// 84 bytes: 16 of scale (low nibble) and minimum (high) for 16 values each, 64 of 2-bit codes, d,
// dmin. A byte's four codes stand 32 values apart.
void decode_q2_k(const std::byte* from, std::span<float> out) {
  for (size_t i = 0; i < out.size(); i += kSuperBlock, from += 84) {
    const float d = half_at(from + 80);
    const float dmin = half_at(from + 82);
    const uint8_t* scales = bytes_at(from);
    const uint8_t* codes = bytes_at(from + 16);
    for (size_t group = 0; group < 16; ++group) {
      const float scale = d * static_cast<float>(scales[group] & 15);
      const float minimum = dmin * static_cast<float>(scales[group] >> 4);
      const size_t at = group / 8 * 32 + group % 2 * 16;
      const size_t shift = group % 8 / 2 * 2;
      for (size_t j = 0; j < 16; ++j)
        out[i + group * 16 + j] =
            scale * static_cast<float>((codes[at + j] >> shift) & 3) - minimum;
    }
  }
}

// 110 bytes: 32 of third bits (set: no 4 is taken off), 64 of 2-bit codes, 12 of scales, d.
void decode_q3_k(const std::byte* from, std::span<float> out) {
  for (size_t i = 0; i < out.size(); i += kSuperBlock, from += 110) {
    const auto scales = q3_scales(from + 96, half_at(from + 108));
    const uint8_t* thirds = bytes_at(from);
    const uint8_t* codes = bytes_at(from + 32);
    for (size_t group = 0; group < 16; ++group) {
      const size_t at = group / 8 * 32 + group % 2 * 16;
      const size_t shift = group % 8 / 2 * 2;
      for (size_t j = 0; j < 16; ++j) {
        const int missing = ((thirds[group % 2 * 16 + j] >> (group / 2)) & 1) ^ 1;
        const int code = ((codes[at + j] >> shift) & 3) - 4 * missing;
        out[i + group * 16 + j] = scales[group] * static_cast<float>(code);
      }
    }
  }
}

// 144 bytes: d, dmin, 12 of scales, 128 of nibbles: each 32 bytes hold two groups of 32.
void decode_q4_k(const std::byte* from, std::span<float> out) {
  for (size_t i = 0; i < out.size(); i += kSuperBlock, from += 144) {
    const GroupScales groups(from + 4, half_at(from), half_at(from + 2));
    const uint8_t* codes = bytes_at(from + 16);
    for (size_t g = 0; g < 8; g += 2) {
      for (size_t j = 0; j < 32; ++j) {
        const int code = codes[g * 16 + j];
        float* const value = &out[i + g * 32 + j];
        value[0] = groups.scale[g] * static_cast<float>(code & 15) - groups.minimum[g];
        value[32] = groups.scale[g + 1] * static_cast<float>(code >> 4) - groups.minimum[g + 1];
      }
    }
  }
}

// 176 bytes: d, dmin, 12 of scales, 32 of fifth bits (bit g: group g), 128 of nibbles as Q4_K.
void decode_q5_k(const std::byte* from, std::span<float> out) {
  for (size_t i = 0; i < out.size(); i += kSuperBlock, from += 176) {
    const GroupScales groups(from + 4, half_at(from), half_at(from + 2));
    const uint8_t* fifths = bytes_at(from + 16);
    const uint8_t* codes = bytes_at(from + 48);
    for (size_t g = 0; g < 8; ++g) {
      const uint8_t* const nibbles = codes + g / 2 * 32;
      const size_t shift = g % 2 * 4;
      for (size_t j = 0; j < 32; ++j) {
        const int code = ((nibbles[j] >> shift) & 15) | ((fifths[j] >> g) & 1) << 4;
        out[i + g * 32 + j] = groups.scale[g] * static_cast<float>(code) - groups.minimum[g];
      }
    }
  }
}

// 210 bytes: 128 of low nibbles, 64 of upper two bits, 16 signed scales for 16 values each, d. Each
// half of 128 values: 64 bytes of nibbles (values 0..63 low, 64..127 high), 32 of upper bits.
void decode_q6_k(const std::byte* from, std::span<float> out) {
  for (size_t i = 0; i < out.size(); i += kSuperBlock, from += 210) {
    const float d = half_at(from + 208);
    for (size_t group = 0; group < 16; ++group) {
      const size_t half = group / 8;
      const size_t r = group % 8 * 16;  // the first value, counted from the half's
      const float scale = d * static_cast<float>(load_value<int8_t>(from + 192 + group));
      const uint8_t* low = bytes_at(from) + half * 64 + r % 64;
      const uint8_t* high = bytes_at(from) + 128 + half * 32 + r % 32;
      const size_t low_shift = r / 64 * 4;
      const size_t high_shift = r / 32 * 2;
      for (size_t j = 0; j < 16; ++j) {
        const int code = ((low[j] >> low_shift) & 15) | ((high[j] >> high_shift) & 3) << 4;
        out[i + group * 16 + j] = scale * static_cast<float>(code - 32);
      }
    }
  }
}

}  // namespace shardtune::io
