#include "parallel/unit_walk.h"

#include <fmt/format.h>

#include <algorithm>

#include "core/activity.h"

namespace shardtune::parallel {

int64_t& UnitWalk::num_leases(UnitId unit) {
  table_.unit(unit);
  if (num_leases_.size() < static_cast<size_t>(table_.num_units()))
    num_leases_.resize(static_cast<size_t>(table_.num_units()));
  return num_leases_[static_cast<size_t>(unit)];
}

std::string_view UnitWalk::name_of_entry(UnitId unit) const {
  return unit == kFetchRows ? std::string_view("fetch_rows()") : table_.unit(unit).name;
}

std::string UnitWalk::place() const {
  return fmt::format("walk of {} units, entry {}", entries_.size(), next_);
}

void UnitWalk::expect(UnitId found) const {
  if (next_ < entries_.size() && entries_[next_] == found)
    return;
  throw ArgumentError(fmt::format(
      "{}: expected '{}', found '{}'. Lease units in the order given to begin_walk().", place(),
      next_ < entries_.size() ? name_of_entry(entries_[next_]) : "the end", name_of_entry(found)));
}

void UnitWalk::require_closed(std::string_view call) const {
  if (open_)
    throw ArgumentError(
        fmt::format("{}: a walk is open ({}). Call end_walk() before it.", call, place()));
}

void UnitWalk::begin(std::span<const UnitId> units) {
  require_closed("begin_walk");
  if (std::ranges::any_of(num_leases_, [](int64_t n) { return n > 0; }))
    throw ArgumentError("begin_walk: expected no lease before it, found one. Release it first.");
  entries_.clear();
  for (const UnitId unit : units) {
    if (unit != kFetchRows)
      table_.unit(unit);
    if (unit == kFetchRows || entries_.empty() || entries_.back() != unit)
      entries_.push_back(unit);
  }
  open_ = true;
  next_ = ahead_ = 0;
  current_.reset();
  prefetch_ahead();
}

// Whether the unit of an entry is held, or fetched for an entry before it.
bool UnitWalk::is_under_way(size_t entry) const {
  const UnitId unit = entries_[entry];
  const auto first = entries_.begin() + static_cast<std::ptrdiff_t>(next_);
  const auto last = entries_.begin() + static_cast<std::ptrdiff_t>(entry);
  return unit == current_ || is_leased(unit) || std::find(first, last, unit) != last;
}

// Stops at rows, which would wait behind units, and at a unit that has to be let go first.
void UnitWalk::prefetch_ahead() {
  ahead_ = std::max(ahead_, next_);
  for (; ahead_ < entries_.size() && entries_[ahead_] != kFetchRows; ++ahead_) {
    if (!residency_.may_prefetch(entries_[ahead_], static_cast<int64_t>(ahead_ - next_)))
      return;
    if (ahead_ > next_ && is_under_way(ahead_))
      return;
    residency_.prefetch(entries_[ahead_]);
  }
}

void UnitWalk::leave_current() {
  if (current_ && num_leases(*current_) == 0)
    residency_.release(*current_);
  current_.reset();
}

void UnitWalk::acquire(UnitId unit) {
  int64_t& leases = num_leases(unit);
  if (leases == 0 && unit != current_) {
    if (open_) {
      expect(unit);
      leave_current();
    }
    {
      const ActivityScope waiting(Activity::kUnits);
      residency_.acquire(unit);
    }
    if (open_) {
      current_ = unit;
      ++next_;
      prefetch_ahead();
    }
  }
  ++leases;
}

void UnitWalk::release(UnitId unit) noexcept {
  int64_t& leases = num_leases_[static_cast<size_t>(unit)];
  if (--leases == 0 && unit != current_)
    residency_.release(unit);
}

void UnitWalk::fetch_rows(std::span<const RowFetch> fetches) {
  if (!open_) {
    residency_.fetch_rows(fetches);
    return;
  }
  expect(kFetchRows);
  leave_current();
  {
    const ActivityScope waiting(Activity::kUnits);
    residency_.fetch_rows(fetches);
  }
  ++next_;
  prefetch_ahead();
}

void UnitWalk::end() {
  if (!open_)
    throw ArgumentError("end_walk: expected an open walk, found none");
  // A prefetch under way is waited for in any case.
  if (!residency_.needs_whole_walks() && next_ < entries_.size())
    entries_.resize(entries_[next_] == kFetchRows ? next_ : next_ + 1);
  while (next_ < entries_.size()) {
    const UnitId unit = entries_[next_];
    if (unit == kFetchRows) {
      fetch_rows({});
    } else {
      acquire(unit);
      release(unit);
    }
  }
  leave_current();
  open_ = false;
  for (size_t i = 0; i < num_leases_.size(); ++i) {
    if (num_leases_[i] > 0)
      throw ArgumentError(fmt::format("end_walk: '{}' is still leased. Release it first.",
                                      table_.unit(static_cast<UnitId>(i)).name));
  }
}

}  // namespace shardtune::parallel
