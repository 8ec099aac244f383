// Up to how many rows a row of a product has the same bits whatever the other rows are, and however
// many: what decoding sequences together rests on. Products of more rows go to oneDNN, which has
// other bits for other numbers of rows.
#pragma once

#include <cstdint>

namespace shardtune::kernels {

inline constexpr int64_t kFewRows = 64;

}  // namespace shardtune::kernels
