// Legend: T tokens, A heads, Hk K/V heads, D head size, P rows.
#include "adapters/prompt_attention.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "core/dry_run.h"
#include "core/parallel_for.h"
#include "kernels/elementwise.h"

namespace shardtune::adapters {

namespace {

using autograd::Tape;
using autograd::Variable;
using kernels::AttentionShape;

/// x in f32; `kept` owns a conversion.
const float* floats(const TensorView& x, Tensor& kept) {
  if (x.dtype() == DType::kFloat32)
    return x.data<float>();
  kept = Tensor(x.shape(), DType::kFloat32);
  kernels::cast(x, kept);
  return kept.data<float>();
}

/// One head's rows of q, k and v; heads of queries share those of keys in groups.
struct Head {
  Head(const AttentionShape& shape, int64_t head)
      : d(shape.head_dim),
        q(head * d),
        q_stride(shape.num_heads * d),
        kv(head / (shape.num_heads / shape.num_kv_heads) * d),
        kv_stride(shape.num_kv_heads * d) {}
  int64_t d, q, q_stride, kv, kv_stride;
};

float dot(const float* a, const float* b, int64_t n) {
  float sum = 0.0f;
  for (int64_t i = 0; i < n; ++i)
    sum += a[i] * b[i];
  return sum;
}

void add_scaled(float* to, const float* from, float scale, int64_t n) {
  for (int64_t i = 0; i < n; ++i)
    to[i] += scale * from[i];
}

/// Shares of the rows for one token of one head.
void softmax_of(const float* q, const float* k, const Head& head, float scale,
                std::vector<float>& shares) {
  float largest = -INFINITY, sum = 0.0f;
  for (size_t p = 0; p < shares.size(); ++p) {
    const float* row = k + static_cast<int64_t>(p) * head.kv_stride + head.kv;
    shares[p] = scale * dot(q, row, head.d);
    largest = std::max(largest, shares[p]);
  }
  for (float& share : shares) {
    share = std::exp(share - largest);
    sum += share;
  }
  for (float& share : shares)
    share /= sum;
}

struct Inputs {
  const float *q, *k, *v;
  int64_t tokens, rows;
  AttentionShape shape;
};

void run_forward(const Inputs& in, float* out) {
  parallel_for(in.tokens, 16, [&](int64_t begin, int64_t end) {
    std::vector<float> shares(static_cast<size_t>(in.rows));
    for (int64_t t = begin; t < end; ++t) {
      for (int64_t h = 0; h < in.shape.num_heads; ++h) {
        const Head head(in.shape, h);
        const int64_t at = t * head.q_stride + head.q;
        softmax_of(in.q + at, in.k, head, in.shape.scale, shares);
        std::fill_n(out + at, head.d, 0.0f);
        for (int64_t p = 0; p < in.rows; ++p)
          add_scaled(out + at, in.v + p * head.kv_stride + head.kv, shares[p], head.d);
      }
    }
  });
}

/// Gradients of one query head, its tokens in order: one thread has all that a K/V head sums.
void go_back(const Inputs& in, const float* dout, int64_t h, float* dq, float* dk, float* dv) {
  const Head head(in.shape, h);
  std::vector<float> shares(static_cast<size_t>(in.rows)), dshares(shares.size());
  for (int64_t t = 0; t < in.tokens; ++t) {
    const int64_t at = t * head.q_stride + head.q;
    softmax_of(in.q + at, in.k, head, in.shape.scale, shares);
    float mean = 0.0f;
    for (int64_t p = 0; p < in.rows; ++p) {
      const int64_t row = p * head.kv_stride + head.kv;
      dshares[p] = dot(dout + at, in.v + row, head.d);
      mean += shares[p] * dshares[p];
      add_scaled(dv + row, dout + at, shares[p], head.d);
    }
    std::fill_n(dq + at, head.d, 0.0f);
    for (int64_t p = 0; p < in.rows; ++p) {
      const int64_t row = p * head.kv_stride + head.kv;
      const float dscore = in.shape.scale * shares[p] * (dshares[p] - mean);
      add_scaled(dq + at, in.k + row, dscore, head.d);
      add_scaled(dk + row, in.q + at, dscore, head.d);
    }
  }
}

}  // namespace

Variable prompt_attention(Tape& tape, const Variable& q, const Variable& k, const Variable& v,
                          const AttentionShape& shape) {
  const auto inputs = [q, k, v, shape](Tensor& q_kept, Tensor& k_kept, Tensor& v_kept) {
    return Inputs{floats(q.value(), q_kept),
                  floats(k.value(), k_kept),
                  floats(v.value(), v_kept),
                  q.dim(0),
                  k.dim(0),
                  shape};
  };
  const bool runs = DryRun::current() == nullptr;
  Tensor out(q.shape(), DType::kFloat32);
  {
    Tensor q_kept, k_kept, v_kept;
    const Inputs in = inputs(q_kept, k_kept, v_kept);
    if (runs)
      run_forward(in, out.data<float>());
  }
  Tensor result = q.dtype() == DType::kFloat32 ? std::move(out) : Tensor(q.shape(), q.dtype());
  if (q.dtype() != DType::kFloat32)
    kernels::cast(out, result);
  const Variable output = tape.result(std::move(result), {q, k, v});
  tape.record(output, [inputs, q = q.grad_ref(), k = k.grad_ref(), v = v.grad_ref(), runs,
                       q_shape = q.shape(), kv_shape = k.shape(), shape](Tensor& dout) {
    Tensor q_kept, k_kept, v_kept, dout_kept;
    const Inputs in = inputs(q_kept, k_kept, v_kept);
    const float* gradient = floats(dout, dout_kept);
    Tensor dq(q_shape, DType::kFloat32);
    Tensor dk = Tensor::zeros(kv_shape, DType::kFloat32);
    Tensor dv = Tensor::zeros(kv_shape, DType::kFloat32);
    const int64_t group = shape.num_heads / shape.num_kv_heads;
    parallel_for(runs ? shape.num_kv_heads : 0, 1, [&](int64_t begin, int64_t end) {
      for (int64_t h = begin * group; h < end * group; ++h)
        go_back(in, gradient, h, dq.data<float>(), dk.data<float>(), dv.data<float>());
    });
    if (q.wanted())
      q.give(std::move(dq));
    if (k.wanted())
      k.give(std::move(dk));
    if (v.wanted())
      v.give(std::move(dv));
  });
  return output;
}

}  // namespace shardtune::adapters
