#include "adapters/eva.h"

#include <Eigen/Dense>
#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <numeric>

#include "core/dry_run.h"
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

// What is known of the inputs X [T,in] of linears that take the same.
struct Basis {
  const models::BaseLinear* linear = nullptr;  // the first of them
  int64_t rank = 0;
  Tensor q;       // [k,in], orthonormal rows
  Tensor turned;  // [k,in] = (X Q^T)^T X
  Tensor gram;    // [k,k] = (X Q^T)^T (X Q^T)
  double variance = 0.0;
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

/// Indices by BaseLinear::index() of what a pass looks at.
class Looking : public models::Hooks {
 public:
  Looking(int64_t num_linears, const std::vector<EvaTarget>& targets)
      : target_of_(static_cast<size_t>(num_linears), kNone) {
    for (size_t i = 0; i < targets.size(); ++i)
      target_of_[static_cast<size_t>(targets[i].linear->index())] = i;
  }
  bool wraps(const models::BaseLinear& linear) const override { return target_of(linear) != kNone; }

 protected:
  size_t target_of(const models::BaseLinear& linear) const {
    return target_of_[static_cast<size_t>(linear.index())];
  }

 private:
  static constexpr size_t kNone = static_cast<size_t>(-1);
  std::vector<size_t> target_of_;
};

// Hook (1): which linears take the very inputs of the one before them.
class CompareInputs : public Looking {
 public:
  CompareInputs(int64_t num_linears, const std::vector<EvaTarget>& targets, int64_t num_tokens)
      : Looking(num_linears, targets), num_tokens_(num_tokens), group_of_(targets.size()) {}

  Variable on_linear(Tape&, const models::BaseLinear& linear, const Variable& input,
                     const models::PassContext&, const Next& next) override {
    const TensorView rows = input.value().rows(0, num_tokens_);
    const auto num_bytes = static_cast<size_t>(rows.num_bytes());
    const bool is_same = rows.shape() == last_.shape() && rows.dtype() == last_.dtype() &&
                         std::memcmp(rows.raw(), last_.view().raw(), num_bytes) == 0;
    if (!is_same) {
      ++num_groups_;
      last_ = Tensor(rows.shape(), rows.dtype());
      std::memcpy(last_.view().raw(), rows.raw(), num_bytes);
    }
    group_of_[target_of(linear)] = num_groups_ - 1;
    return next(input);
  }
  const std::vector<size_t>& group_of() const { return group_of_; }  // by target

 private:
  int64_t num_tokens_;
  std::vector<size_t> group_of_;
  size_t num_groups_ = 0;
  Tensor last_;
};

// Hook (1): sees what the linears take and leaves them as they are.
class SeeInputs : public Looking {
 public:
  SeeInputs(int64_t num_linears, const std::vector<EvaTarget>& targets,
            const std::vector<size_t>& group_of, std::vector<Basis>& bases,
            std::vector<int64_t> seen)
      : Looking(num_linears, targets), group_of_(group_of), bases_(bases), seen_(std::move(seen)) {}

  Variable on_linear(Tape&, const models::BaseLinear& linear, const Variable& input,
                     const models::PassContext&, const Next& next) override {
    Basis& basis = bases_[group_of_[target_of(linear)]];
    if (basis.linear == &linear)
      see(basis, input.value());
    return next(input);
  }

 private:
  void see(Basis& basis, const TensorView& input) const {
    const int64_t n = std::ssize(seen_);
    const Tensor x(Shape{n, input.dim(1)}, DType::kFloat32);
    for (int64_t i = 0; i < n; ++i) {
      const int64_t t = seen_[static_cast<size_t>(i)];
      kernels::cast(input.rows(t, t + 1), x.view().rows(i, i + 1));
    }
    subtract_mean(x);
    const Tensor y(Shape{n, basis.q.dim(0)}, DType::kFloat32);
    kernels::gemm(x, basis.q, Transpose::kYes, y, Accumulate::kNo);
    kernels::gemm_over_tokens(y, x, basis.turned, Accumulate::kNo);
    kernels::gemm_over_tokens(y, y, basis.gram, Accumulate::kNo);
    if (DryRun::current() != nullptr)
      return;
    basis.variance = 0.0;
    for (const float value : x.span<const float>())
      basis.variance += static_cast<double>(value) * value;
  }

  const std::vector<size_t>& group_of_;
  std::vector<Basis>& bases_;
  std::vector<int64_t> seen_;
};

// The basis turned to its own principal directions.
EvaDirections leading_directions(const Basis& basis) {
  const Matrix gram = to_matrix(basis.gram);
  if (!gram.allFinite())
    throw NonFiniteError(basis.linear->path() +
                         ": eva: its inputs are NaN or infinite. Check the model's weights.");
  const Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd> solver{
      Eigen::MatrixXd((gram + gram.transpose()) / 2.0)};
  const Eigen::MatrixXd turn = solver.eigenvectors().rowwise().reverse();
  Matrix rows = turn.leftCols(basis.rank).transpose() * to_matrix(basis.q);
  for (int64_t k = 0; k < rows.rows(); ++k) {
    Eigen::Index largest = 0;
    rows.row(k).cwiseAbs().maxCoeff(&largest);
    if (rows(k, largest) < 0.0)
      rows.row(k) *= -1.0;
  }
  EvaDirections found;
  found.rows.resize(static_cast<size_t>(rows.size()));
  std::transform(rows.data(), rows.data() + rows.size(), found.rows.begin(),
                 [](double value) { return static_cast<float>(value); });
  found.variance = basis.variance;
  for (int64_t k = 0; k < basis.rank; ++k)
    found.variances.push_back(std::max(0.0, solver.eigenvalues()[gram.rows() - 1 - k]));
  return found;
}

Basis make_basis(const models::BaseLinear& linear, int64_t rank, uint64_t seed) {
  const int64_t in = linear.in_features();
  const int64_t size = std::min(in, rank + kOversampled);
  Basis basis{&linear, rank, Tensor(Shape{size, in}, DType::kFloat32),
              Tensor(Shape{size, in}, DType::kFloat32), Tensor(Shape{size, size}, DType::kFloat32)};
  if (DryRun::current() != nullptr)
    return basis;
  const CounterRng rng(mix_key(seed, linear.path() + ".eva"));
  Matrix rows(size, in);
  for (int64_t i = 0; i < rows.size(); ++i)
    rows.data()[i] = rng.normal(static_cast<uint64_t>(i));
  orthonormalise(rows, basis.q);
  return basis;
}

// The group of each target. A dry run has no inputs to compare: each is a group of its own.
std::vector<size_t> group_targets(int64_t num_linears, const std::vector<EvaTarget>& targets,
                                  const InitContext& context) {
  if (DryRun::current() != nullptr) {
    std::vector<size_t> own(targets.size());
    std::iota(own.begin(), own.end(), size_t{0});
    return own;
  }
  CompareInputs compare(num_linears, targets, context.sample->num_tokens());
  context.forward(compare);
  return compare.group_of();
}

std::vector<Basis> make_bases(const std::vector<EvaTarget>& targets,
                              const std::vector<size_t>& group_of, uint64_t seed) {
  std::map<size_t, EvaTarget> groups;  // the first linear, the largest rank
  for (size_t i = 0; i < targets.size(); ++i) {
    EvaTarget& group = groups.try_emplace(group_of[i], targets[i]).first->second;
    group.rank = std::max(group.rank, targets[i].rank);
  }
  std::vector<Basis> bases;
  for (const auto& [index, group] : groups)
    bases.push_back(make_basis(*group.linear, group.rank, seed));
  return bases;
}

// Tokens that are looked at; rows past the batch are padding.
std::vector<int64_t> tokens_seen(const TokenBatch& batch, bool use_label_mask) {
  std::vector<int64_t> seen;
  for (int64_t t = 0; t < batch.num_tokens(); ++t) {
    const auto i = static_cast<size_t>(t);
    // The label of a token stands with the one before it in its sample.
    const bool is_trained = batch.token_indices[i] > 0 && batch.labels[i - 1] != kIgnoreLabel;
    if (!use_label_mask || is_trained)
      seen.push_back(t);
  }
  return seen;
}

void check_sample(const std::vector<EvaTarget>& targets, int64_t num_seen, bool use_label_mask) {
  for (const EvaTarget& target : targets) {
    if (target.rank < num_seen)
      continue;
    throw ConfigError(
        "adapter.init_lora_weights: eva: expected more than " + std::to_string(target.rank) +
        (use_label_mask ? " trained tokens" : " tokens") +
        " at the start of the training data, as many directions as " + target.linear->path() +
        " may get, found " + std::to_string(num_seen) + ". Lower lora_rank or eva_config.rho" +
        (use_label_mask ? ", or write 'eva_config: {use_label_mask: false}'." : "."));
  }
}

}  // namespace

std::vector<std::shared_ptr<const EvaDirections>> eva_directions(
    int64_t num_linears, const std::vector<EvaTarget>& targets, const InitContext& context,
    bool use_label_mask) {
  if (context.forward == nullptr || context.sample == nullptr)
    throw ArgumentError("init_lora_weights eva: expected a sample of the data, found none");
  std::vector<int64_t> seen = tokens_seen(*context.sample, use_label_mask);
  check_sample(targets, std::ssize(seen), use_label_mask);
  const std::vector<size_t> group_of = group_targets(num_linears, targets, context);
  std::vector<Basis> bases = make_bases(targets, group_of, context.seed);
  SeeInputs hooks(num_linears, targets, group_of, bases, std::move(seen));
  if (DryRun::current() != nullptr) {
    context.forward(hooks);
    return {};
  }
  for (int pass = 0; pass < kPasses; ++pass) {
    context.forward(hooks);
    for (Basis& basis : bases) {
      const Matrix turned = to_matrix(basis.turned);
      if (turned.allFinite())  // else told by leading_directions()
        orthonormalise(turned, basis.q);
    }
  }
  context.forward(hooks);
  std::vector<std::shared_ptr<const EvaDirections>> of_groups;
  for (const Basis& basis : bases)
    of_groups.push_back(std::make_shared<EvaDirections>(leading_directions(basis)));
  std::vector<std::shared_ptr<const EvaDirections>> directions;
  for (const size_t group : group_of)
    directions.push_back(of_groups[group]);
  return directions;
}

std::vector<float> eva_start_of(const EvaDirections& found, int64_t rank, int64_t in, bool whiten) {
  std::vector<float> rows(found.rows.begin(), found.rows.begin() + rank * in);
  if (!whiten)
    return rows;
  for (int64_t k = 0; k < rank; ++k) {
    const double singular = std::sqrt(found.variances[static_cast<size_t>(k)]);
    if (singular == 0.0)
      continue;  // the inputs have no such direction
    const auto factor = static_cast<float>(1.0 / std::sqrt(singular));
    for (int64_t i = 0; i < in; ++i)
      rows[static_cast<size_t>(k * in + i)] *= factor;
  }
  return rows;
}

}  // namespace shardtune::adapters
