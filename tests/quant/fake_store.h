// A ParameterStore of one process for tests of weights. It can pose as one rank of several and
// refuses bytes that this rank does not publish.
#pragma once

#include <cstring>
#include <string>
#include <vector>

#include "core/error.h"
#include "core/parameter_store.h"

namespace shardtune::quant {

class FakeStore final : public ParameterStore {
 public:
  explicit FakeStore(int rank = 0, int world_size = 1) : rank_(rank), world_size_(world_size) {}

  UnitId add_unit(std::string name) override {
    units_.push_back(std::move(name));
    leases_.push_back(0);
    return static_cast<UnitId>(units_.size() - 1);
  }
  ParameterId declare(ParameterSpec spec) override {
    if (find(spec.name) != kNoParameter)
      throw ArgumentError("parameter " + spec.name + " is declared twice");
    entries_.push_back({std::move(spec), {}});
    return static_cast<ParameterId>(entries_.size() - 1);
  }
  bool is_publisher(ParameterId id) const override {
    const ParameterId whole = spec(id).part_of;
    return static_cast<int>(whole == kNoParameter ? id : whole) % world_size_ == rank_;
  }
  void publish(ParameterId id, std::span<const std::byte> bytes) override {
    Entry& entry = at(id);
    const int64_t expected =
        is_publisher(id) ? entry.spec.shape.numel() * size_of(entry.spec.dtype) : 0;
    if (std::ssize(bytes) != expected)
      throw ArgumentError("publish of " + entry.spec.name + ": expected " +
                          std::to_string(expected) + " bytes, found " +
                          std::to_string(bytes.size()));
    entry.bytes.assign(bytes.begin(), bytes.end());
    publish_order_.push_back(id);
  }
  UnitLease acquire(UnitId unit, Pass) override {
    ++leases_[static_cast<size_t>(unit)];
    return {*this, unit};
  }
  void fetch_rows(std::span<const RowFetch>) override { throw ArgumentError("no tables here"); }
  void begin_walk(std::span<const UnitId>) override {}
  void end_walk() override {}
  int64_t max_held_bytes() const override { return INT64_MAX; }
  int64_t num_parameters() const override { return std::ssize(entries_); }
  const ParameterSpec& spec(ParameterId id) const override { return at(id).spec; }
  ParameterId find(std::string_view name) const override {
    for (size_t i = 0; i < entries_.size(); ++i) {
      if (entries_[i].spec.name == name)
        return static_cast<ParameterId>(i);
    }
    return kNoParameter;
  }
  TensorView value(ParameterId id) const override {
    const Entry& entry = at(id);
    if (leases_[static_cast<size_t>(entry.spec.unit)] == 0)
      throw ArgumentError("parameter " + entry.spec.name + " is not leased");
    return {entry.bytes.data(), entry.spec.dtype, entry.spec.shape};
  }
  TensorView value_bf16(ParameterId) const override { throw ArgumentError("no trainables here"); }
  void grad(ParameterId, const TensorView&) override { throw ArgumentError("no trainables here"); }

  const std::vector<ParameterId>& publish_order() const { return publish_order_; }
  const std::vector<std::byte>& bytes(ParameterId id) const { return at(id).bytes; }

 protected:
  void release(UnitId unit) noexcept override { --leases_[static_cast<size_t>(unit)]; }

 private:
  struct Entry {
    ParameterSpec spec;
    std::vector<std::byte> bytes;
  };
  Entry& at(ParameterId id) { return entries_.at(static_cast<size_t>(id)); }
  const Entry& at(ParameterId id) const { return entries_.at(static_cast<size_t>(id)); }

  int rank_;
  int world_size_;
  std::vector<std::string> units_;
  std::vector<int> leases_;
  std::vector<Entry> entries_;
  std::vector<ParameterId> publish_order_;
};

}  // namespace shardtune::quant
