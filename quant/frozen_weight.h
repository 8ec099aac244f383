// The frozen base behind one interface (DESIGN section 8.6): adapters and models see products and
// rows, never a format. A weight is always [out, in]. Its bytes live in the ParameterStore as
// opaque components (codes, absmax, ...), valid while the unit is leased, so that every format can
// be sharded, gathered and offloaded in the same way.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "core/parameter_store.h"
#include "core/registry.h"
#include "kernels/gemm.h"

namespace shardtune::quant {

using kernels::Accumulate;

/// Copies rows [begin, end) of the original weight to out as fp32.
using RowSource = std::function<void(int64_t begin, int64_t end, float* out)>;

/// Copies rows [begin, end) as the model file holds them, whole blocks.
using ByteSource = std::function<void(int64_t begin, int64_t end, std::byte* out)>;

/// A change added to a weight: out [rows, in] f32 += delta rows [begin, end).
using DeltaSource = std::function<void(int64_t begin, int64_t end, float* out)>;

/// Buffers that the loads of one model share, so that their pages are touched once.
class LoadBuffers {
 public:
  std::span<float> values(int64_t count) { return first(values_, count); }
  std::span<std::byte> bytes(int64_t count) { return first(bytes_, count); }

 private:
  template <typename T>
  static std::span<T> first(std::vector<T>& buffer, int64_t count) {
    if (std::ssize(buffer) < count)
      buffer.resize(static_cast<size_t>(count));
    return std::span<T>(buffer).first(static_cast<size_t>(count));
  }
  std::vector<float> values_;
  std::vector<std::byte> bytes_;
};

class FrozenWeight {
 public:
  virtual ~FrozenWeight() = default;

  int64_t out_features() const { return out_features_; }
  int64_t in_features() const { return in_features_; }
  const std::string& name() const { return name_; }
  UnitId unit() const { return unit_; }
  virtual std::string_view format() const = 0;
  /// Columns that share a minimum of their own, of kept GGUF blocks that have one; 0: none do.
  virtual int64_t columns_per_minimum() const { return 0; }
  /// Store ids of the components, in order of declaration.
  virtual std::vector<ParameterId> components() const = 0;

  /// Reads, encodes and publishes the weight. All ranks call it in the same order; only a rank that
  /// publishes one of the components asks `rows`, in ascending slabs of about 4 MiB.
  /// Errors  NonFiniteError: a NaN or an infinity among the values (name, row, column)
  virtual void load(const RowSource& rows, LoadBuffers& buffers) = 0;
  void load(const RowSource& rows) {
    LoadBuffers buffers;
    load(rows, buffers);
  }

  /// Whether requantize() is there: the format is a quantiser of single rows or blocks.
  virtual bool can_requantize() const { return false; }
  /// Encodes other values and publishes them in place of the ones before, with the bytes that
  /// load() would make of them. Collective, between walks; the publisher alone asks `rows`, for
  /// some rows at a time that stay in a core's cache, on several threads at once.
  /// Errors  UnsupportedError: a format that keeps what the file holds
  virtual void requantize(const RowSource& rows);

  /// y [T,out] (+)= x [T,in] W^T. Dtypes  x f32 | bf16 (the compute dtype); y f32 | bf16
  void matmul(const TensorView& x, const TensorView& y, Accumulate accumulate) const {
    matmul_rows(x, 0, out_features_, y, accumulate);
  }
  /// y [T,out] = x W^T + term, added in f32 and rounded once.
  virtual void matmul_with_low_rank(const TensorView& x, const kernels::LowRankTerm& term,
                                    const TensorView& y) const = 0;
  /// dx [T,in] (+)= dy [T,out] W. Makes no dense copy of the weight.
  void matmul_transposed(const TensorView& dy, const TensorView& dx, Accumulate accumulate) const {
    matmul_rows_transposed(dy, 0, out_features_, dx, accumulate);
  }
  /// Rows [begin, end) as x W[begin:end]^T, for heads cut into vocabulary chunks.
  virtual void matmul_rows(const TensorView& x, int64_t begin, int64_t end, const TensorView& y,
                           Accumulate accumulate) const = 0;
  /// dx (+)= dy [T, end-begin] W[begin:end].
  virtual void matmul_rows_transposed(const TensorView& dy, int64_t begin, int64_t end,
                                      const TensorView& dx, Accumulate accumulate) const = 0;
  /// out [n,in] = W[ids], f32 or bf16. ids are in range (the caller checks tokens).
  virtual void rows(std::span<const int32_t> ids, const TensorView& out) const = 0;
  /// out [end-begin, in] f32 or bf16.
  virtual void dequantize_rows(int64_t begin, int64_t end, const TensorView& out) const = 0;
  /// Writes blocks of the leased weight, f32 or bf16, with the bits of whole rows. On the calling
  /// thread; many at once.
  virtual kernels::BlockSource blocks() const = 0;

  /// y (+)= x (W + delta)^T, by blocks of rows; the delta is added in fp32 to the dequantised rows
  /// and the sum rounded to x's dtype.
  void matmul_with_delta(const TensorView& x, const DeltaSource& delta, const TensorView& y,
                         Accumulate accumulate) const;

 protected:
  struct Spec {
    std::string name;
    UnitId unit{};
    int64_t out_features = 0;
    int64_t in_features = 0;
  };
  explicit FrozenWeight(Spec spec)
      : name_(std::move(spec.name)),
        unit_(spec.unit),
        out_features_(spec.out_features),
        in_features_(spec.in_features) {}

 private:
  std::string name_;
  UnitId unit_{};
  int64_t out_features_ = 0;
  int64_t in_features_ = 0;
};

/// What `quantization:` of the configuration says. block_size and double_quant concern nf4 and fp4
/// only.
struct QuantizationOptions {
  std::string method = "none";  // none | keep | nf4 | fp4 | int8
  int64_t block_size = 64;      // values per absmax (nf4, fp4)
  bool double_quant = false;    // absmax in 8 bits (nf4, fp4)
};

/// How the model file holds a weight: what `keep` keeps. The file is there until load().
struct StoredForm {
  std::string type;  // the file's word: "Q4_K", "BF16", ...
  ByteSource rows;
};

/// Declares one weight in the store. `compute` is the dtype of the activations it will meet; the
/// dense format keeps its weight in it.
struct FrozenWeightRequest {
  ParameterStore* store = nullptr;
  UnitId unit{};
  std::string name;  // as in the checkpoint, e.g. "model.layers.0.self_attn.q_proj.weight"
  int64_t out_features = 0;
  int64_t in_features = 0;
  DType compute = DType::kFloat32;
  StoredForm stored = {};
  /// Declares a trainable instead, held in fp32 whatever the format asked for.
  bool is_trained = false;
};
using FrozenWeightFactory = std::unique_ptr<FrozenWeight> (*)(const FrozenWeightRequest& request,
                                                              const QuantizationOptions& options);
/// "none" (dense), "keep" (as stored), "nf4", "fp4", "int8".
/// Errors  ConfigError: unknown method, block_size not a power of two in [32, 4096]
///         UnsupportedError: keep, and a stored type without a decoder
///         ArgumentError: no store, an extent below 1, compute neither f32 nor bf16
const Registry<FrozenWeightFactory>& frozen_formats();
std::unique_ptr<FrozenWeight> make_frozen_weight(const FrozenWeightRequest& request,
                                                 const QuantizationOptions& options);

}  // namespace shardtune::quant
