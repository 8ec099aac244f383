#include "parallel/parameter_table.h"

#include <fmt/format.h>

#include "core/checked.h"
#include "core/rng.h"

namespace shardtune::parallel {

UnitId ParameterTable::add_unit(std::string name) {
  units_.push_back({std::move(name), {}});
  return UnitId{narrow<int32_t>(num_units() - 1)};
}

ParameterId ParameterTable::declare(ParameterSpec spec) {
  if (ids_.contains(spec.name))
    throw ArgumentError("declare('" + spec.name + "'): a parameter of this name is there already");
  const bool trainable = spec.kind == ParameterKind::kTrainable;
  if (trainable && spec.dtype != DType::kFloat32)
    throw ArgumentError(fmt::format("declare('{}'): expected a trainable of float32, found {}",
                                    spec.name, name_of(spec.dtype)));
  unit(spec.unit);
  DeclaredParameter parameter;
  parameter.num_bytes = checked_mul(spec.shape.numel(), size_of(spec.dtype));
  parameter.publisher = spec.part_of == kNoParameter
                            ? static_cast<int>(num_tensors_++ % world_size_)
                            : at(spec.part_of).publisher;
  const ParameterId id{narrow<int32_t>(num_parameters())};
  ids_.emplace(spec.name, id);
  units_[static_cast<size_t>(spec.unit)].parameters.push_back(id);
  parameter.spec = std::move(spec);
  if (trainable) {
    parameter.trainable = trainables_.size();
    trainables_.push_back(id);
  }
  parameters_.push_back(std::move(parameter));
  return id;
}

const DeclaredParameter& ParameterTable::at(ParameterId id) const {
  const auto index = static_cast<int64_t>(id);
  if (index < 0 || index >= num_parameters())
    throw ArgumentError(fmt::format("parameter store: expected an id below {}, found {}",
                                    parameters_.size(), index));
  return parameters_[static_cast<size_t>(index)];
}

const DeclaredUnit& ParameterTable::unit(UnitId id) const {
  const auto index = static_cast<int64_t>(id);
  if (index < 0 || index >= num_units())
    throw ArgumentError(
        fmt::format("parameter store: expected a unit below {}, found {}", units_.size(), index));
  return units_[static_cast<size_t>(index)];
}

const DeclaredParameter& ParameterTable::trainable(ParameterId id, std::string_view call) const {
  const DeclaredParameter& parameter = at(id);
  if (!parameter.is_trainable())
    throw ArgumentError(
        fmt::format("{}: expected a trainable, found frozen '{}'", call, parameter.spec.name));
  return parameter;
}

ParameterId ParameterTable::find(std::string_view name) const {
  const auto found = ids_.find(std::string(name));
  return found == ids_.end() ? kNoParameter : found->second;
}

std::string ParameterTable::declarations() const {
  uint64_t digest = 0;
  for (const DeclaredParameter& parameter : parameters_) {
    const auto extents = parameter.spec.shape.extents();
    digest = mix_key(digest, parameter.spec.name);
    digest = mix_key(digest, {static_cast<uint64_t>(parameter.spec.unit),
                              static_cast<uint64_t>(parameter.spec.kind),
                              static_cast<uint64_t>(parameter.spec.dtype), extents.size()});
    for (const int64_t extent : extents)
      digest = mix_key(digest, {static_cast<uint64_t>(extent)});
  }
  return fmt::format("{} units, {} parameters, {} trainable, digest {:016x}", units_.size(),
                     parameters_.size(), trainables_.size(), digest);
}

}  // namespace shardtune::parallel
