#include "kernels/cross_entropy.h"

#include <limits>

#include "core/token_batch.h"
#include "kernels/reference.h"
#include "tests/kernels/kernel_test_util.h"

namespace shardtune::kernels {
namespace {

struct Problem {
  Tensor logits;
  std::vector<int32_t> labels;
  Problem(int64_t rows, int64_t vocab, float scale)
      : logits(random_tensor({rows, vocab}, DType::kFloat32, 1, scale)) {
    for (int64_t r = 0; r < rows; ++r)
      labels.push_back(static_cast<int32_t>((r * 7919 + vocab - 1) % vocab));
  }
};

// Columns [begin, end) as a tensor of their own.
Tensor columns_of(const TensorView& x, int64_t begin, int64_t end) {
  Tensor result(Shape{x.dim(0), end - begin}, x.dtype());
  for (int64_t r = 0; r < x.dim(0); ++r)
    for (int64_t j = begin; j < end; ++j)
      store_element(result, r * (end - begin) + j - begin, load_element(x, r * x.dim(1) + j));
  return result;
}

struct Result {
  std::vector<float> losses;
  Tensor dlogits;
};

// Merges chunks of `chunk` columns and gathers the pieces.
Result run_chunked(const Problem& p, int64_t chunk, DType dtype) {
  const int64_t rows = p.logits.dim(0), vocab = p.logits.dim(1);
  SoftmaxStats stats(rows);
  for (int64_t first = 0; first < vocab; first += chunk)
    softmax_stats_merge(columns_of(p.logits, first, std::min(vocab, first + chunk)), first,
                        p.labels, stats);
  Result result{std::vector<float>(static_cast<size_t>(rows)), Tensor(p.logits.shape(), dtype)};
  cross_entropy_losses(stats, result.losses);
  for (int64_t first = 0; first < vocab; first += chunk) {
    const Tensor piece = columns_of(p.logits, first, std::min(vocab, first + chunk));
    const Tensor gradient(piece.shape(), dtype);
    cross_entropy_dlogits(piece, first, p.labels, stats, 0.25f, gradient);
    for (int64_t i = 0; i < piece.numel(); ++i)
      store_element(result.dlogits, i / piece.dim(1) * vocab + first + i % piece.dim(1),
                    load_element(gradient, i));
  }
  return result;
}

TEST(CrossEntropy, ChunksMergeToTheReference) {
  for (const int64_t vocab : {1, 17, 217, 4099}) {
    for (const int64_t chunk : {int64_t{5}, int64_t{64}, int64_t{4096}, int64_t{8192}}) {
      if (chunk == 5 && vocab > 1000)
        continue;
      for (const DType dtype : {DType::kFloat32, DType::kBFloat16}) {
        const Problem p(9, vocab, 4.0f);
        std::vector<float> losses(9);
        const Tensor dlogits(p.logits.shape(), DType::kFloat32);
        cross_entropy_reference(p.logits, p.labels, 0.25f, losses, dlogits);
        const Result found = run_chunked(p, chunk, dtype);
        // exp within 2 ulp of an argument of size up to 40 that was rounded once; a sum of up to
        // 1024 / 8 + 8 terms per lane and block, one merge per chunk.
        const double factor =
            (40 + 140 + 2.0 * static_cast<double>(ceil_div(vocab, chunk))) * kRoundoffF32;
        for (size_t r = 0; r < 9; ++r)
          EXPECT_NEAR(found.losses[r], losses[r], factor + 20 * kRoundoffF32);
        expect_within(
            found.dlogits, dlogits,
            [&](int64_t, double e) {
              return 0.25 * factor + 1.01 * roundoff(dtype) * std::abs(e) + 1e-37;
            },
            "dlogits " + std::to_string(vocab) + " by " + std::to_string(chunk));
      }
    }
  }
}

TEST(CrossEntropy, BackwardIsTheDerivative) {
  const Problem p(2, 23, 1.0f);
  SoftmaxStats stats(2);
  softmax_stats_merge(p.logits, 0, p.labels, stats);
  const Tensor dlogits(p.logits.shape(), DType::kFloat32);
  cross_entropy_dlogits(p.logits, 0, p.labels, stats, 1.0f, dlogits);
  const auto value = [&] {
    SoftmaxStats moved(2);
    softmax_stats_merge(p.logits, 0, p.labels, moved);
    std::vector<float> losses(2);
    cross_entropy_losses(moved, losses);
    return sum_in_order(losses);
  };
  // Truncation of order h^2, roundoff 1e-6 / 2h.
  for (int64_t i = 0; i < p.logits.numel(); ++i)
    EXPECT_NEAR(central_difference(p.logits, i, 1e-2f, value), dlogits.data<float>()[i], 3e-4) << i;
}

TEST(CrossEntropy, DlogitsMayStandWhereTheLogitsDo) {
  const Problem p(5, 217, 2.0f);
  SoftmaxStats stats(5);
  softmax_stats_merge(p.logits, 0, p.labels, stats);
  const Tensor apart(p.logits.shape(), DType::kFloat32);
  cross_entropy_dlogits(p.logits, 0, p.labels, stats, 0.5f, apart);
  cross_entropy_dlogits(p.logits, 0, p.labels, stats, 0.5f, p.logits);
  EXPECT_EQ(0, std::memcmp(apart.view().raw(), p.logits.view().raw(),
                           static_cast<size_t>(apart.num_bytes())));
}

TEST(CrossEntropy, LargeLogitsNeitherOverflowNorVanish) {
  const Tensor logits =
      Tensor::from(std::vector<float>{1e4f, 1e4f, -1e4f, 3e38f, 0.0f, -3e38f}, {2, 3});
  const std::vector<int32_t> labels = {0, 0};
  SoftmaxStats stats(2);
  softmax_stats_merge(logits, 0, labels, stats);
  std::vector<float> losses(2);
  cross_entropy_losses(stats, losses);
  EXPECT_NEAR(losses[0], std::log(2.0), 1e-3);  // 1e4 has an ulp of 1e-3
  EXPECT_EQ(losses[1], 0.0f);
}

TEST(CrossEntropy, AChunkOfMinusInfinityAddsNothing) {
  const float minus_infinity = -std::numeric_limits<float>::infinity();
  const std::vector<int32_t> labels = {3};
  SoftmaxStats stats(1);
  softmax_stats_merge(Tensor::from(std::vector<float>{minus_infinity, minus_infinity}, {1, 2}), 0,
                      labels, stats);
  softmax_stats_merge(Tensor::from(std::vector<float>{1.0f, 1.0f}, {1, 2}), 2, labels, stats);
  std::vector<float> losses(1);
  cross_entropy_losses(stats, losses);
  EXPECT_NEAR(losses[0], std::log(2.0), 1e-6);
}

TEST(CrossEntropy, NanReachesTheLoss) {
  for (const int64_t place : {0, 3, 16}) {
    const Problem p(1, 17, 1.0f);
    p.logits.data<float>()[place] = std::nanf("");
    SoftmaxStats stats(1);
    softmax_stats_merge(p.logits, 0, p.labels, stats);
    std::vector<float> losses(1);
    cross_entropy_losses(stats, losses);
    EXPECT_TRUE(std::isnan(losses[0])) << place;
  }
}

TEST(CrossEntropy, IgnoredRowsGiveNothingAndOtherNegativeLabelsAreErrors) {
  Problem p(2, 20, 1.0f);
  p.labels[1] = kIgnoreLabel;
  const Result found = run_chunked(p, 7, DType::kFloat32);
  EXPECT_EQ(found.losses[1], 0.0f);
  for (int64_t j = 0; j < 20; ++j)
    EXPECT_EQ(found.dlogits.data<float>()[20 + j], 0.0f);
  p.labels[1] = -1;
  SoftmaxStats stats(2);
  EXPECT_THROW(softmax_stats_merge(p.logits, 0, p.labels, stats), ArgumentError);
}

TEST(CrossEntropy, SameBitsAtAnyThreadCount) {
  const Problem p(37, 1031, 3.0f);
  expect_same_bits_at_any_thread_count(
      [&] {
        Result result = run_chunked(p, 500, DType::kFloat32);
        std::vector<Tensor> outputs;
        outputs.push_back(Tensor::from(result.losses, {37}));
        outputs.push_back(std::move(result.dlogits));
        return outputs;
      },
      "cross entropy");
}

TEST(ArgmaxRows, TakesTheFirstOfEquals) {
  const Tensor logits = Tensor::from(std::vector<float>{1, 3, 3, 2, 5, 4, 5, 5}, {2, 4});
  std::vector<int32_t> out(2);
  argmax_rows(logits, out);
  EXPECT_EQ(out, (std::vector<int32_t>{1, 0}));
}

}  // namespace
}  // namespace shardtune::kernels
