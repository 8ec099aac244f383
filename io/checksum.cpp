// CRC-32C and SHA-256.
#include <openssl/evp.h>

#include <array>
#include <cstring>
#include <utility>

#include "core/error.h"
#include "io/file.h"
#if defined(__SSE4_2__)
#include <nmmintrin.h>
#endif

namespace shardtune::io {

namespace {
#if defined(__SSE4_2__)
uint64_t crc32c_words(uint64_t crc, const std::byte* bytes, size_t num_words) {
  for (size_t i = 0; i < num_words; ++i) {
    uint64_t word = 0;
    std::memcpy(&word, bytes + i * sizeof(word), sizeof(word));
    crc = _mm_crc32_u64(crc, word);
  }
  return crc;
}

// The instruction takes three cycles and a new one can begin in each: three lanes of 4 KiB are
// computed together. The state after lane A and then B is shift(A) ^ B, where shift() lets a state
// pass 4,096 zero bytes; it is linear over bits, so four tables of 256 entries give it.
constexpr size_t kLaneBytes = 4096;
using ShiftTables = std::array<std::array<uint32_t, 256>, 4>;

ShiftTables make_shift_tables() {
  static constexpr std::array<std::byte, kLaneBytes> kZeros{};
  ShiftTables tables{};
  for (uint32_t byte = 0; byte < 4; ++byte) {
    for (uint32_t bit = 0; bit < 8; ++bit) {
      const auto shifted = static_cast<uint32_t>(
          crc32c_words(uint64_t{1} << (8 * byte + bit), kZeros.data(), kLaneBytes / 8));
      for (uint32_t i = 0; i < 256; ++i)
        tables[byte][i] ^= (i >> bit & 1u) != 0 ? shifted : 0u;
    }
  }
  return tables;
}

uint32_t shift_lane(const ShiftTables& tables, uint64_t crc) {
  return tables[0][crc & 255u] ^ tables[1][crc >> 8 & 255u] ^ tables[2][crc >> 16 & 255u] ^
         tables[3][crc >> 24 & 255u];
}

uint64_t crc32c_lanes(uint64_t crc, const std::byte* bytes) {
  static const ShiftTables kShift = make_shift_tables();
  uint64_t second = 0;
  uint64_t third = 0;
  for (size_t i = 0; i < kLaneBytes; i += 8) {
    uint64_t words[3];
    std::memcpy(&words[0], bytes + i, 8);
    std::memcpy(&words[1], bytes + kLaneBytes + i, 8);
    std::memcpy(&words[2], bytes + 2 * kLaneBytes + i, 8);
    crc = _mm_crc32_u64(crc, words[0]);
    second = _mm_crc32_u64(second, words[1]);
    third = _mm_crc32_u64(third, words[2]);
  }
  return shift_lane(kShift, shift_lane(kShift, crc) ^ second) ^ third;
}

uint32_t crc32c_update(uint32_t crc, std::span<const std::byte> bytes) {
  uint64_t wide = crc;
  for (; bytes.size() >= 3 * kLaneBytes; bytes = bytes.subspan(3 * kLaneBytes))
    wide = crc32c_lanes(wide, bytes.data());
  wide = crc32c_words(wide, bytes.data(), bytes.size() / 8);
  auto narrow = static_cast<uint32_t>(wide);
  for (const std::byte byte : bytes.subspan(bytes.size() / 8 * 8))
    narrow = _mm_crc32_u8(narrow, static_cast<uint8_t>(byte));
  return narrow;
}
#else
constexpr std::array<uint32_t, 256> make_crc_table() {
  std::array<uint32_t, 256> table{};
  for (uint32_t i = 0; i < 256; ++i) {
    uint32_t crc = i;
    for (int bit = 0; bit < 8; ++bit)
      crc = (crc >> 1) ^ ((crc & 1u) != 0 ? 0x82f63b78u : 0u);
    table[i] = crc;
  }
  return table;
}

uint32_t crc32c_update(uint32_t crc, std::span<const std::byte> bytes) {
  static constexpr auto kTable = make_crc_table();
  for (const std::byte byte : bytes)
    crc = (crc >> 8) ^ kTable[(crc ^ static_cast<uint8_t>(byte)) & 0xffu];
  return crc;
}
#endif
}  // namespace

uint32_t crc32c(std::span<const std::byte> bytes, uint32_t initial) {
  return ~crc32c_update(~initial, bytes);
}

struct Sha256::State {
  struct Free {
    void operator()(EVP_MD_CTX* context) const { EVP_MD_CTX_free(context); }
  };
  std::unique_ptr<EVP_MD_CTX, Free> context{EVP_MD_CTX_new()};
  bool finished = false;
};

Sha256::Sha256() : state_(std::make_unique<State>()) {
  if (!state_->context || EVP_DigestInit_ex(state_->context.get(), EVP_sha256(), nullptr) != 1)
    throw DeviceError("OpenSSL: SHA-256 is not available. Install a complete libcrypto.");
}
Sha256::~Sha256() = default;
Sha256::Sha256(Sha256&&) noexcept = default;

void Sha256::update(std::span<const std::byte> bytes) {
  SHARDTUNE_ASSERT(!state_->finished);
  if (EVP_DigestUpdate(state_->context.get(), bytes.data(), bytes.size()) != 1)
    throw DeviceError("OpenSSL: SHA-256 failed.");
}

std::string Sha256::hex_digest() {
  SHARDTUNE_ASSERT(!state_->finished);
  std::array<unsigned char, EVP_MAX_MD_SIZE> digest{};
  unsigned int length = 0;
  if (EVP_DigestFinal_ex(state_->context.get(), digest.data(), &length) != 1)
    throw DeviceError("OpenSSL: SHA-256 failed.");
  state_->finished = true;
  constexpr char kHex[] = "0123456789abcdef";
  std::string text;
  for (unsigned int i = 0; i < length; ++i)
    text += {kHex[digest[i] >> 4], kHex[digest[i] & 15u]};
  return text;
}

std::string sha256_hex(std::span<const std::byte> bytes) {
  Sha256 hash;
  hash.update(bytes);
  return hash.hex_digest();
}

}  // namespace shardtune::io
