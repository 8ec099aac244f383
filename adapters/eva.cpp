#include "adapters/eva.h"

#include <Eigen/Dense>
#include <algorithm>
#include <cmath>

#include "core/rng.h"
#include "kernels/elementwise.h"
#include "kernels/gemm.h"

namespace shardtune::adapters {

namespace {

using autograd::Tape;
using autograd::Variable;
using kernels::Accumulate;
using kernels::Transpose;
using Matrix = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

// More directions than asked for make the leading ones converge faster.
constexpr int64_t kOversampled = 8;
// Passes that turn the basis; one more measures it.
constexpr int kPasses = 3;

// What is known of the inputs X [T,in] of one linear.
struct Basis {
  EvaTarget target;
  Tensor q;       // [k,in], orthonormal rows
  Tensor turned;  // [k,in] = (X Q^T)^T X
  Tensor gram;    // [k,k] = (X Q^T)^T (X Q^T)
};

Matrix to_matrix(const Tensor& values) {
  const Eigen::Map<const Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>> map(
      values.data<const float>(), values.dim(0), values.dim(1));
  return map.cast<double>();
}

void from_matrix(const Matrix& matrix, const Tensor& values) {
  std::transform(matrix.data(), matrix.data() + matrix.size(), values.data<float>(),
                 [](double value) { return static_cast<float>(value); });
}

// Orthonormal rows that span those of `rows`.
void orthonormalise(const Matrix& rows, const Tensor& q) {
  const Eigen::HouseholderQR<Eigen::MatrixXd> qr{Eigen::MatrixXd(rows.transpose())};
  const Eigen::MatrixXd basis =
      qr.householderQ() * Eigen::MatrixXd::Identity(rows.cols(), rows.rows());
  from_matrix(basis.transpose(), q);
}

// Of the tokens, as PEFT's incremental PCA does.
void subtract_mean(const Tensor& x) {
  const Tensor sums(Shape{x.dim(1)}, DType::kFloat32), shift(Shape{x.dim(1)}, DType::kFloat32);
  kernels::sum_rows(x, sums, Accumulate::kNo);
  kernels::copy_scaled(sums, shift, Accumulate::kNo, -1.0f / static_cast<float>(x.dim(0)));
  kernels::add_bias(shift, x);
}

// Hook (1): sees what the linears take and leaves them as they are.
class SeeInputs : public models::Hooks {
 public:
  SeeInputs(int64_t num_linears, std::vector<Basis>& bases, int64_t num_tokens)
      : bases_(static_cast<size_t>(num_linears)), num_tokens_(num_tokens) {
    for (Basis& basis : bases)
      bases_[static_cast<size_t>(basis.target.linear->index())] = &basis;
  }

  bool wraps(const models::BaseLinear& linear) const override {
    return bases_[static_cast<size_t>(linear.index())] != nullptr;
  }
  Variable on_linear(Tape&, const models::BaseLinear& linear, const Variable& input,
                     const models::PassContext&, const Next& next) override {
    Basis& basis = *bases_[static_cast<size_t>(linear.index())];
    // Rows past the batch are padding.
    const TensorView rows = input.value().rows(0, num_tokens_);
    const Tensor x(rows.shape(), DType::kFloat32);
    kernels::cast(rows, x);
    subtract_mean(x);
    const Tensor y(Shape{num_tokens_, basis.q.dim(0)}, DType::kFloat32);
    kernels::gemm(x, basis.q, Transpose::kYes, y, Accumulate::kNo);
    kernels::gemm_over_tokens(y, x, basis.turned, Accumulate::kNo);
    kernels::gemm_over_tokens(y, y, basis.gram, Accumulate::kNo);
    return next(input);
  }

 private:
  std::vector<Basis*> bases_;  // by BaseLinear::index()
  int64_t num_tokens_;
};

// The basis turned to its own principal directions.
std::vector<float> leading_rows(const Basis& basis) {
  const Matrix gram = to_matrix(basis.gram);
  if (!gram.allFinite())
    throw NonFiniteError(basis.target.linear->path() +
                         ": eva: its inputs are NaN or infinite. Check the model's weights.");
  const Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd> solver{
      Eigen::MatrixXd((gram + gram.transpose()) / 2.0)};
  const Eigen::MatrixXd turn = solver.eigenvectors().rowwise().reverse();
  Matrix rows = turn.leftCols(basis.target.rank).transpose() * to_matrix(basis.q);
  for (int64_t k = 0; k < rows.rows(); ++k) {
    Eigen::Index largest = 0;
    rows.row(k).cwiseAbs().maxCoeff(&largest);
    if (rows(k, largest) < 0.0)
      rows.row(k) *= -1.0;
  }
  std::vector<float> values(static_cast<size_t>(rows.size()));
  std::transform(rows.data(), rows.data() + rows.size(), values.begin(),
                 [](double value) { return static_cast<float>(value); });
  return values;
}

Basis random_basis(const EvaTarget& target, uint64_t seed) {
  const int64_t in = target.linear->in_features();
  const int64_t size = std::min(in, target.rank + kOversampled);
  const CounterRng rng(mix_key(seed, target.linear->path() + ".eva"));
  Matrix rows(size, in);
  for (int64_t i = 0; i < rows.size(); ++i)
    rows.data()[i] = rng.normal(static_cast<uint64_t>(i));
  Basis basis{target, Tensor(Shape{size, in}, DType::kFloat32),
              Tensor(Shape{size, in}, DType::kFloat32), Tensor(Shape{size, size}, DType::kFloat32)};
  orthonormalise(rows, basis.q);
  return basis;
}

}  // namespace

std::vector<std::vector<float>> eva_directions(int64_t num_linears,
                                               const std::vector<EvaTarget>& targets,
                                               const InitContext& context) {
  if (context.forward == nullptr)
    throw ArgumentError("init_lora_weights eva: expected a sample of the data, found none");
  std::vector<Basis> bases;
  for (const EvaTarget& target : targets)
    bases.push_back(random_basis(target, context.seed));
  SeeInputs hooks(num_linears, bases, context.num_tokens);
  for (int pass = 0; pass < kPasses; ++pass) {
    context.forward(hooks);
    for (Basis& basis : bases) {
      const Matrix turned = to_matrix(basis.turned);
      if (turned.allFinite())  // else told by leading_rows()
        orthonormalise(turned, basis.q);
    }
  }
  context.forward(hooks);
  std::vector<std::vector<float>> directions;
  for (const Basis& basis : bases)
    directions.push_back(leading_rows(basis));
  return directions;
}

}  // namespace shardtune::adapters
