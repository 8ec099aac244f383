// Units and parameters as they were declared: names, sizes, who publishes what. Every rank builds
// the same table; where the bytes live is a matter of unit_residency.h.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "core/parameter_store.h"

namespace shardtune::parallel {

struct DeclaredParameter {
  static constexpr size_t kNotTrainable = static_cast<size_t>(-1);

  ParameterSpec spec;
  int64_t num_bytes = 0;
  int publisher = 0;
  size_t trainable = kNotTrainable;  // index among trainables
  bool is_trainable() const { return trainable != kNotTrainable; }
};

struct DeclaredUnit {
  std::string name;
  std::vector<ParameterId> parameters;
};

class ParameterTable {
 public:
  explicit ParameterTable(int world_size) : world_size_(world_size) {}

  UnitId add_unit(std::string name);
  /// ArgumentError: unknown unit, name in use, trainable that is not fp32.
  ParameterId declare(ParameterSpec spec);

  int world_size() const { return world_size_; }
  int64_t num_units() const { return static_cast<int64_t>(units_.size()); }
  int64_t num_parameters() const { return static_cast<int64_t>(parameters_.size()); }
  /// ArgumentError: no such id.
  const DeclaredParameter& at(ParameterId id) const;
  const DeclaredUnit& unit(UnitId id) const;
  /// ArgumentError naming `call`: frozen.
  const DeclaredParameter& trainable(ParameterId id, std::string_view call) const;
  ParameterId find(std::string_view name) const;  // kNoParameter when absent
  const std::vector<ParameterId>& trainables() const { return trainables_; }
  /// What all ranks must declare alike, as text to compare.
  std::string declarations() const;

 private:
  int world_size_;
  std::vector<DeclaredUnit> units_;
  std::vector<DeclaredParameter> parameters_;
  std::vector<ParameterId> trainables_;
  std::unordered_map<std::string, ParameterId> ids_;
  int64_t num_tensors_ = 0;  // parameters that are no part of another
};

}  // namespace shardtune::parallel
