// Dequantising by shuffles: the machine's form (decode_machine.h) where there is one; else by
// bytes, where the 16 products values[code] * absmax of a block are made once, and each byte of
// them is looked up for 16 codes at a time. pshufb is in the baseline, so one form serves every
// machine and is far faster than memory.
#include <hwy/highway.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>

#include "core/checked.h"
#include "quant/decode_machine.h"
#include "quant/double_quant.h"
#include "quant/nf4.h"
#include "quant/rounding.h"

namespace shardtune::quant {

namespace {
namespace hn = hwy::HWY_NAMESPACE;
using Bytes = hn::Full128<uint8_t>;
using Halves = hn::Full128<uint16_t>;
using BytesVec = hn::Vec<Bytes>;

constexpr int64_t kVectorValues = 32;  // 16 bytes of codes

uint32_t output_bits(float value, float) { return std::bit_cast<uint32_t>(value); }
uint32_t output_bits(float value, BFloat16) { return finite_to_bfloat16_bits(value); }

// The products of one block, as bits of T and split into bytes for the shuffles. Plain loops over
// 16 values without branches, which the compiler turns into vectors.
template <typename T>
struct BlockTable {
  HWY_ALIGN uint32_t bits[16];
  HWY_ALIGN uint8_t bytes[sizeof(T)][16];

  BlockTable(const FourBitCodebook& codebook, float absmax) {
    const float* values = codebook.values.data();
    for (int c = 0; c < 16; ++c)
      bits[c] = output_bits(values[c] * absmax, T());
    for (size_t k = 0; k < sizeof(T); ++k) {
      for (int c = 0; c < 16; ++c)
        bytes[k][c] = static_cast<uint8_t>(bits[c] >> (8 * k));
    }
  }

  T at(uint32_t code) const {
    if constexpr (sizeof(T) == 4)
      return std::bit_cast<float>(bits[code]);
    else
      return std::bit_cast<BFloat16>(static_cast<uint16_t>(bits[code]));
  }
};

// 16 codes in order of the values to 16 outputs.
template <typename T>
void look_up(const BlockTable<T>& table, BytesVec codes, T* out) {
  const Bytes d8;
  const Halves d16;
  auto* target = reinterpret_cast<uint8_t*>(out);
  const auto byte = [&](size_t k) {
    return hn::TableLookupBytes(hn::Load(d8, table.bytes[k]), codes);
  };
  const BytesVec b0 = byte(0);
  const BytesVec b1 = byte(1);
  const BytesVec low_01 = hn::InterleaveLower(d8, b0, b1);
  const BytesVec high_01 = hn::InterleaveUpper(d8, b0, b1);
  if constexpr (sizeof(T) == 2) {
    hn::StoreU(low_01, d8, target);
    hn::StoreU(high_01, d8, target + 16);
  } else {
    const BytesVec b2 = byte(2);
    const BytesVec b3 = byte(3);
    const auto low_23 = hn::BitCast(d16, hn::InterleaveLower(d8, b2, b3));
    const auto high_23 = hn::BitCast(d16, hn::InterleaveUpper(d8, b2, b3));
    const auto low = hn::BitCast(d16, low_01);
    const auto high = hn::BitCast(d16, high_01);
    hn::StoreU(hn::BitCast(d8, hn::InterleaveLower(d16, low, low_23)), d8, target);
    hn::StoreU(hn::BitCast(d8, hn::InterleaveUpper(d16, low, low_23)), d8, target + 16);
    hn::StoreU(hn::BitCast(d8, hn::InterleaveLower(d16, high, high_23)), d8, target + 32);
    hn::StoreU(hn::BitCast(d8, hn::InterleaveUpper(d16, high, high_23)), d8, target + 48);
  }
}

uint32_t code_at(const uint8_t* codes, int64_t i) {
  return i % 2 == 0 ? codes[i / 2] >> 4 : codes[i / 2] & 15;
}

// Values [begin, end) of the tensor, all of one block.
template <typename T>
void dequantize_in_block(const uint8_t* codes, const BlockTable<T>& table, int64_t begin,
                         int64_t end, T* out) {
  const Bytes d8;
  const auto low_nibble = hn::Set(d8, 15);
  int64_t i = begin;
  if (i % 2 != 0 && i < end)
    *out++ = table.at(code_at(codes, i++));
  for (; i + kVectorValues <= end; i += kVectorValues, out += kVectorValues) {
    const BytesVec packed = hn::LoadU(d8, codes + i / 2);
    const BytesVec even =
        hn::And(hn::BitCast(d8, hn::ShiftRight<4>(hn::BitCast(Halves(), packed))), low_nibble);
    const BytesVec odd = hn::And(packed, low_nibble);
    look_up(table, hn::InterleaveLower(d8, even, odd), out);
    look_up(table, hn::InterleaveUpper(d8, even, odd), out + 16);
  }
  for (; i < end; ++i)
    *out++ = table.at(code_at(codes, i));
}

float absmax_at(const Nf4Absmax& source, int64_t block, const std::array<float, 256>& map) {
  return source.absmax != nullptr
             ? source.absmax[block]
             : dequantize_absmax(source.codes[block],
                                 source.nested_absmax[block / kNestedBlockSize], source.offset,
                                 map);
}

template <typename T>
void dequantize(const Nf4View& weight, int64_t begin, int64_t end, T* out) {
  const std::array<float, 256>& map = dynamic_map(DynamicMapKind::kSigned);
  int64_t i = begin;
  while (i < end) {
    const int64_t block = i / weight.block_size;
    const int64_t stop = std::min(end, (block + 1) * weight.block_size);
    dequantize_in_block(weight.codes,
                        BlockTable<T>(*weight.codebook, absmax_at(weight.absmax, block, map)), i,
                        stop, out);
    out += stop - i;
    i = stop;
  }
}

// The machine's form for whole blocks, the plain one for what stands before and after them.
void dequantize_by_machine(const Nf4View& weight, int64_t begin, int64_t end, BFloat16* out,
                           const DecodeFunctions& machine) {
  constexpr int64_t kGroup = 64;
  const std::array<float, 256>& map = dynamic_map(DynamicMapKind::kSigned);
  const int64_t size = weight.block_size, last = end / size;
  int64_t block = ceil_div(begin, size);
  if (block >= last)
    return dequantize(weight, begin, end, out);
  BFloat16* const origin = out - begin;
  dequantize(weight, begin, block * size, out);
  while (block < last) {
    const int64_t count = std::min(kGroup, last - block);
    float absmax[kGroup];
    bool normal = true;
    for (int64_t b = 0; b < count; ++b) {
      absmax[b] = absmax_at(weight.absmax, block + b, map);
      normal &= absmax[b] == 0.0f || std::fabs(absmax[b]) > kLeastMachineFactor;
    }
    const int64_t first = block * size;
    if (normal)
      machine.nf4(weight.codes + first / 2, absmax, count, size, weight.codebook->values.data(),
                  reinterpret_cast<uint16_t*>(origin + first));
    else
      dequantize(weight, first, first + count * size, origin + first);
    block += count;
  }
  dequantize(weight, last * size, end, origin + last * size);
}
}  // namespace

void nf4_dequantize(const Nf4View& weight, int64_t begin, const TensorView& out) {
  const int64_t end = begin + out.numel();
  if (out.dtype() == DType::kFloat32)
    return dequantize(weight, begin, end, out.data<float>());
  const DecodeFunctions* const machine = decode_functions();
  if (machine != nullptr && weight.block_size % kMachineBlock == 0)
    return dequantize_by_machine(weight, begin, end, out.data<BFloat16>(), *machine);
  dequantize(weight, begin, end, out.data<BFloat16>());
}

}  // namespace shardtune::quant
