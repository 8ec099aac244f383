#include "quant/kept_weight.h"

#include <algorithm>
#include <cmath>

#include "core/checked.h"
#include "core/dry_run.h"
#include "core/parallel_for.h"
#include "quant/int8.h"
#include "quant/nf4.h"

namespace shardtune::quant {

namespace {

constexpr int64_t kBlock = KeptWeight::kResidualBlock;

std::array<QuarterRange, 64> make_ranges() {
  const FourBitCodebook& book = nf4_codebook();
  std::array<QuarterRange, 64> ranges{};
  for (size_t code = 0; code < 16; ++code) {
    const bool is_end = code == 0 || code == 15;
    const float low = code == 0 ? -1.0f : book.midpoints[code - 1];
    const float high = code == 15 ? 1.0f : book.midpoints[code];
    const float width = (high - low) / (is_end ? 3.0f : 4.0f);
    for (size_t quarter = 0; quarter < 4; ++quarter) {
      const float place = static_cast<float>(quarter) - (code == 0 ? 1.0f : 0.0f);
      ranges[code * 4 + quarter] = {low + width * place, width};
    }
  }
  ranges.front() = {-1.0f, 0.0f};
  ranges.back() = {1.0f, 0.0f};
  return ranges;
}

/// Where in its quarter a value stands, in (0, 1): the same on any machine, without a pattern along
/// rows or columns.
inline float place_in_quarter(uint32_t row, uint32_t column) {
  uint32_t h = (column * 0x9E3779B1u) ^ (row * 0x85EBCA77u);
  h = (h ^ (h >> 15)) * 0x2C1B3C6Du;
  h = (h ^ (h >> 12)) * 0x297A2D39u;
  return (static_cast<float>(h >> 24) + 0.5f) * 0x1p-8f;
}

uint8_t code_of(float value) {
  const auto& midpoints = nf4_codebook().midpoints;
  return static_cast<uint8_t>(std::ranges::lower_bound(midpoints, value) - midpoints.begin());
}

uint8_t quarter_of(uint8_t code, float value) {
  if (value <= -1.0f || value >= 1.0f)
    return value < 0.0f ? 0 : 3;
  const QuarterRange* ranges = residual_ranges().data() + size_t{code} * 4;
  uint8_t quarter = code == 0 ? 1 : 0;
  const uint8_t last = code == 15 ? 2 : 3;
  while (quarter < last && value > ranges[quarter].low + ranges[quarter].width)
    ++quarter;
  return quarter;
}

}  // namespace

const Registry<KeptForm>& kept_forms() {
  static const Registry<KeptForm> kForms("adapter.merge_aware_weights",
                                         {{"bf16", KeptForm::kBFloat16},
                                          {"int8", KeptForm::kInt8},
                                          {"residual", KeptForm::kResidual}});
  return kForms;
}

std::string name_of(KeptForm form) {
  for (const std::string& name : kept_forms().names()) {
    if (kept_forms().at(name) == form)
      return name;
  }
  return "";
}

const std::array<QuarterRange, 64>& residual_ranges() {
  static const std::array<QuarterRange, 64> kRanges = make_ranges();
  return kRanges;
}

KeptWeight::KeptWeight(KeptForm form, int64_t num_rows, int64_t num_columns)
    : form_(form), num_rows_(num_rows), num_columns_(num_columns) {
  if (num_rows < 1 || num_columns < 1)
    throw ArgumentError("kept weight: expected extents from 1 on, found " +
                        std::to_string(num_rows) + " x " + std::to_string(num_columns));
  const PurposeScope purpose(Purpose::kKeptBase);
  const Shape whole{num_rows, num_columns};
  switch (form) {
    case KeptForm::kBFloat16:
      codes_ = Tensor(whole, DType::kBFloat16);
      break;
    case KeptForm::kInt8:
      codes_ = Tensor(whole, DType::kInt8);
      absmax_ = Tensor(Shape{num_rows}, DType::kFloat32);
      break;
    case KeptForm::kResidual:
      codes_ = Tensor(Shape{num_rows, blocks_per_row() * kBlock / 2}, DType::kUInt8);
      quarters_ = Tensor(Shape{num_rows, blocks_per_row() * kBlock / 4}, DType::kUInt8);
      absmax_ = Tensor(Shape{num_rows, blocks_per_row()}, DType::kFloat32);
      break;
  }
}

int64_t KeptWeight::blocks_per_row() const { return ceil_div(num_columns_, kBlock); }

int64_t KeptWeight::num_bytes() const {
  int64_t bytes = 0;
  for (const Tensor* part : {&codes_, &quarters_, &absmax_}) {
    if (!part->empty())
      bytes += part->numel() * size_of(part->dtype());
  }
  return bytes;
}

void KeptWeight::write_rows(int64_t first_row, std::span<const float> values) {
  const int64_t count = std::ssize(values) / num_columns_;
  if (first_row < 0 || count * num_columns_ != std::ssize(values) || count > num_rows_ - first_row)
    throw ArgumentError("kept weight: expected whole rows of " + std::to_string(num_columns_) +
                        " values within " + std::to_string(num_rows_) + " rows, found " +
                        std::to_string(values.size()) + " values from row " +
                        std::to_string(first_row) + " on");
  const int64_t begin = first_row * num_columns_;
  if (form_ == KeptForm::kBFloat16) {
    BFloat16* const out = codes_.data<BFloat16>() + begin;
    std::transform(values.begin(), values.end(), out, [](float v) { return BFloat16(v); });
  } else if (form_ == KeptForm::kInt8) {
    const auto bad = int8_quantize_rows(values, num_columns_,
                                        codes_.span<int8_t>().subspan(begin, count * num_columns_),
                                        absmax_.span<float>().subspan(first_row, count));
    if (bad)
      throw ArgumentError("kept weight: expected finite values, found another at " +
                          std::to_string(begin + *bad));
  } else {
    parallel_for(count, 16, [&](int64_t from, int64_t to) {
      for (int64_t i = from; i < to; ++i)
        write_residual_row(first_row + i, values.data() + i * num_columns_);
    });
  }
}

void KeptWeight::write_residual_row(int64_t row, const float* values) {
  auto* const codes = codes_.data<uint8_t>() + row * codes_.dim(1);
  auto* const quarters = quarters_.data<uint8_t>() + row * quarters_.dim(1);
  std::fill_n(codes, codes_.dim(1), uint8_t{0});
  std::fill_n(quarters, quarters_.dim(1), uint8_t{0});
  for (int64_t block = 0; block < blocks_per_row(); ++block) {
    const int64_t begin = block * kBlock, end = std::min(begin + kBlock, num_columns_);
    float absmax = 0.0f;
    for (int64_t i = begin; i < end; ++i)
      absmax = std::max(absmax, std::fabs(values[i]));
    absmax_.data<float>()[row * blocks_per_row() + block] = absmax;
    for (int64_t i = begin; i < end; ++i) {
      const float v = absmax == 0.0f ? 0.0f : values[i] / absmax;
      const uint8_t code = code_of(v);
      codes[i / 2] = static_cast<uint8_t>(codes[i / 2] | code << (i % 2 == 0 ? 4 : 0));
      quarters[i / 4] =
          static_cast<uint8_t>(quarters[i / 4] | quarter_of(code, v) << (6 - 2 * (i % 4)));
    }
  }
}

void KeptWeight::decode_residual_row(int64_t row, float* out) const {
  const auto* const codes = codes_.data<const uint8_t>() + row * codes_.dim(1);
  const auto* const quarters = quarters_.data<const uint8_t>() + row * quarters_.dim(1);
  const auto* const absmax = absmax_.data<const float>() + row * blocks_per_row();
  const QuarterRange* const ranges = residual_ranges().data();
  const auto value_of = [&](uint32_t code, uint32_t quarter, int64_t column) {
    const QuarterRange& range = ranges[code * 4 + quarter];
    const float place = place_in_quarter(static_cast<uint32_t>(row), static_cast<uint32_t>(column));
    return (range.low + range.width * place) * absmax[column / kBlock];
  };
  int64_t i = 0;
  for (; i + 4 <= num_columns_; i += 4) {
    const uint32_t first = codes[i / 2], second = codes[i / 2 + 1], quarter = quarters[i / 4];
    out[i] = value_of(first >> 4, quarter >> 6, i);
    out[i + 1] = value_of(first & 15, quarter >> 4 & 3, i + 1);
    out[i + 2] = value_of(second >> 4, quarter >> 2 & 3, i + 2);
    out[i + 3] = value_of(second & 15, quarter & 3, i + 3);
  }
  for (; i < num_columns_; ++i) {
    const uint32_t code = i % 2 == 0 ? codes[i / 2] >> 4 : codes[i / 2] & 15;
    out[i] = value_of(code, quarters[i / 4] >> (6 - 2 * (i % 4)) & 3, i);
  }
}

void KeptWeight::decode_rows(int64_t begin, int64_t end, float* out) const {
  for (int64_t row = begin; row < end; ++row, out += num_columns_) {
    if (form_ == KeptForm::kBFloat16) {
      const BFloat16* const values = codes_.data<const BFloat16>() + row * num_columns_;
      std::transform(values, values + num_columns_, out,
                     [](BFloat16 v) { return static_cast<float>(v); });
    } else if (form_ == KeptForm::kInt8) {
      int8_dequantize_row(codes_.span<const int8_t>().subspan(row * num_columns_, num_columns_),
                          absmax_.data<const float>()[row],
                          TensorView(out, DType::kFloat32, Shape{num_columns_}));
    } else {
      decode_residual_row(row, out);
    }
  }
}

}  // namespace shardtune::quant
