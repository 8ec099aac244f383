// A ParameterStore of frozen bytes in memory, for a weight that is quantised by itself, outside of
// a model.
#pragma once

#include <string>
#include <vector>

#include "core/parameter_store.h"

namespace shardtune::exporting {

class MemoryStore final : public ParameterStore {
 public:
  UnitId add_unit(std::string) override { return UnitId{num_units_++}; }
  ParameterId declare(ParameterSpec spec) override;
  bool is_publisher(ParameterId) const override { return true; }
  void publish(ParameterId id, std::span<const std::byte> bytes) override;
  UnitLease acquire(UnitId unit, Pass) override { return {*this, unit}; }
  int64_t num_parameters() const override { return std::ssize(entries_); }
  const ParameterSpec& spec(ParameterId id) const override { return at(id).spec; }
  ParameterId find(std::string_view name) const override;
  TensorView value(ParameterId id) const override { return at(id).value.view(); }
  int64_t max_held_bytes() const override { return INT64_MAX; }

  // ArgumentError: it holds no tables and no trainables.
  void fetch_rows(std::span<const RowFetch>) override;
  void begin_walk(std::span<const UnitId>) override {}
  void end_walk() override {}
  TensorView value_bf16(ParameterId id) const override;
  void grad(ParameterId id, const TensorView& leaf) override;

 protected:
  void release(UnitId) noexcept override {}

 private:
  struct Entry {
    ParameterSpec spec;
    Tensor value;
  };
  const Entry& at(ParameterId id) const { return entries_.at(static_cast<size_t>(id)); }

  int32_t num_units_ = 0;
  std::vector<Entry> entries_;
};

}  // namespace shardtune::exporting
