// Declares a family's parameters in the store and loads them from the source, shapes checked
// against the configuration. Declarations come first, run() then reads tensor after tensor.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "models/model.h"

namespace shardtune::models {

class Loader {
 public:
  /// Linears are appended to `linears` in order of declaration, which numbers them.
  /// What is trained is appended to `trained`.
  Loader(const ModelSource& source, ParameterStore& store, const LoadOptions& options,
         std::vector<std::unique_ptr<BaseLinear>>& linears, std::vector<TrainedTensor>& trained)
      : source_(source), store_(store), options_(options), linears_(linears), trained_(trained) {}

  using Kind = TrainedBase::Kind;
  /// A vector in f32, frozen or trained.
  ParameterId vector(UnitId unit, const std::string& name, int64_t size, Kind kind = Kind::kNorm);

  enum class Bias { kNo, kYes };
  /// `path`.weight [out,in], in the format asked for, and `path`.bias.
  const BaseLinear* linear(UnitId unit, const std::string& path, Shape out_in, Bias bias);

  /// A table [rows, hidden_size] cut into units of its own, with the values of the tensor `from`
  /// (empty: of `name`).
  std::unique_ptr<VocabularyTable> table(const std::string& name, int64_t rows,
                                         const std::string& from = "");

  void run();

 private:
  void expect_shape(const std::string& name, const std::vector<int64_t>& expected) const;

  const ModelSource& source_;
  ParameterStore& store_;
  const LoadOptions& options_;
  std::vector<std::unique_ptr<BaseLinear>>& linears_;
  std::vector<TrainedTensor>& trained_;
  std::vector<std::function<void(quant::LoadBuffers&)>> loads_;
};

}  // namespace shardtune::models
