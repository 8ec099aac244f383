// The seam between model code and sharding (DESIGN section 8.5). Model code is single-device code:
// it declares parameters once, leases a unit before it runs and releases it after, in forward,
// backward and recompute. `parallel` decides where the bytes live. Tape nodes hold ParameterIds,
// never views: a view is valid only while its unit is leased.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/tensor.h"

namespace shardtune {

/// Index of a parameter in order of declaration.
enum class ParameterId : int32_t {};
/// A group of parameters gathered and released together: the embedding, one layer, the final norm,
/// one vocabulary chunk of the head, one shared tensor.
enum class UnitId : int32_t {};

inline constexpr ParameterId kNoParameter{-1};

/// What a lease is for.
enum class Pass { kForward, kBackward, kRecompute };

/// kFrozen: opaque bytes (codes, scales, dense weights), no gradient. kTrainable: fp32, with a
/// gradient and optimizer states.
enum class ParameterKind { kFrozen, kTrainable };

struct ParameterSpec {
  std::string name;  // unique; a trainable's is its name in the exported adapter
  UnitId unit{};
  ParameterKind kind = ParameterKind::kFrozen;
  DType dtype = DType::kUInt8;  // of the published bytes; kFloat32 for a trainable
  Shape shape;
  /// First component of the tensor that this is a part of (codes, absmax, ...): one rank reads a
  /// tensor and publishes all of its parts.
  ParameterId part_of = kNoParameter;
};

/// Rows of a frozen parameter whose first dimension counts rows; out has room for all of them.
struct RowFetch {
  ParameterId id{};
  std::span<const int32_t> rows;
  std::span<std::byte> out;
};

/// In a walk: a call of fetch_rows() instead of a lease.
inline constexpr UnitId kFetchRows{-1};

class ParameterStore;

/// Keeps a unit's parameters in memory while it lives. Counted: leases of one unit may nest.
class UnitLease {
 public:
  UnitLease() = default;
  UnitLease(ParameterStore& store, UnitId unit) : store_(&store), unit_(unit) {}
  ~UnitLease() { reset(); }
  UnitLease(UnitLease&& other) noexcept : store_(other.store_), unit_(other.unit_) {
    other.store_ = nullptr;
  }
  UnitLease& operator=(UnitLease&& other) noexcept {
    std::swap(store_, other.store_);
    std::swap(unit_, other.unit_);
    return *this;
  }
  UnitLease(const UnitLease&) = delete;
  UnitLease& operator=(const UnitLease&) = delete;
  void reset() noexcept;

 private:
  ParameterStore* store_ = nullptr;
  UnitId unit_{};
};

class ParameterStore {
 public:
  virtual ~ParameterStore() = default;

  /// Adds a unit.
  virtual UnitId add_unit(std::string name) = 0;
  /// Adds a parameter to a unit. ArgumentError: duplicate name, trainable that is not fp32.
  virtual ParameterId declare(ParameterSpec spec) = 0;

  /// Whether this rank reads, quantises and publishes the parameter: tensor t (parts not counted)
  /// is rank t mod world size's.
  virtual bool is_publisher(ParameterId id) const = 0;
  /// Hands the bytes to the store. All ranks call it, for the same ids in the same order; only the
  /// publisher's bytes count, others pass an empty span. The bytes are copied.
  virtual void publish(ParameterId id, std::span<const std::byte> bytes) = 0;

  /// Leases a unit. Where bytes are sharded this gathers: inside a walk the unit must be the next
  /// of the walk, the one before it, or leased already; outside of one, all ranks make the call.
  /// ArgumentError: another unit than the walk expects, naming both.
  virtual UnitLease acquire(UnitId unit, Pass pass) = 0;
  /// Copies rows without leasing the parameter: what an embedding needs. All ranks make the call,
  /// each for rows of its own, perhaps none.
  /// ArgumentError: not a frozen parameter of rows, a row out of range, no room
  virtual void fetch_rows(std::span<const RowFetch> fetches) = 0;

  /// Opens a walk: the units in the order in which they will be leased, each once as long as no
  /// other stands between. It depends on the model alone, never on data, and is the same on all
  /// ranks: the store brings the next unit while the one before is at work.
  virtual void begin_walk(std::span<const UnitId> units) = 0;
  /// Takes part in what is left of the walk and closes it. A rank without work opens and closes.
  virtual void end_walk() = 0;
  /// Bytes of units that may stay leased together during a walk beside the unit at work; above, the
  /// head leases one vocabulary chunk at a time.
  virtual int64_t max_held_bytes() const = 0;

  virtual int64_t num_parameters() const = 0;
  virtual const ParameterSpec& spec(ParameterId id) const = 0;
  virtual ParameterId find(std::string_view name) const = 0;  // kNoParameter when absent

  /// The whole parameter, valid while its unit is leased. ArgumentError when it is not.
  virtual TensorView value(ParameterId id) const = 0;
  /// bf16 copy of a trainable, made once per optimizer step; valid while leased.
  virtual TensorView value_bf16(ParameterId id) const = 0;

  /// Adds the finished gradient of one micro-batch (fp32, the parameter's shape). Called by the
  /// tape once per parameter and micro-batch, after its last use. The leaf is copied.
  virtual void grad(ParameterId id, const TensorView& leaf) = 0;

 protected:
  friend class UnitLease;
  virtual void release(UnitId unit) noexcept = 0;
};

inline void UnitLease::reset() noexcept {
  if (store_ != nullptr)
    store_->release(unit_);
  store_ = nullptr;
}

}  // namespace shardtune
