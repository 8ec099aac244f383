#include "kernels/attention.h"

#include <cmath>
#include <vector>

#include "kernels/checks.h"

namespace shardtune::kernels {

void attention(const AttentionForward& args) { attention_reference(args); }
void attention_backward(const AttentionBackward& args) { attention_backward_reference(args); }

void attention_decode(const AttentionShape& shape, std::span<const CachedSequence> sequences,
                      const TensorView& q, const TensorView& out) {
  const int64_t dim = shape.head_dim;
  for (size_t b = 0; b < sequences.size(); ++b) {
    const int64_t length = sequences[b].length;
    const Shape kv_shape{length, shape.num_kv_heads * dim};
    const TensorView k(sequences[b].k, q.dtype(), kv_shape);
    const TensorView v(sequences[b].v, q.dtype(), kv_shape);
    for (int64_t h = 0; h < shape.num_heads; ++h) {
      const int64_t kv_head = h * shape.num_kv_heads / shape.num_heads;
      const int64_t query = (static_cast<int64_t>(b) * shape.num_heads + h) * dim;
      std::vector<double> scores(static_cast<size_t>(length));
      double max = -INFINITY, sum = 0.0;
      for (int64_t j = 0; j < length; ++j) {
        double dot = 0.0;
        for (int64_t d = 0; d < dim; ++d)
          dot += double{load_element(q, query + d)} *
                 load_element(k, (j * shape.num_kv_heads + kv_head) * dim + d);
        scores[static_cast<size_t>(j)] = dot * shape.scale;
        max = std::max(max, dot * shape.scale);
      }
      for (double& score : scores)
        sum += score = std::exp(score - max);
      for (int64_t d = 0; d < dim; ++d) {
        double value = 0.0;
        for (int64_t j = 0; j < length; ++j)
          value += scores[static_cast<size_t>(j)] *
                   load_element(v, (j * shape.num_kv_heads + kv_head) * dim + d);
        store_element(out, query + d, static_cast<float>(value / sum));
      }
    }
  }
}

}  // namespace shardtune::kernels
