#include "models/int8_linears.h"

#include <algorithm>
#include <cmath>
#include <map>

#include "core/dry_run.h"
#include "core/parallel_for.h"
#include "kernels/elementwise.h"

namespace shardtune::models {

namespace {
using quant::W8A8;

constexpr char kFirstLetter = 'a';
constexpr int kNumExponents = W8A8::kMaxExponent - W8A8::kMinExponent + 1;

[[noreturn]] void throw_foreign(const std::string& source, const std::string& what,
                                const std::string& expected, const std::string& found) {
  throw DataError(source + ": int8_migration: " + what + ": expected " + expected + ", found " +
                  found + ". Use the file that was written for this base.");
}

std::vector<int8_t> parse_exponents(const Int8Migration& saved, const BaseLinear& linear,
                                    const std::string& source) {
  if (std::ssize(saved.exponents) != linear.in_features()) {
    throw_foreign(source, linear.path(), std::to_string(linear.in_features()) + " letters",
                  std::to_string(saved.exponents.size()));
  }
  std::vector<int8_t> exponents;
  for (const char letter : saved.exponents) {
    if (letter < kFirstLetter || letter >= kFirstLetter + kNumExponents)
      throw_foreign(source, linear.path(), "letters a to z", "character " + std::to_string(letter));
    exponents.push_back(static_cast<int8_t>(letter - kFirstLetter + W8A8::kMinExponent));
  }
  return exponents;
}

/// Exponents of every linear, in the model's order.
std::vector<std::vector<int8_t>> parse_migration(Model& model,
                                                 const std::vector<Int8Migration>& saved,
                                                 const std::string& source) {
  const std::vector<BaseLinear*> linears = model.linears();
  if (saved.size() != linears.size()) {
    throw_foreign(source, "linears", std::to_string(linears.size()), std::to_string(saved.size()));
  }
  std::map<std::string_view, const Int8Migration*> by_path;
  for (const Int8Migration& linear : saved)
    by_path.emplace(linear.linear, &linear);
  std::vector<std::vector<int8_t>> exponents;
  for (const BaseLinear* linear : linears) {
    const auto found = by_path.find(linear->path());
    if (found == by_path.end())
      throw_foreign(source, linear->path(), "its exponents", "none");
    exponents.push_back(parse_exponents(*found->second, *linear, source));
  }
  return exponents;
}

float element(const TensorView& x, int64_t i) {
  return x.dtype() == DType::kFloat32 ? x.data<float>()[i]
                                      : static_cast<float>(x.data<BFloat16>()[i]);
}

/// Largest magnitude of each column.
std::vector<float> column_absmax(const TensorView& x) {
  const int64_t rows = x.dim(0), columns = x.dim(1);
  std::vector<float> absmax(static_cast<size_t>(columns), 0.0f);
  parallel_for(columns, 64, [&](int64_t begin, int64_t end) {
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t c = begin; c < end; ++c)
        absmax[c] = std::max(absmax[c], std::abs(element(x, r * columns + c)));
  });
  return absmax;
}

/// |found - expected| / |expected| over all elements; sums by row, rows added in order.
double relative_error(const TensorView& found, const TensorView& expected) {
  const int64_t rows = expected.dim(0), columns = expected.dim(1);
  std::vector<double> errors(static_cast<size_t>(rows)), squares(static_cast<size_t>(rows));
  parallel_for(rows, 16, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      for (int64_t i = r * columns; i < (r + 1) * columns; ++i) {
        const double e = element(expected, i), d = element(found, i) - e;
        errors[r] += d * d;
        squares[r] += e * e;
      }
    }
  });
  double error = 0.0, square = 0.0;
  for (int64_t r = 0; r < rows; ++r) {
    error += errors[r];
    square += squares[r];
  }
  return square > 0.0 ? std::sqrt(error / square) : 0.0;
}

/// Hook (1) of the forward pass that sets the scales: a linear is measured when it runs, and its
/// exact output goes on.
class SetScales : public Hooks {
 public:
  /// `exponents` by BaseLinear::index(), empty to choose them.
  SetScales(int64_t num_tokens, std::vector<std::vector<int8_t>> exponents)
      : num_tokens_(num_tokens), exponents_(std::move(exponents)) {}

  bool wraps(const BaseLinear& linear) const override { return true; }
  Variable on_linear(Tape& tape, const BaseLinear& linear, const Variable& x, const PassContext&,
                     const Next& next) override {
    Variable y = next(x);  // before its scales are there: by the stored weight
    W8A8& int8 = *linear.int8();
    // Rows past the batch are padding.
    const TensorView rows = x.value().rows(0, num_tokens_);
    if (exponents_.empty())
      int8.calibrate(column_absmax(rows));
    else
      int8.set_exponents(exponents_[static_cast<size_t>(linear.index())]);
    const Tensor found(Shape{num_tokens_, linear.out_features()}, DType::kFloat32);
    int8.matmul(rows, found, quant::Accumulate::kNo);
    if (linear.bias() != kNoParameter)
      kernels::add_bias(tape.store().value(linear.bias()), found);
    errors_.push_back({linear.path(), linear.unit(),
                       DryRun::current() != nullptr
                           ? 0.0
                           : relative_error(found, y.value().rows(0, num_tokens_))});
    return y;
  }

  std::vector<Int8Error>& errors() { return errors_; }

 private:
  int64_t num_tokens_;
  std::vector<std::vector<int8_t>> exponents_;
  std::vector<Int8Error> errors_;
};
}  // namespace

void enable_int8(Model& model) {
  for (BaseLinear* linear : model.linears()) {
    if (linear->is_trained()) {
      throw UnsupportedError(linear->path() +
                             ".weight: is to be trained, which products in int8 do not see. Use "
                             "'compute_dtype: auto', or train an adapter.");
    }
    linear->enable_int8();
  }
}

std::vector<Int8Error> prepare_int8(Model& model, const TokenBatch& batch,
                                    const std::vector<Int8Migration>& saved,
                                    const std::string& source) {
  SetScales hooks(batch.num_tokens(), saved.empty() ? std::vector<std::vector<int8_t>>()
                                                    : parse_migration(model, saved, source));
  ForwardOptions options;
  options.context.batch = &batch;
  options.hooks = {&hooks};
  model.store().begin_walk(model.forward_units());
  {
    Tape tape(model.store(), autograd::Recording::kOff);
    model.forward(tape, options);
  }
  model.store().end_walk();
  for (const BaseLinear* linear : model.linears()) {
    if (!linear->int8()->is_ready()) {
      throw UnsupportedError(linear->path() +
                             ": compute_dtype int8: expected every linear to run for every batch, "
                             "found one that did not. Use 'compute_dtype: auto'.");
    }
  }
  return std::move(hooks.errors());
}

void set_int8_migration(Model& model, const std::vector<Int8Migration>& saved,
                        const std::string& source) {
  const auto exponents = parse_migration(model, saved, source);
  const std::vector<BaseLinear*> linears = model.linears();
  for (size_t i = 0; i < linears.size(); ++i) {
    const UnitLease lease = model.store().acquire(linears[i]->unit(), Pass::kForward);
    linears[i]->int8()->set_exponents(exponents[i]);
  }
}

std::vector<Int8Migration> int8_migration(Model& model) {
  std::vector<Int8Migration> migration;
  for (const BaseLinear* linear : model.linears()) {
    if (linear->int8() == nullptr)
      return {};
    std::string letters;
    for (const int8_t exponent : linear->int8()->exponents())
      letters += static_cast<char>(kFirstLetter + exponent - W8A8::kMinExponent);
    migration.push_back({linear->path(), std::move(letters)});
  }
  return migration;
}

}  // namespace shardtune::models
