#include "adapters/rotation.h"

#include <Eigen/Dense>
#include <algorithm>
#include <memory>
#include <numeric>
#include <utility>
#include <vector>

#include "core/dry_run.h"
#include "core/parallel_for.h"
#include "kernels/elementwise.h"

namespace shardtune::adapters {

using autograd::Tape;
using autograd::Variable;

namespace {

using Matrix = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

Matrix skew_of(const float* parameters, int64_t size, Cayley::Parameters form) {
  Matrix skew = Matrix::Zero(size, size);
  int64_t next = 0;
  for (int64_t i = 0; i < size; ++i) {
    for (int64_t j = i + 1; j < size; ++j) {
      const double value =
          form == Cayley::Parameters::kUpperTriangle
              ? parameters[next++]
              : 0.5 * (static_cast<double>(parameters[i * size + j]) - parameters[j * size + i]);
      skew(i, j) = value;
      skew(j, i) = -value;
    }
  }
  return skew;
}

// Adds what a gradient of S means for the parameters.
void skew_gradient(const Matrix& gradient, Cayley::Parameters form, float* out) {
  const int64_t size = gradient.rows();
  int64_t next = 0;
  for (int64_t i = 0; i < size; ++i) {
    for (int64_t j = 0; j < size; ++j) {
      const double both = gradient(i, j) - gradient(j, i);
      if (form == Cayley::Parameters::kWholeMatrix)
        out[i * size + j] = static_cast<float>(0.5 * both);
      else if (j > i)
        out[next++] = static_cast<float>(both);
    }
  }
}

// Factors of S^0, S^1, ...; PEFT's loop always ends past the cube where there is a square.
std::vector<double> series(int64_t terms) {
  if (terms <= 1)
    return {1.0};
  if (terms == 2)
    return {1.0, 2.0};
  std::vector<double> factors(static_cast<size_t>(std::max<int64_t>(terms - 1, 3)) + 1, 2.0);
  factors.front() = 1.0;
  factors.back() = 1.0;
  return factors;
}

// H_p = c_p I + S H_(p+1); R = H_0.
std::vector<Matrix> horner(const Matrix& skew, const std::vector<double>& factors) {
  const Matrix identity = Matrix::Identity(skew.rows(), skew.rows());
  std::vector<Matrix> partial(factors.size());
  partial.back() = factors.back() * identity;
  for (size_t p = factors.size() - 1; p-- > 0;)
    partial[p] = factors[p] * identity + skew * partial[p + 1];
  return partial;
}

Matrix rotation_of(const Matrix& skew, int64_t terms) {
  if (terms > 0)
    return horner(skew, series(terms)).front();
  const Matrix identity = Matrix::Identity(skew.rows(), skew.rows());
  return 2.0 * (identity + skew).inverse() - identity;
}

Matrix gradient_of_skew(const Matrix& skew, const Matrix& dr, int64_t terms) {
  if (terms == 0) {
    // R = 2 M - I, M = (I + S)^-1, dM = -M dS M.
    const Matrix m = (Matrix::Identity(skew.rows(), skew.rows()) + skew).inverse();
    return -2.0 * (m.transpose() * dr * m.transpose());
  }
  const std::vector<Matrix> partial = horner(skew, series(terms));
  Matrix gradient = Matrix::Zero(skew.rows(), skew.rows());
  Matrix inner = dr;
  for (size_t p = 0; p + 1 < partial.size(); ++p) {
    gradient += inner * partial[p + 1].transpose();
    inner = skew.transpose() * inner;
  }
  return gradient;
}

float value_at(const TensorView& x, int64_t i) {
  return x.dtype() == DType::kFloat32 ? x.data<const float>()[i]
                                      : static_cast<float>(x.data<const BFloat16>()[i]);
}

void set_value(const TensorView& x, int64_t i, float value) {
  if (x.dtype() == DType::kFloat32)
    x.data<float>()[i] = value;
  else
    x.data<BFloat16>()[i] = BFloat16(value);
}

enum class Direction { kForward, kTransposed };

// y rows [T,in] = x with blocks rotated. x and y may be the same.
void rotate(const TensorView& x, const TensorView& rotations, Direction direction,
            const TensorView& y) {
  const int64_t size = rotations.dim(1);
  const int64_t width = x.dim(1);
  const bool is_shared = rotations.dim(0) == 1;
  parallel_for(x.dim(0), 4, [&](int64_t begin, int64_t end) {
    std::vector<float> in(static_cast<size_t>(size)), out(static_cast<size_t>(size));
    for (int64_t t = begin; t < end; ++t) {
      for (int64_t k = 0; k < width / size; ++k) {
        const float* r = rotations.data<const float>() + (is_shared ? 0 : k) * size * size;
        const int64_t first = t * width + k * size;
        for (int64_t i = 0; i < size; ++i)
          in[static_cast<size_t>(i)] = value_at(x, first + i);
        std::ranges::fill(out, 0.0f);
        for (int64_t i = 0; i < size; ++i) {
          if (direction == Direction::kForward) {
            const float factor = in[static_cast<size_t>(i)];
            for (int64_t j = 0; j < size; ++j)
              out[static_cast<size_t>(j)] += factor * r[i * size + j];
          } else {
            float sum = 0.0f;
            for (int64_t j = 0; j < size; ++j)
              sum += in[static_cast<size_t>(j)] * r[i * size + j];
            out[static_cast<size_t>(i)] = sum;
          }
        }
        for (int64_t i = 0; i < size; ++i)
          set_value(y, first + i, out[static_cast<size_t>(i)]);
      }
    }
  });
}

// Gradient of the rotations: per block the sum over tokens of x_k^T dy_k, one block by one thread,
// tokens in order within chunks of 512, chunks in order; shared: blocks in order.
Tensor rotation_gradient(const TensorView& x, const TensorView& dy, const Shape& shape) {
  const int64_t size = shape[1];
  const int64_t width = x.dim(1);
  const int64_t blocks = width / size;
  Tensor each(Shape{blocks, size, size}, DType::kFloat32);
  parallel_for(blocks, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> chunk(static_cast<size_t>(size * size));
    for (int64_t k = begin; k < end; ++k) {
      float* sum = each.data<float>() + k * size * size;
      std::fill_n(sum, size * size, 0.0f);
      for (int64_t first = 0; first < x.dim(0); first += 512) {
        std::ranges::fill(chunk, 0.0f);
        for (int64_t t = first; t < std::min(first + 512, x.dim(0)); ++t) {
          for (int64_t i = 0; i < size; ++i) {
            const float factor = value_at(x, t * width + k * size + i);
            for (int64_t j = 0; j < size; ++j)
              chunk[static_cast<size_t>(i * size + j)] +=
                  factor * value_at(dy, t * width + k * size + j);
          }
        }
        for (int64_t e = 0; e < size * size; ++e)
          sum[e] += chunk[static_cast<size_t>(e)];
      }
    }
  });
  if (shape[0] == blocks || DryRun::current() != nullptr)
    return shape[0] == blocks ? std::move(each) : Tensor(shape, DType::kFloat32);
  Tensor shared = Tensor::zeros(shape, DType::kFloat32);
  for (int64_t e = 0; e < each.numel(); ++e)
    shared.data<float>()[e % (size * size)] += each.data<float>()[e];
  return shared;
}

}  // namespace

Variable cayley(Tape& tape, const Variable& parameters, int64_t num_blocks, int64_t block_size,
                const Cayley& options) {
  const int64_t stride = parameters.numel() / num_blocks;
  const int64_t square = block_size * block_size;
  const auto skew = [=](const Variable& p, int64_t k) {
    return skew_of(p.value().data<const float>() + k * stride, block_size, options.parameters);
  };
  Tensor r(Shape{num_blocks, block_size, block_size}, DType::kFloat32);
  parallel_for(num_blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k) {
      const Matrix rotation = rotation_of(skew(parameters, k), options.neumann_terms);
      for (int64_t e = 0; e < square; ++e)
        r.data<float>()[k * square + e] = static_cast<float>(rotation.data()[e]);
    }
  });
  Variable output = tape.result(std::move(r), {parameters});
  tape.record(output, [=](Tensor& dr) {
    Tensor gradient(parameters.shape(), DType::kFloat32);
    parallel_for(num_blocks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t k = begin; k < end; ++k) {
        const Eigen::Map<
            const Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>>
            of_block(dr.data<const float>() + k * square, block_size, block_size);
        skew_gradient(
            gradient_of_skew(skew(parameters, k), of_block.cast<double>(), options.neumann_terms),
            options.parameters, gradient.data<float>() + k * stride);
      }
    });
    parameters.grad_ref().give(std::move(gradient));
  });
  return output;
}

std::vector<uint8_t> draw_blocks(const CounterRng& rng, int64_t n, double p) {
  const auto num_held = static_cast<int64_t>(p * static_cast<double>(n));
  std::vector<int64_t> order(static_cast<size_t>(n));
  std::iota(order.begin(), order.end(), int64_t{0});
  std::vector<uint8_t> is_held(order.size(), 0);
  for (int64_t i = 0; i < num_held; ++i) {
    const auto step =
        static_cast<int64_t>(rng.below(static_cast<uint64_t>(i + 1), static_cast<uint64_t>(n - i)));
    std::swap(order[static_cast<size_t>(i)], order[static_cast<size_t>(i + step)]);
    is_held[static_cast<size_t>(order[static_cast<size_t>(i)])] = 1;
  }
  return is_held;
}

Variable hold_blocks(Tape& tape, const Variable& rotations, std::vector<uint8_t> is_held) {
  const int64_t size = rotations.dim(1);
  // Writes `value` on the diagonal of the blocks that are held, and 0 beside it.
  const auto fill = [size, is_held = std::move(is_held)](const Tensor& blocks, float value) {
    if (DryRun::current() != nullptr)
      return;
    for (size_t k = 0; k < is_held.size(); ++k) {
      float* block = blocks.data<float>() + static_cast<int64_t>(k) * size * size;
      for (int64_t e = 0; is_held[k] != 0 && e < size * size; ++e)
        block[e] = e % (size + 1) == 0 ? value : 0.0f;
    }
  };
  Tensor held(rotations.shape(), DType::kFloat32);
  kernels::cast(rotations.value(), held);
  fill(held, 1.0f);
  Variable output = tape.result(std::move(held), {rotations});
  tape.record(output, [rotations, fill](Tensor& dr) {
    fill(dr, 0.0f);
    rotations.grad_ref().give(std::move(dr));
  });
  return output;
}

Variable rotate_blocks(Tape& tape, const Variable& x, const Variable& rotations) {
  Tensor y(x.shape(), x.dtype());
  rotate(x.value(), rotations.value(), Direction::kForward, y);
  Variable output = tape.result(std::move(y), {x, rotations});
  tape.record(output, [x, rotations](Tensor& dy) {
    if (rotations.requires_grad())
      rotations.grad_ref().give(rotation_gradient(x.value(), dy, rotations.shape()));
    if (!x.requires_grad())
      return;
    rotate(dy, rotations.value(), Direction::kTransposed, dy);
    x.grad_ref().give(std::move(dy));
  });
  return output;
}

void rotate_weight_rows(const TensorView& rotations, const TensorView& rows) {
  rotate(rows, rotations, Direction::kTransposed, rows);
}

}  // namespace shardtune::adapters
