#include "core/rng.h"

#include <bit>
#include <cmath>
#include <numbers>

namespace shardtune {

std::array<uint32_t, 4> philox(uint64_t key, std::array<uint32_t, 4> counter) {
  constexpr uint32_t kMultiplier0 = 0xD2511F53u;
  constexpr uint32_t kMultiplier1 = 0xCD9E8D57u;
  uint32_t key0 = static_cast<uint32_t>(key);
  uint32_t key1 = static_cast<uint32_t>(key >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = uint64_t{kMultiplier0} * counter[0];
    const uint64_t product1 = uint64_t{kMultiplier1} * counter[2];
    counter = {
        static_cast<uint32_t>(product1 >> 32) ^ counter[1] ^ key0, static_cast<uint32_t>(product1),
        static_cast<uint32_t>(product0 >> 32) ^ counter[3] ^ key1, static_cast<uint32_t>(product0)};
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return counter;
}

namespace {
uint64_t split_mix(uint64_t x) {
  x += 0x9E3779B97F4A7C15ull;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
  return x ^ (x >> 31);
}

std::array<uint32_t, 4> block(uint64_t key, uint64_t index) {
  return philox(key, {static_cast<uint32_t>(index), static_cast<uint32_t>(index >> 32), 0, 0});
}
}  // namespace

uint64_t mix_key(uint64_t seed, std::initializer_list<uint64_t> words) {
  uint64_t state = split_mix(seed);
  for (const uint64_t word : words)
    state = split_mix(state ^ std::rotl(split_mix(word), 31));  // rotated: a word equal to the seed
                                                                // must not cancel it
  return state;
}

uint64_t mix_key(uint64_t seed, std::string_view name) {
  uint64_t hash = 0xcbf29ce484222325ull;
  for (const char c : name)
    hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3ull;
  return mix_key(seed, {hash, name.size()});
}

uint32_t CounterRng::bits(uint64_t index) const { return block(key_, index >> 2)[index & 3]; }

float CounterRng::uniform(uint64_t index) const {
  return static_cast<float>(bits(index) >> 8) * 0x1.0p-24f;
}

float CounterRng::normal(uint64_t index) const {
  const auto words = block(key_ ^ 0x5851F42D4C957F2Dull, index >> 1);
  const size_t pair = 2 * (index & 1);
  const double u = (static_cast<double>(words[pair]) + 0.5) * 0x1.0p-32;
  const double v = static_cast<double>(words[pair + 1]) * 0x1.0p-32;
  return static_cast<float>(std::sqrt(-2.0 * std::log(u)) * std::cos(2.0 * std::numbers::pi * v));
}

uint64_t CounterRng::below(uint64_t index, uint64_t bound) const {
  __extension__ using Wide = unsigned __int128;
  const auto words = block(key_ ^ 0xDA942042E4DD58B5ull, index);
  const uint64_t value = (uint64_t{words[1]} << 32) | words[0];
  return static_cast<uint64_t>((static_cast<Wide>(value) * bound) >> 64);
}

}  // namespace shardtune
