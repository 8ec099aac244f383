#include "adapters/lora_init.h"

#include <Eigen/Dense>
#include <algorithm>
#include <cmath>

namespace shardtune::adapters {

namespace {

using Matrix = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

Matrix dequantised(const models::BaseLinear& linear) {
  Tensor rows(Shape{linear.out_features(), linear.in_features()}, DType::kFloat32);
  linear.dequantize_rows(0, linear.out_features(), rows);
  const Eigen::Map<const Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>> map(
      rows.data<const float>(), linear.out_features(), linear.in_features());
  return map.cast<double>();
}

Matrix random_normal(int64_t rows, int64_t columns, const CounterRng& rng, uint64_t first) {
  Matrix values(rows, columns);
  for (int64_t i = 0; i < rows * columns; ++i)
    values.data()[i] = rng.normal(first + static_cast<uint64_t>(i));
  return values;
}

LoraFactors to_factors(const Matrix& a, const Matrix& b) {
  LoraFactors factors;
  factors.lora_A.assign(a.data(), a.data() + a.size());
  factors.lora_B.assign(b.data(), b.data() + b.size());
  return factors;
}

// The leading left singular vectors of w [m,n], n >= m seen from its narrow side: eigenvectors of
// w w^T, largest first.
Matrix leading_vectors(const Matrix& gram, int64_t rank) {
  const Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd> solver{Eigen::MatrixXd(gram)};
  return solver.eigenvectors().rowwise().reverse().leftCols(rank);
}

// Halko, Martinsson and Tropp 2011: subspace iteration from a random start.
Matrix iterated_vectors(const Matrix& w, const LoraFactorRequest& request) {
  Eigen::MatrixXd basis = w * random_normal(w.cols(), request.rank, request.rng, 0);
  for (int64_t i = 0; i <= request.niter; ++i) {
    const Eigen::HouseholderQR<Eigen::MatrixXd> qr(basis);
    basis = qr.householderQ() * Eigen::MatrixXd::Identity(w.rows(), request.rank);
    if (i < request.niter)
      basis = w * (w.transpose() * basis);
  }
  return basis;
}

LoraFactors pissa(const Matrix& w, const LoraFactorRequest& request) {
  // W = U S V^T; with U known, S V^T = U^T W.
  const bool is_tall = w.rows() > w.cols();
  Matrix u;
  if (request.niter > 0) {
    // The basis spans the leading vectors; the small factor's own SVD sorts them.
    const Matrix basis = iterated_vectors(w, request);
    const Matrix small = basis.transpose() * w;
    u = basis * leading_vectors(small * small.transpose(), request.rank);
  } else if (is_tall) {
    const Matrix v = leading_vectors(w.transpose() * w, request.rank);
    u = w * v;
    for (int64_t k = 0; k < request.rank; ++k)
      u.col(k) /= std::max(u.col(k).norm(), 1e-30);
  } else {
    u = leading_vectors(w * w.transpose(), request.rank);
  }
  Matrix a = u.transpose() * w;  // rows: singular value times right vector
  for (int64_t k = 0; k < request.rank; ++k) {
    const double singular = a.row(k).norm();
    const double root = std::sqrt(singular / request.scale);
    Eigen::Index largest = 0;
    a.row(k).cwiseAbs().maxCoeff(&largest);
    const double sign = a(k, largest) < 0.0 ? -1.0 : 1.0;
    a.row(k) *= sign * root / std::max(singular, 1e-30);
    u.col(k) *= sign * root;
  }
  return to_factors(a, u);
}

// What quantisation took: the weight of the file less that of the base.
Matrix quantisation_loss(const models::BaseLinear& linear, const models::ModelSource* source) {
  if (source == nullptr)
    throw ArgumentError(linear.path() + ": loftq: expected the original weights, found none");
  Matrix loss = -dequantised(linear);
  std::vector<float> row(static_cast<size_t>(linear.in_features()));
  for (int64_t i = 0; i < linear.out_features(); ++i) {
    source->read_rows(linear.weight().name(), i, i + 1, row.data());
    for (int64_t j = 0; j < linear.in_features(); ++j)
      loss(i, j) += row[static_cast<size_t>(j)];
  }
  source->drop(linear.weight().name());
  return loss;
}

LoraFactors olora(const Matrix& w, const LoraFactorRequest& request) {
  const Eigen::HouseholderQR<Eigen::MatrixXd> qr{Eigen::MatrixXd(w)};
  const int64_t narrow = std::min(w.rows(), w.cols());
  const Eigen::MatrixXd q = qr.householderQ() * Eigen::MatrixXd::Identity(w.rows(), narrow);
  const Eigen::MatrixXd r = qr.matrixQR().topRows(narrow).triangularView<Eigen::Upper>();
  return to_factors(r.topRows(request.rank), q.leftCols(request.rank));
}

// https://datta0.github.io/posts/rethink-lora-init: A and B see orthogonal halves, so that B A = 0.
LoraFactors orthogonal(const models::BaseLinear& linear, const LoraFactorRequest& request) {
  const int64_t rank = request.rank;
  const int64_t half = rank / 2;
  const auto square = static_cast<uint64_t>(rank * rank);
  const auto of_a = static_cast<uint64_t>(half * linear.in_features());
  const Eigen::HouseholderQR<Eigen::MatrixXd> qr{
      Eigen::MatrixXd(random_normal(rank, rank, request.rng, 0))};
  const Eigen::MatrixXd q = qr.householderQ();
  Eigen::MatrixXd odd(half, rank), even(half, rank);
  for (int64_t i = 0; i < half; ++i) {
    odd.row(i) = q.row(2 * i);
    even.row(i) = q.row(2 * i + 1);
  }
  const Matrix a =
      (random_normal(linear.in_features(), half, request.rng, square) * odd).transpose() / 10.0;
  const Matrix b =
      random_normal(linear.out_features(), half, request.rng, square + of_a) * even / 10.0;
  return to_factors(a, b);
}

}  // namespace

LoraFactors factor_lora_start(const models::BaseLinear& linear, const LoraFactorRequest& request) {
  if (request.init == LoraInit::kOrthogonal)
    return orthogonal(linear, request);
  if (request.init == LoraInit::kLoftq)
    return pissa(quantisation_loss(linear, request.source), request);
  const Matrix w = dequantised(linear);
  return request.init == LoraInit::kPissa ? pissa(w, request) : olora(w, request);
}

Tensor with_start(const TensorView& p, const Tensor* start, bool by_columns) {
  const bool has_start = start != nullptr;
  const int64_t times = has_start ? 2 : 1;
  Tensor result(by_columns ? Shape{p.dim(0), p.dim(1) * times} : Shape{p.dim(0) * times, p.dim(1)},
                DType::kFloat32);
  // Rows of both parts in turn: whole tensors of A, single rows of B.
  const int64_t run = by_columns ? p.dim(1) : p.numel();
  for (int64_t i = 0; i < p.numel() / run; ++i) {
    float* to = result.data<float>() + i * run * times;
    std::copy_n(p.data<const float>() + i * run, run, to);
    if (!has_start)
      continue;
    const float* from = start->data<const float>() + i * run;
    std::transform(from, from + run, to + run,
                   [&](float value) { return by_columns ? -value : value; });
  }
  return result;
}

void add_start(SavedTensor& tensor, bool is_a, const std::shared_ptr<Tensor>& start) {
  const int64_t run = is_a ? tensor.shape.numel() : tensor.shape[1];
  tensor.shape = is_a ? Shape{tensor.shape[0] * 2, tensor.shape[1]}
                      : Shape{tensor.shape[0], tensor.shape[1] * 2};
  tensor.compose = [run, is_a, start](const auto& sources, std::span<float> out) {
    for (int64_t i = 0; i < std::ssize(out); ++i) {
      const bool is_start = i / run % 2 != 0;
      const int64_t place = i / (2 * run) * run + i % run;
      const float value =
          is_start ? start->data<const float>()[place] : sources[0][static_cast<size_t>(place)];
      out[static_cast<size_t>(i)] = is_start && !is_a ? -value : value;
    }
  };
}

}  // namespace shardtune::adapters
