// The original weight of a linear kept beside its codes, in fewer bytes: what merge-aware training
// adds its low-rank change to before it quantises anew. Forms: bf16; int8 rows with one absmax each
// (1 byte a value); the NF4 code of each value and two bits that say in which quarter of the code's
// cell it lies (6.5 bits a value with the absmax of 64). The dequantised codes alone would not do:
// a change that is small against the grid is rounded away. For the same reason a quarter does not
// stand for its middle: all weights would then lie an eighth of a cell or more from the next code,
// and smaller changes would move none of them. Each value stands at a place in its quarter that its
// row and column give (a hash), so that a change moves as many codes as it would of W itself.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>

#include "core/registry.h"
#include "core/tensor.h"

namespace shardtune::quant {

enum class KeptForm { kBFloat16, kInt8, kResidual };
/// "bf16", "int8", "residual".
const Registry<KeptForm>& kept_forms();
std::string name_of(KeptForm form);

class KeptWeight {
 public:
  /// Values of a row that share one absmax in the residual form; a row's last block may be short.
  static constexpr int64_t kResidualBlock = 64;

  KeptWeight(KeptForm form, int64_t num_rows, int64_t num_columns);

  int64_t num_rows() const { return num_rows_; }
  int64_t num_columns() const { return num_columns_; }
  int64_t num_bytes() const;

  /// Keeps whole rows from first_row on. The values are finite.
  /// Errors  ArgumentError: rows that are not whole or not there
  void write_rows(int64_t first_row, std::span<const float> values);
  /// Rows [begin, end) as fp32: the one value of each form. On the calling thread; many at once.
  /// Exact   the same bytes on any machine
  void decode_rows(int64_t begin, int64_t end, float* out) const;

 private:
  int64_t blocks_per_row() const;
  void write_residual_row(int64_t row, const float* values);
  void decode_residual_row(int64_t row, float* out) const;

  KeptForm form_;
  int64_t num_rows_;
  int64_t num_columns_;
  Tensor codes_;     // bf16 or int8 [rows, columns]; residual: NF4 codes, two to a byte
  Tensor quarters_;  // residual: two bits a value, four to a byte
  Tensor absmax_;    // f32 of each row, or of each block of a row
};

/// Where the values of a quarter lie, relative to absmax.
struct QuarterRange {
  float low = 0.0f;
  float width = 0.0f;
};
/// By code * 4 + quarter. In the first and the last cell one of the four is -1 or 1 alone, so that
/// absmax is kept as it is, and the others are thirds.
const std::array<QuarterRange, 64>& residual_ranges();

}  // namespace shardtune::quant
