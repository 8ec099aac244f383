#include "kernels/attention.h"

#include "tests/kernels/attention_problem.h"

namespace shardtune::kernels {
namespace {

const std::vector<DType> kFloats = {DType::kFloat32, DType::kBFloat16};

TEST(Attention, ForwardEqualsTheReference) {
  for (const AttentionCase& c : attention_cases()) {
    for (const DType dtype : kFloats) {
      const AttentionProblem p(c, dtype), expected = p.in_float32(c);
      attention(p.forward);
      attention_reference(expected.forward);
      const double lse_error = probability_error(p, c), error = chosen_form_error(p, c);
      const double v = std::max(largest(p.forward.v), largest(p.forward.prefix_v));
      expect_within(
          p.forward.out, expected.forward.out,
          [&](int64_t, double e) { return error * v + 1.01 * roundoff(dtype) * std::abs(e); },
          c.name);
      expect_within(
          p.forward.lse, expected.forward.lse,
          [&](int64_t, double e) { return lse_error + 2 * kRoundoffF32 * std::abs(e); },
          std::string(c.name) + " lse");
    }
  }
}

TEST(Attention, BackwardEqualsTheReference) {
  for (const AttentionCase& c : attention_cases()) {
    for (const DType dtype : kFloats) {
      const AttentionProblem p(c, dtype);
      AttentionProblem expected = p.in_float32(c);
      attention(p.forward);
      attention_backward(p.backward);
      expected.take_forward_results(p);
      attention_backward_reference(expected.backward);
      const double dim = static_cast<double>(c.dim);
      const double v = std::max(largest(p.forward.v), largest(p.forward.prefix_v));
      const double dout = largest(p.backward.dout);
      // dP - D is a sum of D products twice, its error a random walk; a key collects at most the
      // probabilities of all queries of its group, whose errors add up like a random walk too.
      const double slope = 4 * std::sqrt(dim) * dout * v;
      const double queries =
          std::sqrt(static_cast<double>(c.offsets.back() * c.heads / c.kv_heads)) + 1;
      const double error = chosen_form_error(p, c);
      const double scale = p.forward.shape.scale;
      const auto compare = [&](const TensorView& found, const TensorView& wanted, double factor,
                               const char* what) {
        if (found.empty())
          return;
        expect_within(
            found, wanted,
            [&](int64_t, double e) {
              return error * factor + 1.01 * roundoff(found.dtype()) * std::abs(e);
            },
            std::string(c.name) + " " + what);
      };
      compare(p.backward.dq, expected.backward.dq, slope * scale * 5, "dq");
      compare(p.backward.dk, expected.backward.dk, slope * scale * 5 * queries, "dk");
      compare(p.backward.dv, expected.backward.dv, dout * queries, "dv");
      compare(p.backward.dprefix_k, expected.backward.dprefix_k, slope * scale * 5 * queries,
              "dprefix_k");
      compare(p.backward.dprefix_v, expected.backward.dprefix_v, dout * queries, "dprefix_v");
    }
  }
}

// Groups, prefix, window and several samples at once, against difference quotients.
TEST(Attention, BackwardIsTheDerivative) {
  const ThreadScope one_thread(1);  // thousands of tiny passes
  const AttentionCase c{"derivative", 4, 2, 6, 3, 4, {0, 7, 8, 13}};
  const AttentionProblem p(c, DType::kFloat32);
  attention(p.forward);
  attention_backward(p.backward);
  const auto value = [&] {
    attention(p.forward);
    return weighted_sum(p.forward.out, p.backward.dout);
  };
  // Truncation of order h^2 = 1e-4 times third derivatives of order 1; roundoff 1e-5 / 2h.
  const auto check = [&](const TensorView& input, const TensorView& gradient, const char* what) {
    for (int64_t i = 0; i < input.numel(); ++i)
      ASSERT_NEAR(central_difference(input, i, 1e-2f, value), gradient.data<float>()[i], 3e-3)
          << what << " " << i;
  };
  check(p.forward.q, p.backward.dq, "q");
  check(p.forward.k, p.backward.dk, "k");
  check(p.forward.v, p.backward.dv, "v");
  check(p.forward.prefix_k, p.backward.dprefix_k, "prefix_k");
  check(p.forward.prefix_v, p.backward.dprefix_v, "prefix_v");
}

TEST(Attention, SamplesDoNotSeeEachOther) {
  const AttentionCase both{"both", 2, 1, 16, 0, 0, {0, 70, 140}},
      alone{"alone", 2, 1, 16, 0, 0, {0, 70}};
  const AttentionProblem packed(both, DType::kFloat32), single(alone, DType::kFloat32);
  AttentionForward second = single.forward;
  second.q = packed.forward.q.rows(70, 140);
  second.k = packed.forward.k.rows(70, 140);
  second.v = packed.forward.v.rows(70, 140);
  attention(packed.forward);
  attention(second);
  EXPECT_EQ(0, std::memcmp(packed.forward.out.rows(70, 140).raw(), second.out.raw(),
                           static_cast<size_t>(second.out.num_bytes())));
}

TEST(Attention, LargeScoresNeitherOverflowNorVanish) {
  const AttentionCase c{"large", 1, 1, 8, 0, 0, {0, 100}};
  const AttentionProblem p(c, DType::kFloat32), expected(c, DType::kFloat32);
  for (const AttentionProblem* problem : {&p, &expected})
    for (int64_t i = 0; i < problem->forward.q.numel(); ++i)
      problem->forward.q.data<float>()[i] *= 1000.0f;
  attention(p.forward);
  attention_reference(expected.forward);
  for (int64_t i = 0; i < p.forward.out.numel(); ++i)
    ASSERT_NEAR(p.forward.out.data<float>()[i], expected.forward.out.data<float>()[i], 5e-3);
  attention_backward(p.backward);
  EXPECT_TRUE(std::isfinite(largest(p.backward.dk)));
}

TEST(Attention, SameBitsAtAnyThreadCount) {
  for (const AttentionCase& c : attention_cases()) {
    for (const DType dtype : kFloats) {
      expect_same_bits_at_any_thread_count(
          [&] {
            AttentionProblem p(c, dtype);
            attention(p.forward);
            attention_backward(p.backward);
            return std::move(p.owned);
          },
          c.name);
    }
  }
}

TEST(Attention, RefusesShapesThatDoNotFit) {
  const AttentionCase c{"bad", 4, 2, 8, 0, 0, {0, 10}};
  const AttentionProblem p(c, DType::kFloat32);
  AttentionForward args = p.forward;
  args.shape.num_kv_heads = 3;
  EXPECT_THROW(attention(args), ArgumentError);
  args = p.forward;
  const std::vector<int32_t> falling = {0, 8, 5, 10}, outside = {0, 11};
  args.sample_offsets = falling;
  EXPECT_THROW(attention(args), ArgumentError);
  args.sample_offsets = outside;
  EXPECT_THROW(attention(args), ArgumentError);
  AttentionBackward backward = p.backward;
  backward.forward.lse = {};
  EXPECT_THROW(attention_backward(backward), ArgumentError);
}

TEST(AttentionDecode, EqualsTheLastRowOfTheWholePass) {
  for (const DType dtype : kFloats) {
    for (const int64_t dim : {7, 64}) {
      const AttentionCase c{"decode", 6, 2, dim, 0, 0, {0, 1, 18, 201}};
      const AttentionProblem p(c, dtype);
      attention(p.forward);
      std::vector<CachedSequence> sequences;
      const Tensor q(Shape{3, 6 * dim}, dtype), out(Shape{3, 6 * dim}, dtype);
      for (int64_t s = 0; s < 3; ++s) {
        const int64_t begin = c.offsets[static_cast<size_t>(s)];
        const int64_t end = c.offsets[static_cast<size_t>(s) + 1];
        sequences.push_back(
            {p.forward.k.rows(begin, end).raw(), p.forward.v.rows(begin, end).raw(), end - begin});
        for (int64_t i = 0; i < 6 * dim; ++i)
          store_element(q, s * 6 * dim + i, load_element(p.forward.q, (end - 1) * 6 * dim + i));
      }
      attention_decode(p.forward.shape, sequences, q, out);
      // The whole pass in one form, the decoding in the other.
      const double error = 2 * chosen_form_error(p, c) * largest(p.forward.v);
      for (int64_t s = 0; s < 3; ++s) {
        const int64_t last = c.offsets[static_cast<size_t>(s) + 1] - 1;
        for (int64_t i = 0; i < 6 * dim; ++i) {
          const double e = load_element(p.forward.out, last * 6 * dim + i);
          ASSERT_NEAR(load_element(out, s * 6 * dim + i), e,
                      error + 2.02 * roundoff(dtype) * std::abs(e));
        }
      }
      expect_same_bits_at_any_thread_count(
          [&] {
            std::vector<Tensor> outputs;
            outputs.emplace_back(Shape{3, 6 * dim}, dtype);
            attention_decode(p.forward.shape, sequences, q, outputs[0]);
            return outputs;
          },
          "decode");
    }
  }
  const Tensor q(Shape{1, 8}, DType::kFloat32);
  const std::vector<CachedSequence> none = {{q.view().raw(), q.view().raw(), 0}};
  EXPECT_THROW(attention_decode({1, 1, 8, 1.0f, 0}, none, q, q), ArgumentError);
}

}  // namespace
}  // namespace shardtune::kernels
