// Counter-based random numbers: a value is a pure function of its key and counter, so it does not
// depend on rank, thread or the order in which values are asked for (DESIGN section 8.4).
#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>
#include <string_view>

namespace shardtune {

/// Philox-4x32-10: four 32-bit words from a 64-bit key and a 128-bit counter.
/// Source  Salmon et al. 2011, Parallel random numbers: as easy as 1, 2, 3
std::array<uint32_t, 4> philox(uint64_t key, std::array<uint32_t, 4> counter);

/// Mixes any number of words into one 64-bit key (SplitMix64 steps; order matters).
uint64_t mix_key(uint64_t seed, std::initializer_list<uint64_t> words);
/// Mixes a name into a seed: FNV-1a of the bytes, then mix_key.
uint64_t mix_key(uint64_t seed, std::string_view name);

/// A stream of values addressed by element index; two streams of different keys are independent.
class CounterRng {
 public:
  explicit CounterRng(uint64_t key) : key_(key) {}

  uint32_t bits(uint64_t index) const;
  /// In [0, 1): 24 random bits.
  float uniform(uint64_t index) const;
  /// Standard normal (Box-Muller on two words of one block).
  float normal(uint64_t index) const;
  /// In [0, bound), without modulo bias worth mentioning (64-bit multiply-shift). bound > 0.
  uint64_t below(uint64_t index, uint64_t bound) const;

 private:
  uint64_t key_;
};

}  // namespace shardtune
