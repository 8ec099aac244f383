// The order in which units are leased. Gathers are collective, so all ranks must make the same ones
// in the same order: a walk is a list fixed before it begins, the same at every stage, and every
// lease is checked against it, also where nothing is gathered. Each entry of the list is brought
// once, and entries after the unit at work are fetched ahead, as many as the residency allows.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "parallel/parameter_table.h"
#include "parallel/unit_residency.h"

namespace shardtune::parallel {

class UnitWalk {
 public:
  /// Both outlive the walk.
  UnitWalk(const ParameterTable& table, UnitResidency& residency)
      : table_(table), residency_(residency) {}

  /// ArgumentError: a walk is open, an unknown unit, a unit that is leased.
  void begin(std::span<const UnitId> units);
  /// Goes through what is left without work, where units are gathered. ArgumentError: no walk, or a
  /// lease that is left.
  void end();
  /// Ends it where it stands, after an error.
  void abandon() noexcept {
    open_ = false;
    current_.reset();
  }

  /// ArgumentError: not the unit that the walk expects.
  void acquire(UnitId unit);
  void release(UnitId unit) noexcept;
  /// ArgumentError: the walk expects a unit.
  void fetch_rows(std::span<const RowFetch> fetches);

  bool is_leased(UnitId unit) const {
    const auto index = static_cast<size_t>(unit);
    return index < num_leases_.size() && num_leases_[index] > 0;
  }
  /// ArgumentError naming `call` while a walk is open: other collectives would come in between.
  void require_closed(std::string_view call) const;

 private:
  std::string_view name_of_entry(UnitId unit) const;
  std::string place() const;
  void expect(UnitId found) const;
  void leave_current();
  bool is_under_way(size_t entry) const;
  void prefetch_ahead();
  int64_t& num_leases(UnitId unit);

  const ParameterTable& table_;
  UnitResidency& residency_;
  bool open_ = false;
  std::vector<UnitId> entries_;
  size_t next_ = 0;
  size_t ahead_ = 0;               // the first entry not under way
  std::optional<UnitId> current_;  // the last unit entered; kept until the next, leased or not
  std::vector<int64_t> num_leases_;
};

}  // namespace shardtune::parallel
