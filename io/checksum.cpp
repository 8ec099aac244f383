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
uint32_t crc32c_update(uint32_t crc, std::span<const std::byte> bytes) {
  uint64_t wide = crc;
  while (bytes.size() >= 8) {
    uint64_t word = 0;
    std::memcpy(&word, bytes.data(), sizeof(word));
    wide = _mm_crc32_u64(wide, word);
    bytes = bytes.subspan(8);
  }
  auto narrow = static_cast<uint32_t>(wide);
  for (const std::byte byte : bytes)
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
