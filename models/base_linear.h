// One linear of the base model: a FrozenWeight and perhaps a bias. Adapters see this and never a
// format. Its forward is a tape operation whose backward needs only the frozen weight, so no input
// is saved for it, unless the weight is trained (LoadOptions::trained).
#pragma once

#include <memory>
#include <string>

#include "autograd/tape.h"
#include "models/hooks.h"
#include "quant/frozen_weight.h"
#include "quant/w8a8.h"

namespace shardtune::models {

class BaseLinear {
 public:
  /// `path` is the module path as PEFT sees it: "model.layers.0.self_attn.q_proj".
  BaseLinear(std::string path, int index, std::unique_ptr<quant::FrozenWeight> weight,
             ParameterId bias = kNoParameter);
  /// With a weight that is trained: its parameter.
  void set_trained(ParameterId weight) { trained_weight_ = weight; }

  const std::string& path() const { return path_; }
  /// Last component of the path: "q_proj".
  std::string leaf_name() const;
  /// Running number over all linears of the model, for adapters' tables.
  int index() const { return index_; }
  UnitId unit() const { return weight_->unit(); }
  int64_t in_features() const { return weight_->in_features(); }
  int64_t out_features() const { return weight_->out_features(); }
  const quant::FrozenWeight& weight() const { return *weight_; }
  quant::FrozenWeight& weight() { return *weight_; }
  ParameterId bias() const { return bias_; }
  /// Whether the weight is trained itself: then no adapter changes it.
  bool is_trained() const { return trained_weight_ != kNoParameter; }

  /// Computes in int8 from the moment its scales are set (models/int8_linears.h).
  void enable_int8() { int8_ = std::make_unique<quant::W8A8>(*weight_); }
  /// Null unless enabled.
  quant::W8A8* int8() const { return int8_.get(); }

  /// y [T,out] = x [T,in] W^T + b, in `dtype`: x's own, or f32 when more is to be added before the
  /// sum is rounded. The unit must be leased.
  Variable forward(Tape& tape, const Variable& x, DType dtype) const;
  /// forward(x) plus a low-rank update of `seen`, in one pass where the weight has one (a bias and
  /// products in int8 have none).
  Variable forward_with_low_rank(Tape& tape, const Variable& x, const Variable& seen,
                                 const autograd::LowRank& update) const;
  /// W dequantised, rows [begin, end) in f32.
  void dequantize_rows(int64_t begin, int64_t end, const TensorView& out) const {
    weight_->dequantize_rows(begin, end, out);
  }

 private:
  bool in_int8() const { return int8_ != nullptr && int8_->is_ready(); }
  /// What backward needs: the gradients that are wanted, and x where the weight's is.
  struct WayBack {
    DType dtype = DType::kFloat32;  // of x
    autograd::GradRef x, weight, bias;
    Variable saved_x;
  };
  WayBack way_back(const Variable& x, const Variable& weight, const Variable& bias) const;
  void go_back(Tensor& dy, const WayBack& way) const;

  std::string path_;
  int index_;
  std::unique_ptr<quant::FrozenWeight> weight_;
  ParameterId bias_;
  ParameterId trained_weight_ = kNoParameter;
  std::unique_ptr<quant::W8A8> int8_;
};

}  // namespace shardtune::models
