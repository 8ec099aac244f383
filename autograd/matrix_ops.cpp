#include "autograd/matrix_ops.h"

#include <cstring>
#include <memory>
#include <utility>

#include "core/dry_run.h"
#include "core/parallel_for.h"
#include "kernels/column_groups.h"

namespace shardtune::autograd {

namespace {

using kernels::Transpose;

/// x in the dtype of a product; `kept` owns a conversion.
TensorView in_dtype(const TensorView& x, DType dtype, Tensor& kept) {
  if (x.dtype() == dtype)
    return x;
  kept = Tensor(x.shape(), dtype);
  kernels::cast(x, kept);
  return kept.view();
}

void copy_row(const TensorView& from, int64_t source, const TensorView& to, int64_t target) {
  const TensorView row = from.rows(source, source + 1);
  std::memcpy(to.rows(target, target + 1).raw(), row.raw(), static_cast<size_t>(row.num_bytes()));
}

// Columns [first, first + dy's) of the slot get dy; the rest of a fresh slot zeros.
void give_columns(const GradSlot& slot, const TensorView& dy, int64_t first) {
  const int64_t size = size_of(slot.grad.dtype());
  const int64_t row_bytes = slot.grad.dim(1) * size;
  auto* const rows = static_cast<std::byte*>(slot.grad.raw());
  parallel_for(dy.dim(0), 16, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      std::byte* const row = rows + t * row_bytes;
      if (slot.accumulate == Accumulate::kNo)
        std::memset(row, 0, static_cast<size_t>(row_bytes));
      const TensorView target(static_cast<void*>(row + first * size), slot.grad.dtype(),
                              Shape{1, dy.dim(1)});
      kernels::copy_scaled(dy.rows(t, t + 1), target, Accumulate::kYes);
    }
  });
}

}  // namespace

Variable matmul(Tape& tape, const Variable& a, const Variable& b, Transpose transpose_b,
                std::optional<DType> result) {
  const bool is_transposed = transpose_b == Transpose::kYes;
  SHARDTUNE_ASSERT(a.dim(1) == b.dim(is_transposed ? 1 : 0));
  Tensor converted;
  Tensor c(Shape{a.dim(0), b.dim(is_transposed ? 0 : 1)}, result.value_or(a.dtype()));
  kernels::gemm(a.value(), in_dtype(b.value(), a.dtype(), converted), transpose_b, c,
                Accumulate::kNo);
  Variable output = tape.result(std::move(c), {a, b});
  tape.record(output, [a, b, is_transposed](Tensor& dc) {
    Tensor dc_kept, b_kept;
    const TensorView gradient = in_dtype(dc, a.dtype(), dc_kept);
    if (b.requires_grad()) {
      const GradSlot slot = b.grad_ref().slot();
      if (is_transposed)
        kernels::gemm_over_tokens(gradient, a.value(), slot.grad, slot.accumulate);
      else
        kernels::gemm_over_tokens(a.value(), gradient, slot.grad, slot.accumulate);
    }
    if (a.requires_grad()) {
      const GradSlot slot = a.grad_ref().slot();
      kernels::gemm(gradient, in_dtype(b.value(), a.dtype(), b_kept),
                    is_transposed ? Transpose::kNo : Transpose::kYes, slot.grad, slot.accumulate);
    }
  });
  return output;
}

Variable reshape(Tape& tape, const Variable& x, Shape shape) {
  Tensor y(shape, x.dtype());
  kernels::cast(x.value().reshaped(shape), y);
  Variable output = tape.result(std::move(y), {x});
  tape.record(output, [x = x.grad_ref(), before = x.shape()](Tensor& dy) {
    const GradSlot slot = x.slot();
    kernels::copy_scaled(dy.view().reshaped(before), slot.grad, slot.accumulate);
  });
  return output;
}

Variable slice_columns(Tape& tape, const Variable& x, int64_t begin, int64_t end) {
  const int64_t rows = x.dim(0);
  const int64_t width = x.dim(1);
  SHARDTUNE_ASSERT(begin >= 0 && begin < end && end <= width);
  Tensor y(Shape{rows, end - begin}, x.dtype());
  const auto bytes = static_cast<size_t>((end - begin) * size_of(x.dtype()));
  parallel_for(rows, 64, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      std::memcpy(
          y.view().rows(i, i + 1).raw(),
          static_cast<const std::byte*>(x.value().raw()) + (i * width + begin) * size_of(x.dtype()),
          bytes);
    }
  });
  Variable output = tape.result(std::move(y), {x});
  tape.record(output, [x = x.grad_ref(), begin](Tensor& dy) { give_columns(x.slot(), dy, begin); });
  return output;
}

Variable sum_column_groups(Tape& tape, const Variable& x, int64_t group, float scale) {
  SHARDTUNE_ASSERT(group > 0 && x.dim(1) % group == 0);
  Tensor y(Shape{x.dim(0), x.dim(1) / group}, x.dtype());
  kernels::sum_column_groups(x.value(), scale, y);
  Variable output = tape.result(std::move(y), {x});
  tape.record(output, [x = x.grad_ref(), scale](Tensor& dy) {
    const GradSlot slot = x.slot();
    kernels::spread_column_groups(dy, scale, slot.grad, slot.accumulate);
  });
  return output;
}

namespace {

/// Columns from `begin` on of x, as many as `part` has.
void take_columns(const TensorView& x, int64_t begin, const TensorView& part) {
  const int64_t element = size_of(x.dtype());
  parallel_for(x.dim(0), 64, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      std::memcpy(part.rows(i, i + 1).raw(),
                  static_cast<const std::byte*>(x.raw()) + (i * x.dim(1) + begin) * element,
                  static_cast<size_t>(part.dim(1) * element));
    }
  });
}

void put_columns(const TensorView& part, int64_t begin, const TensorView& x) {
  const int64_t element = size_of(x.dtype());
  parallel_for(x.dim(0), 64, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      std::memcpy(static_cast<std::byte*>(x.raw()) + (i * x.dim(1) + begin) * element,
                  part.rows(i, i + 1).raw(), static_cast<size_t>(part.dim(1) * element));
    }
  });
}

}  // namespace

Variable append_columns(Tape& tape, const Variable& x, const Variable& y) {
  SHARDTUNE_ASSERT(x.dim(0) == y.dim(0) && x.dtype() == y.dtype());
  Tensor both(Shape{x.dim(0), x.dim(1) + y.dim(1)}, x.dtype());
  put_columns(x.value(), 0, both);
  put_columns(y.value(), x.dim(1), both);
  Variable output = tape.result(std::move(both), {x, y});
  tape.record(output, [x = x.grad_ref(), y = y.grad_ref(), left = x.dim(1),
                       right = y.dim(1)](Tensor& dboth) {
    const auto give = [&](const GradRef& to, int64_t begin, int64_t width) {
      if (!to.wanted())
        return;
      Tensor part(Shape{dboth.dim(0), width}, dboth.dtype());
      take_columns(dboth, begin, part);
      to.give(std::move(part));
    };
    give(x, 0, left);
    give(y, left, right);
  });
  return output;
}

Variable gather_rows(Tape& tape, const Variable& x, std::vector<int32_t> rows) {
  Tensor y(Shape{std::ssize(rows), x.dim(1)}, x.dtype());
  if (DryRun::current() == nullptr) {
    for (size_t i = 0; i < rows.size(); ++i)
      copy_row(x.value(), rows[i], y, static_cast<int64_t>(i));
  }
  Variable output = tape.result(std::move(y), {x});
  tape.record(output, [x = x.grad_ref(), rows = std::move(rows), shape = x.shape()](Tensor& dy) {
    Tensor dx = Tensor::zeros(shape, DType::kFloat32);
    for (size_t i = 0; i < rows.size() && DryRun::current() == nullptr; ++i) {
      const auto source = static_cast<int64_t>(i);
      kernels::copy_scaled(dy.view().rows(source, source + 1), dx.view().rows(rows[i], rows[i] + 1),
                           Accumulate::kYes);
    }
    x.give(std::move(dx));
  });
  return output;
}

Variable place_rows(Tape& tape, const Variable& x, const Variable& y, std::vector<int32_t> rows) {
  SHARDTUNE_ASSERT(y.dim(0) == std::ssize(rows) && y.dim(1) == x.dim(1));
  Tensor z(x.shape(), x.dtype());
  kernels::cast(x.value(), z);
  if (DryRun::current() == nullptr) {
    for (size_t i = 0; i < rows.size(); ++i) {
      const auto source = static_cast<int64_t>(i);
      kernels::cast(y.value().rows(source, source + 1), z.view().rows(rows[i], rows[i] + 1));
    }
  }
  Variable output = tape.result(std::move(z), {x, y});
  tape.record(output, [x = x.grad_ref(), y = y.grad_ref(), rows = std::move(rows),
                       shape = y.shape()](Tensor& dz) {
    const bool runs = DryRun::current() == nullptr;
    if (y.wanted()) {
      Tensor dy(shape, DType::kFloat32);
      for (size_t i = 0; i < rows.size() && runs; ++i) {
        const auto target = static_cast<int64_t>(i);
        kernels::cast(dz.view().rows(rows[i], rows[i] + 1), dy.view().rows(target, target + 1));
      }
      y.give(std::move(dy));
    }
    if (!x.wanted())
      return;
    for (size_t i = 0; i < rows.size() && runs; ++i) {
      const TensorView row = dz.view().rows(rows[i], rows[i] + 1);
      std::memset(row.raw(), 0, static_cast<size_t>(row.num_bytes()));
    }
    x.give(std::move(dz));
  });
  return output;
}

Variable add_row(Tape& tape, const Variable& y, const Variable& bias) {
  SHARDTUNE_ASSERT(bias.numel() == y.dim(1));
  Tensor z(y.shape(), y.dtype());
  kernels::cast(y.value(), z);
  const Shape row{bias.numel()};
  Tensor kept;
  kernels::add_bias(in_dtype(bias.value().reshaped(row), DType::kFloat32, kept), z);
  Variable output = tape.result(std::move(z), {y, bias});
  tape.record(output, [y = y.grad_ref(), bias = bias.grad_ref(), row](Tensor& dz) {
    if (bias.wanted()) {
      const GradSlot slot = bias.slot();
      kernels::sum_rows(dz, slot.grad.reshaped(row), slot.accumulate);
    }
    if (y.wanted())
      y.give(std::move(dz));
  });
  return output;
}

namespace {

// Extents of a [m,n] and b [p,q]; dc is seen as [m, p, n, q].
struct KroneckerShape {
  int64_t m, n, p, q;
  const float* at(const Tensor& dc, int64_t i, int64_t k, int64_t j) const {
    return dc.data<const float>() + ((i * p + k) * n + j) * q;
  }
};

// Each element of a gradient is summed in index order by one thread.
Tensor kronecker_left_gradient(const Tensor& dc, const TensorView& b, const KroneckerShape& s) {
  Tensor da(Shape{s.m, s.n}, DType::kFloat32);
  parallel_for(s.m * s.n, 4, [&](int64_t first, int64_t last) {
    for (int64_t e = first; e < last; ++e) {
      float sum = 0.0f;
      for (int64_t k = 0; k < s.p; ++k) {
        for (int64_t l = 0; l < s.q; ++l)
          sum += s.at(dc, e / s.n, k, e % s.n)[l] * b.data<const float>()[k * s.q + l];
      }
      da.data<float>()[e] = sum;
    }
  });
  return da;
}

Tensor kronecker_right_gradient(const Tensor& dc, const TensorView& a, const KroneckerShape& s) {
  Tensor db(Shape{s.p, s.q}, DType::kFloat32);
  parallel_for(s.p * s.q, 16, [&](int64_t first, int64_t last) {
    for (int64_t e = first; e < last; ++e) {
      float sum = 0.0f;
      for (int64_t i = 0; i < s.m; ++i) {
        for (int64_t j = 0; j < s.n; ++j)
          sum += s.at(dc, i, e / s.q, j)[e % s.q] * a.data<const float>()[i * s.n + j];
      }
      db.data<float>()[e] = sum;
    }
  });
  return db;
}

}  // namespace

Variable kronecker(Tape& tape, const Variable& a, const Variable& b) {
  const KroneckerShape s{a.dim(0), a.dim(1), b.dim(0), b.dim(1)};
  Tensor c(Shape{s.m * s.p, s.n * s.q}, DType::kFloat32);
  parallel_for(s.m * s.p, 4, [&](int64_t first, int64_t last) {
    const float* left = a.value().data<const float>();
    const float* right = b.value().data<const float>();
    for (int64_t row = first; row < last; ++row) {
      for (int64_t j = 0; j < s.n; ++j) {
        const float factor = left[row / s.p * s.n + j];
        float* to = c.data<float>() + (row * s.n + j) * s.q;
        for (int64_t l = 0; l < s.q; ++l)
          to[l] = factor * right[row % s.p * s.q + l];
      }
    }
  });
  Variable output = tape.result(std::move(c), {a, b});
  tape.record(output, [a, b, s](Tensor& dc) {
    if (a.requires_grad())
      a.grad_ref().give(kronecker_left_gradient(dc, b.value(), s));
    if (b.requires_grad())
      b.grad_ref().give(kronecker_right_gradient(dc, a.value(), s));
  });
  return output;
}

}  // namespace shardtune::autograd
