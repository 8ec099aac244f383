// A factor and a shift for each column (DoRA's magnitude), forward and backward.
#pragma once

#include "core/tensor.h"

namespace shardtune::kernels {

/// z = factor * y + shift on each row; `copy` = y as well, for the way back.
/// Shapes  y, z, copy [T,N] (copy may be empty); factor, shift f32 [N] (shift may be empty)
/// Dtypes  y, z, copy f32 | bf16; computed in f32, rounded once
struct ColumnScale {
  TensorView y, factor, shift, z;
  TensorView copy;
};
void column_scale(const ColumnScale& args);

/// dots = sum over rows of dz * (y - centre), in chunks of kTokenChunk rows added in order; then
/// dz *= factor in place.
/// Shapes  dz, y [T,N]; centre, factor, dots f32 [N] (centre may be empty)
/// Dtypes  dz, y f32 | bf16
struct ColumnScaleBackward {
  TensorView dz, y, centre, factor;
  TensorView dots;
};
void column_scale_backward(const ColumnScaleBackward& args);

}  // namespace shardtune::kernels
