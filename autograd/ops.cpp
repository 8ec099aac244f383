#include "autograd/ops.h"

#include <utility>

#include "core/activity.h"
#include "core/parallel_for.h"
#include "kernels/norm.h"

namespace shardtune::autograd {

namespace {

using kernels::Transpose;

/// The weight in the dtype that products with `dtype` activations take.
TensorView weight_in(Tape& tape, ParameterId id, DType dtype) {
  return dtype == DType::kBFloat16 ? tape.store().value_bf16(id) : tape.store().value(id);
}

/// The gradient in the dtype that products with it take; `kept` owns a conversion.
TensorView in_dtype(const TensorView& x, DType dtype, Tensor& kept) {
  if (x.dtype() == dtype)
    return x;
  kept = Tensor(x.shape(), dtype);
  kernels::cast(x, kept);
  return kept.view();
}

}  // namespace

Variable add(Tape& tape, const Variable& a, const Variable& b) {
  Tensor sum(a.shape(), a.dtype());
  kernels::cast(a.value(), sum);
  kernels::copy_scaled(b.value(), sum, Accumulate::kYes);
  Variable output = tape.result(std::move(sum), {a, b});
  tape.record(output, [a = a.grad_ref(), b = b.grad_ref()](Tensor& dy) {
    if (b.wanted()) {
      const GradSlot slot = b.slot();
      kernels::copy_scaled(dy, slot.grad, slot.accumulate);
    }
    if (a.wanted())
      a.give(std::move(dy));
  });
  return output;
}

Variable scaled(Tape& tape, const Variable& x, float scale) {
  Tensor y(x.shape(), x.dtype());
  kernels::copy_scaled(x.value(), y, Accumulate::kNo, scale);
  Variable output = tape.result(std::move(y), {x});
  tape.record(output, [x = x.grad_ref(), scale](Tensor& dy) {
    const GradSlot slot = x.slot();
    kernels::copy_scaled(dy, slot.grad, slot.accumulate, scale);
  });
  return output;
}

Variable cast(Tape& tape, const Variable& x, DType dtype) {
  if (x.dtype() == dtype)
    return x;
  Tensor y(x.shape(), dtype);
  kernels::cast(x.value(), y);
  Variable output = tape.result(std::move(y), {x});
  tape.record(output, [x = x.grad_ref()](Tensor& dy) { x.give(std::move(dy)); });
  return output;
}

namespace {

template <typename T>
void multiply_typed(const TensorView& a, const TensorView& b, const GradSlot& slot, T* out) {
  const int64_t width = b.numel();
  const bool adds = slot.accumulate == Accumulate::kYes;
  const auto row = [&](const auto* left, const auto* right, int64_t begin, int64_t end, T* to) {
    for (int64_t i = begin; i < end; ++i) {
      const float product = static_cast<float>(left[i]) * static_cast<float>(right[i % width]);
      to[i] = T(adds ? static_cast<float>(to[i]) + product : product);
    }
  };
  constexpr int64_t kGrain = 1 << 14;
  parallel_for(a.numel(), kGrain, [&](int64_t begin, int64_t end) {
    const bool a_f32 = a.dtype() == DType::kFloat32;
    const bool b_f32 = b.dtype() == DType::kFloat32;
    if (a_f32 && b_f32)
      row(a.data<const float>(), b.data<const float>(), begin, end, out);
    else if (a_f32)
      row(a.data<const float>(), b.data<const BFloat16>(), begin, end, out);
    else if (b_f32)
      row(a.data<const BFloat16>(), b.data<const float>(), begin, end, out);
    else
      row(a.data<const BFloat16>(), b.data<const BFloat16>(), begin, end, out);
  });
}

// slot (+)= a * b; b may be one row against a's rows.
void multiply_into(const TensorView& a, const TensorView& b, const GradSlot& slot) {
  if (slot.grad.dtype() == DType::kFloat32)
    multiply_typed(a, b, slot, slot.grad.data<float>());
  else
    multiply_typed(a, b, slot, slot.grad.data<BFloat16>());
}

}  // namespace

Variable mul(Tape& tape, const Variable& a, const Variable& b) {
  const bool row = b.shape().ndim() < a.shape().ndim();
  SHARDTUNE_ASSERT(row ? b.numel() == a.dim(a.shape().ndim() - 1) : b.shape() == a.shape());
  Tensor product(a.shape(), a.dtype());
  multiply_into(a.value(), b.value(), {product.view(), Accumulate::kNo});
  Variable output = tape.result(std::move(product), {a, b});
  tape.record(output, [a, b, row](Tensor& dy) {
    if (a.requires_grad())
      multiply_into(dy, b.value(), a.grad_ref().slot());
    if (!b.requires_grad())
      return;
    if (!row) {
      multiply_into(dy, a.value(), b.grad_ref().slot());
      return;
    }
    Tensor products(dy.shape(), DType::kFloat32);
    multiply_into(dy, a.value(), {products.view(), Accumulate::kNo});
    const GradSlot slot = b.grad_ref().slot();
    const int64_t width = b.numel();
    kernels::sum_rows(products.view().reshaped({products.numel() / width, width}), slot.grad,
                      slot.accumulate);
  });
  return output;
}

Variable activate(Tape& tape, kernels::Activation activation, const Variable& x) {
  Tensor y(x.shape(), x.dtype());
  kernels::activate(activation, x.value(), y);
  Variable output = tape.result(std::move(y), {x});
  tape.record(output, [activation, x](Tensor& dy) {
    const GradSlot slot = x.grad_ref().slot();
    kernels::activate_backward(activation, x.value(), dy, slot.grad, slot.accumulate);
  });
  return output;
}

Variable dropout(Tape& tape, const Variable& x, float p, uint64_t seed,
                 std::shared_ptr<const DropoutTokens> tokens) {
  const auto key = [seed](const DropoutTokens& t) {
    return kernels::DropoutKey{seed, t.sample_of_token, t.index_in_sample};
  };
  Tensor y(x.shape(), x.dtype());
  kernels::dropout(x.value(), p, key(*tokens), y, Accumulate::kNo);
  Variable output = tape.result(std::move(y), {x});
  tape.record(output, [x = x.grad_ref(), p, key, tokens](Tensor& dy) {
    const GradSlot slot = x.slot();
    kernels::dropout(dy, p, key(*tokens), slot.grad, slot.accumulate);
  });
  return output;
}

namespace {

/// Where a norm's gradients go: each is wanted or not, but kernels always write dx.
struct NormGradients {
  explicit NormGradients(const Variable& x) {
    if (x.requires_grad()) {
      dx = x.grad_ref().slot();
    } else {
      unwanted = Tensor(x.shape(), DType::kFloat32);
      dx.grad = unwanted.view();
    }
  }
  /// Room for the gradient of a row [H]; none where it is not wanted.
  static Tensor row(const GradRef& wanted, int64_t width) {
    return wanted.wanted() ? Tensor(Shape{width}, DType::kFloat32) : Tensor();
  }
  static void give(const GradRef& to, Tensor&& gradient) {
    if (to.wanted())
      to.give(std::move(gradient));
  }
  Tensor unwanted;
  GradSlot dx;
};

}  // namespace

Variable rms_norm(Tape& tape, const Variable& x, const RmsNormOptions& options) {
  Tensor y(x.shape(), options.dtype);
  auto rstd = std::make_shared<Tensor>(Shape{x.dim(0)}, DType::kFloat32);
  kernels::rms_norm(x.value(), tape.store().value(options.weight), options.eps, y, rstd->view());
  const Variable weight = tape.trained(options.weight);
  Variable output = tape.result(std::move(y), {x, weight});
  tape.record(output,
              [&tape, x, rstd, weight = weight.grad_ref(), id = options.weight](Tensor& dy) {
                const NormGradients gradients(x);
                Tensor dweight = NormGradients::row(weight, x.dim(1));
                kernels::rms_norm_backward({dy, x.value(), tape.store().value(id), rstd->view(),
                                            gradients.dx.grad, dweight.view()},
                                           gradients.dx.accumulate);
                NormGradients::give(weight, std::move(dweight));
              });
  return output;
}

Variable layer_norm(Tape& tape, const Variable& x, const LayerNormOptions& options) {
  Tensor y(x.shape(), options.dtype);
  auto mean = std::make_shared<Tensor>(Shape{x.dim(0)}, DType::kFloat32);
  auto rstd = std::make_shared<Tensor>(Shape{x.dim(0)}, DType::kFloat32);
  const ParameterStore& store = tape.store();
  kernels::layer_norm({x.value(), store.value(options.weight), store.value(options.bias), y.view(),
                       mean->view(), rstd->view(), options.eps});
  const Variable weight = tape.trained(options.weight), bias = tape.trained(options.bias);
  Variable output = tape.result(std::move(y), {x, weight, bias});
  tape.record(output, [&tape, x, mean, rstd, weight = weight.grad_ref(), bias = bias.grad_ref(),
                       id = options.weight](Tensor& dy) {
    const NormGradients gradients(x);
    Tensor dweight = NormGradients::row(weight, x.dim(1));
    Tensor dbias = NormGradients::row(bias, x.dim(1));
    kernels::layer_norm_backward({dy, x.value(), tape.store().value(id), mean->view(), rstd->view(),
                                  gradients.dx.grad, dweight.view(), dbias.view()},
                                 gradients.dx.accumulate);
    NormGradients::give(weight, std::move(dweight));
    NormGradients::give(bias, std::move(dbias));
  });
  return output;
}

Variable rope(Tape& tape, const Variable& x, const kernels::RopeArgs& args) {
  kernels::rope(x.value(), args, kernels::RopeDirection::kForward);
  Variable output = tape.result_in_place(x, {x});
  tape.record(output, [x = x.grad_ref(), args](Tensor& dy) {
    kernels::rope(dy, args, kernels::RopeDirection::kInverse);
    x.give(std::move(dy));
  });
  return output;
}

namespace {

kernels::AttentionForward attention_args(const AttentionInputs& inputs,
                                         const kernels::AttentionShape& shape) {
  kernels::AttentionForward args;
  args.shape = shape;
  args.sample_offsets = inputs.sample_offsets;
  args.q = inputs.q.value();
  args.k = inputs.k.value();
  args.v = inputs.v.value();
  if (inputs.prefix_k.defined()) {
    args.prefix_k = inputs.prefix_k.value();
    args.prefix_v = inputs.prefix_v.value();
  }
  return args;
}

// Hands a whole gradient to an input that wants one.
void give(const Variable& input, Tensor&& gradient) {
  if (input.defined() && input.requires_grad())
    input.grad_ref().give(std::move(gradient));
}

void attention_go_back(const AttentionInputs& inputs, const kernels::AttentionForward& forward,
                       const Tensor& dout) {
  kernels::AttentionBackward args;
  args.forward = forward;
  Tensor converted;
  args.dout = in_dtype(dout, forward.q.dtype(), converted);
  Tensor dq(forward.q.shape(), forward.q.dtype());
  Tensor dk(forward.k.shape(), forward.k.dtype());
  Tensor dv(forward.v.shape(), forward.v.dtype());
  args.dq = dq.view();
  args.dk = dk.view();
  args.dv = dv.view();
  Tensor dprefix_k;
  Tensor dprefix_v;
  if (!forward.prefix_k.empty()) {
    dprefix_k = Tensor(forward.prefix_k.shape(), DType::kFloat32);
    dprefix_v = Tensor(forward.prefix_v.shape(), DType::kFloat32);
    args.dprefix_k = dprefix_k.view();
    args.dprefix_v = dprefix_v.view();
  }
  kernels::attention_backward(args);
  give(inputs.q, std::move(dq));
  give(inputs.k, std::move(dk));
  give(inputs.v, std::move(dv));
  if (!forward.prefix_k.empty()) {
    give(inputs.prefix_k, std::move(dprefix_k));
    give(inputs.prefix_v, std::move(dprefix_v));
  }
}

}  // namespace

Variable attention(Tape& tape, const AttentionInputs& inputs,
                   const kernels::AttentionShape& shape) {
  const ActivityScope activity(Activity::kAttention);
  kernels::AttentionForward args = attention_args(inputs, shape);
  Tensor out(args.q.shape(), args.q.dtype());
  auto lse = std::make_shared<Tensor>(Shape{args.q.dim(0), shape.num_heads}, DType::kFloat32);
  args.out = out.view();
  args.lse = lse->view();
  kernels::attention(args);
  std::initializer_list<Variable> all = {inputs.q, inputs.k, inputs.v, inputs.prefix_k,
                                         inputs.prefix_v};
  Variable output = tape.result(std::move(out), all, args.q.dtype());
  // Backward reads the output, so it is saved; a record's own Variable would keep itself alive.
  tape.record(output, [inputs, shape, lse, value = output.without_grad()](Tensor& dout) {
    kernels::AttentionForward forward = attention_args(inputs, shape);
    forward.out = value.value();
    forward.lse = lse->view();
    attention_go_back(inputs, forward, dout);
  });
  return output;
}

Variable swiglu(Tape& tape, const Variable& gate, const Variable& up) {
  Tensor out(gate.shape(), gate.dtype());
  kernels::swiglu(gate.value(), up.value(), out);
  Variable output = tape.result(std::move(out), {gate, up}, gate.dtype());
  tape.record(output, [gate, up](Tensor& dout) {
    Tensor dgate(gate.shape(), gate.dtype());
    Tensor dup(up.shape(), up.dtype());
    kernels::swiglu_backward({dout, gate.value(), up.value(), dgate, dup});
    give(gate, std::move(dgate));
    give(up, std::move(dup));
  });
  return output;
}

Variable linear(Tape& tape, const Variable& x, ParameterId weight) {
  const Variable parameter = tape.parameter(weight);
  const TensorView w = weight_in(tape, weight, x.dtype());
  Tensor y(Shape{x.dim(0), w.dim(0)}, x.dtype());
  kernels::gemm(x.value(), w, Transpose::kYes, y, Accumulate::kNo);
  Variable output = tape.result(std::move(y), {x, parameter}, x.dtype());
  tape.record(output, [&tape, x, weight, parameter = parameter.grad_ref()](Tensor& dy) {
    Tensor converted;
    const TensorView dy_in = in_dtype(dy, x.dtype(), converted);
    const GradSlot dw = parameter.slot();
    kernels::gemm_over_tokens(dy_in, x.value(), dw.grad, dw.accumulate);
    if (!x.requires_grad())
      return;
    const GradSlot dx = x.grad_ref().slot();
    kernels::gemm(dy_in, weight_in(tape, weight, x.dtype()), Transpose::kNo, dx.grad,
                  dx.accumulate);
  });
  return output;
}

Variable add_bias(Tape& tape, const Variable& y, ParameterId bias) {
  const Variable parameter = tape.parameter(bias);
  kernels::add_bias(tape.store().value(bias), y.value());
  Variable output = tape.result_in_place(y, {y, parameter});
  tape.record(output, [y = y.grad_ref(), parameter = parameter.grad_ref()](Tensor& dy) {
    const GradSlot slot = parameter.slot();
    kernels::sum_rows(dy, slot.grad, slot.accumulate);
    if (y.wanted())
      y.give(std::move(dy));
  });
  return output;
}

namespace {

/// What low_rank_update keeps for its way back.
struct LowRankParts {
  LowRank update;
  Variable x, a, b, e;
  GradRef y;
  Tensor u;        // x A^T
  Tensor weighed;  // u * E^T, where there is an E
  const Tensor& into_b() const { return weighed.empty() ? u : weighed; }
};

void low_rank_backward(Tape& tape, const LowRankParts& parts, Tensor& dy) {
  const LowRank& update = parts.update;
  const DType dtype = parts.u.dtype();
  Tensor converted;
  const TensorView dy_in = in_dtype(dy, dtype, converted);
  const GradSlot db = parts.b.grad_ref().slot();
  kernels::gemm_over_tokens(dy_in, parts.into_b(), db.grad, db.accumulate, update.scale);
  Tensor du(parts.u.shape(), dtype);
  kernels::gemm(dy_in, weight_in(tape, update.lora_B, dtype), Transpose::kNo, du, Accumulate::kNo,
                update.scale);
  if (parts.e.defined()) {
    const int64_t rank = parts.e.numel();
    Tensor products(du.shape(), DType::kFloat32);
    multiply_into(du, parts.u, {products.view(), Accumulate::kNo});
    const GradSlot de = parts.e.grad_ref().slot();
    kernels::sum_rows(products, de.grad.reshaped({rank}), de.accumulate);
    Tensor before(du.shape(), dtype);
    multiply_into(du, parts.e.value().reshaped({rank}), {before.view(), Accumulate::kNo});
    du = std::move(before);
  }
  const GradSlot da = parts.a.grad_ref().slot();
  kernels::gemm_over_tokens(du, parts.x.value(), da.grad, da.accumulate);
  if (parts.x.requires_grad()) {
    const GradSlot dx = parts.x.grad_ref().slot();
    kernels::gemm(du, weight_in(tape, update.lora_A, dtype), Transpose::kNo, dx.grad,
                  dx.accumulate);
  }
  if (parts.y.wanted())
    parts.y.give(std::move(dy));
}

// All but y's side.
std::shared_ptr<LowRankParts> low_rank_parts(Tape& tape, const Variable& x, const LowRank& update) {
  auto parts = std::make_shared<LowRankParts>();
  parts->update = update;
  parts->x = x;
  parts->a = tape.parameter(update.lora_A);
  parts->b = tape.parameter(update.lora_B);
  const int64_t rank = parts->a.dim(0);
  parts->u = Tensor(Shape{x.dim(0), rank}, x.dtype());
  kernels::gemm(x.value(), weight_in(tape, update.lora_A, x.dtype()), Transpose::kYes, parts->u,
                Accumulate::kNo);
  if (update.lora_E != kNoParameter) {
    parts->e = tape.parameter(update.lora_E);
    parts->weighed = Tensor(parts->u.shape(), x.dtype());
    multiply_into(parts->u, parts->e.value().reshaped({rank}),
                  {parts->weighed.view(), Accumulate::kNo});
  }
  return parts;
}

}  // namespace

Variable low_rank_update(Tape& tape, const Variable& y, const Variable& x, const LowRank& update) {
  const auto parts = low_rank_parts(tape, x, update);
  parts->y = y.grad_ref();
  const DType result = update.result.value_or(x.dtype());
  const TensorView b_value = weight_in(tape, update.lora_B, x.dtype());
  Variable output;
  if (y.dtype() == result) {
    kernels::gemm(parts->into_b(), b_value, Transpose::kYes, y.value(), Accumulate::kYes,
                  update.scale);
    output = tape.result_in_place(y, {y, x, parts->a, parts->b});
  } else {
    Tensor sum(y.shape(), result);
    kernels::gemm_onto(y.value(), parts->into_b(), b_value, sum, update.scale);
    output = tape.result(std::move(sum), {y, x, parts->a, parts->b}, result);
  }
  tape.record(output, [&tape, parts](Tensor& dy) { low_rank_backward(tape, *parts, dy); });
  return output;
}

Variable low_rank_update(Tape& tape, const UnmadeProduct& product, const Variable& x,
                         const LowRank& update) {
  const auto parts = low_rank_parts(tape, x, update);
  parts->y = product.y.grad_ref();
  const DType result = update.result.value_or(x.dtype());
  Tensor sum(product.shape, result);
  product.make({parts->into_b(), weight_in(tape, update.lora_B, x.dtype()), update.scale}, sum);
  const Variable output = tape.result(std::move(sum), {product.y, x, parts->a, parts->b}, result);
  tape.record(output, [&tape, parts](Tensor& dy) { low_rank_backward(tape, *parts, dy); });
  return output;
}

// With dW = dy^T x: dB = scale dW A^T = scale dy^T (x A^T), dA = scale B^T dW = scale (dy B)^T x.
Variable low_rank_straight_through(Tape& tape, const Variable& y, const Variable& x,
                                   const LowRank& update) {
  const Variable a = tape.parameter(update.lora_A);
  const Variable b = tape.parameter(update.lora_B);
  const Variable output = tape.result_in_place(y, {y, a, b});
  tape.record(output, [&tape, x, y = y.grad_ref(), a = a.grad_ref(), b = b.grad_ref(),
                       rank = a.dim(0), update](Tensor& dy) {
    const DType dtype = x.dtype();
    Tensor converted;
    const TensorView dy_in = in_dtype(dy, dtype, converted);
    Tensor u(Shape{x.dim(0), rank}, dtype);
    kernels::gemm(x.value(), weight_in(tape, update.lora_A, dtype), Transpose::kYes, u,
                  Accumulate::kNo);
    const GradSlot db = b.slot();
    kernels::gemm_over_tokens(dy_in, u, db.grad, db.accumulate, update.scale);
    kernels::gemm(dy_in, weight_in(tape, update.lora_B, dtype), Transpose::kNo, u, Accumulate::kNo,
                  update.scale);
    const GradSlot da = a.slot();
    kernels::gemm_over_tokens(u, x.value(), da.grad, da.accumulate);
    if (y.wanted())
      y.give(std::move(dy));
  });
  return output;
}

}  // namespace shardtune::autograd
