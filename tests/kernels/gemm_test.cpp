#include "kernels/gemm.h"

#include <malloc.h>
#include <omp.h>

#include <fstream>
#include <string>
#include <thread>

#include "kernels/reference.h"
#include "tests/kernels/kernel_test_util.h"

namespace shardtune::kernels {
namespace {

struct Case {
  int64_t m, n, k;
};
// Odd extents, one-row and one-column products, and cuts that leave a remainder.
const std::vector<Case> kCases = {{1, 1, 1},    {1, 17, 217},  {17, 217, 256},  {217, 256, 17},
                                  {5, 1, 64},   {3, 2000, 40}, {300, 1700, 65}, {129, 31, 33},
                                  {513, 8, 16}, {256, 64, 1}};

std::string describe(const Case& c, Transpose transpose, DType input, DType output,
                     Accumulate accumulate) {
  return "m=" + std::to_string(c.m) + " n=" + std::to_string(c.n) + " k=" + std::to_string(c.k) +
         (transpose == Transpose::kYes ? " b^T " : " b ") + std::string(name_of(input)) + " -> " +
         std::string(name_of(output)) + (accumulate == Accumulate::kYes ? " accumulate" : "");
}

Shape shape_of_b(const Case& c, Transpose transpose) {
  return transpose == Transpose::kYes ? Shape{c.n, c.k} : Shape{c.k, c.n};
}

void check_case(const Case& c, Transpose transpose, DType input, DType output,
                Accumulate accumulate) {
  const float scale = accumulate == Accumulate::kYes ? 0.75f : 1.0f;
  const Tensor a = random_tensor({c.m, c.k}, input, 1),
               b = random_tensor(shape_of_b(c, transpose), input, 2);
  const Tensor start = random_tensor({c.m, c.n}, output, 3);
  const Tensor found = start.clone();
  const Tensor expected = converted(start, DType::kFloat32);
  const Tensor magnitude = absolute(start);
  gemm(a, b, transpose, found, accumulate, scale);
  gemm_reference(a, b, transpose, expected, accumulate, scale);
  gemm_reference(absolute(a), absolute(b), transpose, magnitude, accumulate, scale);
  // A sum of k products of f32, scaled and added: (k + 3) roundings of at most the sum of
  // magnitudes; the output is rounded once more.
  const double factor = static_cast<double>(c.k + 3) * kRoundoffF32;
  expect_within(
      found, expected,
      [&](int64_t i, double e) {
        return factor * magnitude.data<float>()[i] + 1.01 * roundoff(output) * std::abs(e) + 1e-37;
      },
      describe(c, transpose, input, output, accumulate));
}

TEST(Gemm, EqualsTheReferenceOnOddShapesAndAllDtypes) {
  for (const Case& c : kCases)
    for (const Transpose transpose : {Transpose::kNo, Transpose::kYes})
      for (const DType input : {DType::kFloat32, DType::kBFloat16})
        for (const DType output : {DType::kFloat32, DType::kBFloat16})
          for (const Accumulate accumulate : {Accumulate::kNo, Accumulate::kYes})
            check_case(c, transpose, input, output, accumulate);
}

void check_onto(const Case& c, DType input, DType output) {
  const Tensor a = random_tensor({c.m, c.k}, input, 1), b = random_tensor({c.n, c.k}, input, 2);
  const Tensor y = random_tensor({c.m, c.n}, DType::kFloat32, 3);
  const Tensor found(y.shape(), output), expected = y.clone(), magnitude = absolute(y);
  gemm_onto(y, a, b, found, 0.75f);
  gemm_reference(a, b, Transpose::kYes, expected, Accumulate::kYes, 0.75f);
  gemm_reference(absolute(a), absolute(b), Transpose::kYes, magnitude, Accumulate::kYes, 0.75f);
  const double factor = static_cast<double>(c.k + 3) * kRoundoffF32;
  expect_within(
      found, expected,
      [&](int64_t i, double e) {
        return factor * magnitude.data<float>()[i] + 1.01 * roundoff(output) * std::abs(e) + 1e-37;
      },
      describe(c, Transpose::kYes, input, output, Accumulate::kYes) + " onto");
}

BlockSource blocks_of(const Tensor& b) {
  return [&b](const Block& block, const TensorView& out) {
    for (int64_t i = 0; i < out.numel(); ++i) {
      const int64_t row = block.first_row + i / block.num_columns;
      const int64_t column = block.first_column + i % block.num_columns;
      store_element(out, i, load_element(b, row * b.dim(1) + column));
    }
  };
}

void check_panels(const Case& c, Transpose transpose, DType input, DType output,
                  Accumulate accumulate) {
  const Tensor a = random_tensor({c.m, c.k}, input, 1);
  const Tensor b = random_tensor(shape_of_b(c, transpose), input, 2);
  const Tensor start = random_tensor({c.m, c.n}, output, 3);
  const Tensor found = start.clone(), expected = start.clone();
  const Tensor magnitude(start.shape(), DType::kFloat32);
  gemm_by_panels(a, blocks_of(b), transpose, found, accumulate);
  gemm(a, b, transpose, expected, accumulate);
  gemm_reference(absolute(a), absolute(b), transpose, magnitude, Accumulate::kNo, 1.0f);
  // Both are sums of k products in f32, in orders of their own, rounded once more.
  const double factor = 2.0 * static_cast<double>(c.k + 3) * kRoundoffF32;
  expect_within(
      found, expected,
      [&](int64_t i, double e) {
        return factor * (magnitude.data<float>()[i] + std::abs(e)) +
               2.02 * roundoff(output) * std::abs(e) + 1e-37;
      },
      describe(c, transpose, input, output, accumulate) + " by panels");
}

// In the last two cases b is more than one panel, with a remainder.
TEST(GemmByPanels, EqualsTheProductWithTheWholeMatrix) {
  std::vector<Case> cases = kCases;
  cases.push_back({3, 1100, 2100});
  cases.push_back({140, 900, 3000});
  for (const Case& c : cases)
    for (const Transpose transpose : {Transpose::kNo, Transpose::kYes})
      for (const DType input : {DType::kFloat32, DType::kBFloat16})
        for (const Accumulate accumulate : {Accumulate::kNo, Accumulate::kYes})
          check_panels(c, transpose, input, input, accumulate);
  check_panels({7, 70, 50}, Transpose::kYes, DType::kFloat32, DType::kBFloat16, Accumulate::kYes);
  check_panels({7, 70, 50}, Transpose::kNo, DType::kBFloat16, DType::kFloat32, Accumulate::kNo);
}

TEST(GemmByPanels, SameBitsAtAnyThreadCount) {
  const Tensor a = random_tensor({130, 2100}, DType::kFloat32, 1);
  const Tensor b = random_tensor({1100, 2100}, DType::kFloat32, 2);
  expect_same_bits_at_any_thread_count(
      [&] {
        std::vector<Tensor> outputs;
        outputs.emplace_back(Shape{130, 1100}, DType::kFloat32);
        gemm_by_panels(a, blocks_of(b), Transpose::kYes, outputs[0], Accumulate::kNo);
        return outputs;
      },
      "gemm_by_panels");
}

TEST(GemmOnto, EqualsTheReferenceOnOddShapesAndAllDtypes) {
  for (const Case& c : kCases)
    for (const DType input : {DType::kFloat32, DType::kBFloat16})
      for (const DType output : {DType::kFloat32, DType::kBFloat16})
        check_onto(c, input, output);
}

// What a bf16 base loses when it is rounded before a small update is added. The rounding errors e
// are at most 2^-8 (values mostly below 2) and do not know the update d: the sum of (out - y) d
// over that of d^2 is 1 with a deviation of |e| / (|d| sqrt(n)) < 0.03; rounded twice it comes out
// near 0.
TEST(GemmOnto, KeepsASecondTermBelowTheStepOfTheFirst) {
  constexpr int64_t kRows = 128, kColumns = 512, kRank = 8;
  const Tensor y = random_tensor({kRows, kColumns}, DType::kFloat32, 1);
  const Tensor a = random_tensor({kRows, kRank}, DType::kBFloat16, 2);
  const Tensor b = random_tensor({kColumns, kRank}, DType::kBFloat16, 3);
  const Tensor update = Tensor::zeros(y.shape(), DType::kFloat32);
  const Tensor out(y.shape(), DType::kBFloat16);
  constexpr float kScale = 0x1.0p-12f;
  gemm_reference(a, b, Transpose::kYes, update, Accumulate::kNo, kScale);
  gemm_onto(y, a, b, out, kScale);
  double along = 0.0, length = 0.0;
  for (int64_t i = 0; i < out.numel(); ++i) {
    const double d = update.data<float>()[i];
    along += (load_element(out, i) - y.data<float>()[i]) * d;
    length += d * d;
  }
  EXPECT_NEAR(along / length, 1.0, 0.2);
}

TEST(GemmOnto, SameBitsAtAnyThreadCount) {
  const Tensor y = random_tensor({300, 1700}, DType::kFloat32, 1);
  const Tensor a = random_tensor({300, 16}, DType::kBFloat16, 2);
  const Tensor b = random_tensor({1700, 16}, DType::kBFloat16, 3);
  expect_same_bits_at_any_thread_count(
      [&] {
        std::vector<Tensor> outputs;
        outputs.emplace_back(y.shape(), DType::kBFloat16);
        gemm_onto(y, a, b, outputs[0], 0.5f);
        return outputs;
      },
      "gemm_onto");
}

void check_with_low_rank(const Case& c, int64_t rank, DType input, DType output) {
  const Tensor a = random_tensor({c.m, c.k}, input, 1), b = random_tensor({c.n, c.k}, input, 2);
  const Tensor u = random_tensor({c.m, rank}, input, 3), v = random_tensor({c.n, rank}, input, 4);
  const Tensor found(Shape{c.m, c.n}, output), by_panels(Shape{c.m, c.n}, output);
  const Tensor expected(found.shape(), DType::kFloat32), magnitude(found.shape(), DType::kFloat32);
  gemm_with_low_rank(a, b, {u, v, 0.75f}, found);
  gemm_by_panels_with_low_rank(a, blocks_of(b), {u, v, 0.75f}, by_panels);
  gemm_reference(a, b, Transpose::kYes, expected, Accumulate::kNo, 1.0f);
  gemm_reference(u, v, Transpose::kYes, expected, Accumulate::kYes, 0.75f);
  gemm_reference(absolute(a), absolute(b), Transpose::kYes, magnitude, Accumulate::kNo, 1.0f);
  gemm_reference(absolute(u), absolute(v), Transpose::kYes, magnitude, Accumulate::kYes, 0.75f);
  const double factor = static_cast<double>(c.k + rank + 4) * kRoundoffF32;  // as for gemm
  for (const Tensor* const one : {&found, &by_panels})
    expect_within(
        *one, expected,
        [&](int64_t i, double e) {
          return factor * magnitude.data<float>()[i] + 1.01 * roundoff(output) * std::abs(e) +
                 1e-37;
        },
        describe(c, Transpose::kYes, input, output, Accumulate::kNo) + " rank " +
            std::to_string(rank));
}

// Ranks on both sides of the widest that one pass takes; the last case is more than one panel.
TEST(GemmWithLowRank, EqualsTheReferenceOnOddShapesAndAllDtypes) {
  for (const Case& c : kCases)
    for (const int64_t rank : {1, 16, 64, 65})
      for (const DType input : {DType::kFloat32, DType::kBFloat16})
        for (const DType output : {DType::kFloat32, DType::kBFloat16})
          check_with_low_rank(c, rank, input, output);
  check_with_low_rank({70, 900, 3000}, 7, DType::kBFloat16, DType::kBFloat16);
}

TEST(GemmWithLowRank, SameBitsAtAnyThreadCount) {
  for (const Case& c : {Case{300, 1700, 65}, Case{2048, 192, 576}, Case{100, 576, 33}}) {
    const Tensor a = random_tensor({c.m, c.k}, DType::kBFloat16, 1);
    const Tensor b = random_tensor({c.n, c.k}, DType::kBFloat16, 2);
    const Tensor u = random_tensor({c.m, 16}, DType::kBFloat16, 3);
    const Tensor v = random_tensor({c.n, 16}, DType::kBFloat16, 4);
    expect_same_bits_at_any_thread_count(
        [&] {
          std::vector<Tensor> outputs;
          outputs.emplace_back(Shape{c.m, c.n}, DType::kBFloat16);
          gemm_with_low_rank(a, b, {u, v, 0.5f}, outputs[0]);
          return outputs;
        },
        "gemm_with_low_rank");
  }
}

TEST(GemmWithLowRank, RefusesFactorsThatDoNotFit) {
  const Tensor a(Shape{70, 8}, DType::kBFloat16), b(Shape{32, 8}, DType::kBFloat16);
  const Tensor u(Shape{70, 4}, DType::kBFloat16), v(Shape{31, 4}, DType::kBFloat16);
  const Tensor c(Shape{70, 32}, DType::kBFloat16);
  EXPECT_THROW(gemm_with_low_rank(a, b, {u, v, 1.0f}, c), ArgumentError);
  EXPECT_THROW(gemm_with_low_rank(a, b, {a, b, 1.0f}, Tensor(Shape{70, 31}, DType::kBFloat16)),
               ArgumentError);
}

TEST(Gemm, EmptyExtentsWriteZerosOrNothing) {
  const Tensor c = random_tensor({2, 3}, DType::kFloat32, 1);
  const Tensor before = c.clone();
  const Tensor a(Shape{2, 0}, DType::kFloat32), b(Shape{0, 3}, DType::kFloat32);
  gemm(a, b, Transpose::kNo, c, Accumulate::kYes);
  for (int64_t i = 0; i < 6; ++i)
    EXPECT_EQ(c.data<float>()[i], before.data<float>()[i]);
  gemm(a, b, Transpose::kNo, c, Accumulate::kNo);
  for (int64_t i = 0; i < 6; ++i)
    EXPECT_EQ(c.data<float>()[i], 0.0f);
  const Tensor none(Shape{0, 3}, DType::kFloat32), wide(Shape{3, 4}, DType::kFloat32);
  gemm(none, wide, Transpose::kNo, Tensor(Shape{0, 4}, DType::kFloat32), Accumulate::kNo);
}

TEST(Gemm, WriteIgnoresNanInTheOldOutput) {
  const Tensor a = random_tensor({4, 8}, DType::kFloat32, 1);
  const Tensor c(Shape{4, 4}, DType::kFloat32);
  std::fill_n(c.data<float>(), 16, std::nanf(""));
  gemm(a, a, Transpose::kYes, c, Accumulate::kNo);
  for (int64_t i = 0; i < 16; ++i)
    EXPECT_TRUE(std::isfinite(c.data<float>()[i]));
}

TEST(Gemm, RefusesShapesAndDtypesThatDoNotFit) {
  const Tensor a(Shape{2, 3}, DType::kFloat32), b(Shape{4, 5}, DType::kFloat32);
  const Tensor c(Shape{2, 5}, DType::kFloat32), h(Shape{3, 5}, DType::kBFloat16);
  EXPECT_THROW(gemm(a, b, Transpose::kNo, c, Accumulate::kNo), ArgumentError);
  EXPECT_THROW(gemm(a, h, Transpose::kNo, c, Accumulate::kNo), ArgumentError);
  try {
    gemm(a, b, Transpose::kNo, c, Accumulate::kNo);
  } catch (const ArgumentError& error) {
    EXPECT_NE(
        std::string(error.what()).find("gemm: b: expected float [3, 5], found float32 [4, 5]"),
        std::string::npos)
        << error.what();
  }
}

TEST(Gemm, SameBitsAtAnyThreadCount) {
  std::vector<Case> cases = kCases;
  for (const Case& c : {Case{1024, 576, 576}, Case{700, 192, 576}, Case{512, 1536, 576},
                        Case{640, 576, 1536}, Case{64, 4096, 576}, Case{1, 4096, 576},
                        Case{256, 16, 1536}, Case{256, 1536, 16}, Case{8, 8, 20000}})
    cases.push_back(c);
  for (const Case& c : cases) {
    for (const Transpose transpose : {Transpose::kNo, Transpose::kYes}) {
      for (const DType dtype : {DType::kFloat32, DType::kBFloat16}) {
        const Tensor a = random_tensor({c.m, c.k}, dtype, 1);
        const Tensor b = random_tensor(shape_of_b(c, transpose), dtype, 2);
        expect_same_bits_at_any_thread_count(
            [&] {
              std::vector<Tensor> outputs;
              outputs.push_back(Tensor::zeros({c.m, c.n}, dtype));
              gemm(a, b, transpose, outputs[0], Accumulate::kYes, 0.5f);
              return outputs;
            },
            describe(c, transpose, dtype, dtype, Accumulate::kYes));
      }
    }
  }
}

/// The first rows of a product of 64 rows against the products of fewer rows.
void expect_rows_do_not_depend_on_company(int64_t n, int64_t k, Transpose transpose, DType dtype) {
  constexpr int64_t kAll = 64;
  const Tensor a = random_tensor({kAll, k}, dtype, 1);
  const Tensor b = random_tensor(shape_of_b({kAll, n, k}, transpose), dtype, 2);
  const Tensor y = random_tensor({kAll, n}, DType::kFloat32, 3);
  const Tensor all = Tensor::zeros({kAll, n}, dtype), all_onto = Tensor::zeros({kAll, n}, dtype);
  gemm(a, b, transpose, all, Accumulate::kNo);
  if (transpose == Transpose::kYes)
    gemm_onto(y, a, b, all_onto, 0.5f);
  for (const int64_t m : {1, 2, 3, 4, 5, 7, 8, 12, 15, 16, 17, 24, 31, 32, 33, 48, 63}) {
    const Tensor few = Tensor::zeros({m, n}, dtype);
    const std::string what = describe({m, n, k}, transpose, dtype, dtype, Accumulate::kNo);
    gemm(a.view().rows(0, m), b, transpose, few, Accumulate::kNo);
    EXPECT_EQ(std::memcmp(few.view().raw(), all.view().raw(), few.view().num_bytes()), 0) << what;
    if (transpose == Transpose::kNo)
      continue;
    gemm_onto(y.view().rows(0, m), a.view().rows(0, m), b, few, 0.5f);
    EXPECT_EQ(std::memcmp(few.view().raw(), all_onto.view().raw(), few.view().num_bytes()), 0)
        << what << " onto";
  }
}

// What decoding many sequences together rests on: also the narrow products of adapters.
TEST(Gemm, ARowHasTheSameBitsAmongAnyFewOthers) {
  const std::vector<std::pair<int64_t, int64_t>> shapes = {
      {576, 576}, {1536, 576}, {576, 1536}, {100, 65}, {2048, 64}, {8, 576},
      {16, 1536}, {4, 100},    {1, 64},     {63, 300}, {576, 8},   {1536, 16},
      {100, 4},   {1000, 63},  {17, 33},    {64, 1}};
  for (const auto& [n, k] : shapes) {
    for (const Transpose transpose : {Transpose::kNo, Transpose::kYes}) {
      expect_rows_do_not_depend_on_company(n, k, transpose, DType::kFloat32);
      expect_rows_do_not_depend_on_company(n, k, transpose, DType::kBFloat16);
    }
  }
}

TEST(Gemm, GivesTheSameBitsFromSeveralThreadsAtOnceAndInsideAParallelRegion) {
  const Tensor a = random_tensor({300, 64}, DType::kFloat32, 1);
  const Tensor b = random_tensor({96, 64}, DType::kFloat32, 2);
  const Tensor expected(Shape{300, 96}, DType::kFloat32);
  gemm(a, b, Transpose::kYes, expected, Accumulate::kNo);
  std::vector<Tensor> outputs;
  for (int i = 0; i < 8; ++i)
    outputs.emplace_back(Shape{300, 96}, DType::kFloat32);
  const auto run = [&](size_t i) { gemm(a, b, Transpose::kYes, outputs[i], Accumulate::kNo); };
  std::vector<std::thread> threads;
  for (size_t i = 0; i < 4; ++i)
    threads.emplace_back([&run, i] { run(i); });
  for (std::thread& thread : threads)
    thread.join();
#pragma omp parallel for num_threads(4)
  for (size_t i = 4; i < 8; ++i)
    run(i);
  for (const Tensor& output : outputs)
    EXPECT_EQ(0, std::memcmp(output.view().raw(), expected.view().raw(),
                             static_cast<size_t>(expected.num_bytes())));
}

TEST(Gemm, LeavesTheThreadCountAsItWas) {
  const ThreadScope scope(3);
  const Tensor a = random_tensor({4, 8}, DType::kFloat32, 1);
  gemm(a, a, Transpose::kYes, Tensor(Shape{4, 4}, DType::kFloat32), Accumulate::kNo);
  EXPECT_EQ(num_threads(), 3);
}

/// Resident beside the pool's buffers, without holes in the heap.
int64_t resident_kib() {
  malloc_trim(0);
  std::ifstream status("/proc/self/status");
  for (std::string word; status >> word;) {
    int64_t kib = 0;
    if (word == "VmRSS:" && status >> kib)
      return kib - BufferPool::process().resident_bytes() / 1024;
  }
  return 0;
}

// Each length has code of its own, in f32 some 85 KiB: the last 400 of them would hold 34 MiB more.
TEST(Gemm, ProductsOfManyLengthsHoldLittleMemory) {
#if defined(__SANITIZE_ADDRESS__)
  GTEST_SKIP() << "the address sanitizer keeps what is freed";
#endif
  constexpr int64_t kFirst = 300, kLengths = 600, kFill = 200;
  const Tensor a = random_tensor({kFirst + kLengths, 72}, DType::kFloat32, 1);
  const Tensor b = random_tensor({72, 72}, DType::kFloat32, 2);
  const Tensor c(Shape{72, 72}, DType::kFloat32);
  const auto run = [&](int64_t tokens) {
    gemm_over_tokens(a.view().rows(0, tokens), a.view().rows(0, tokens), c, Accumulate::kNo);
  };
  for (int64_t i = 0; i < kFill; ++i)
    run(kFirst + i);
  const int64_t before = resident_kib();
  for (int64_t i = kFill; i < kLengths; ++i)
    run(kFirst + i);
  EXPECT_LT(resident_kib() - before, 8 << 10) << "KiB";
}

const std::vector<Case> kTokenCases = {{1, 1, 1},       {17, 217, 256}, {513, 16, 576},
                                       {1100, 3, 65},   {512, 64, 16},  {70, 600, 300},
                                       {1100, 300, 16}, {33, 20, 90}};

TEST(GemmOverTokens, EqualsTheReference) {
  for (const Case& c : kTokenCases) {  // m tokens
    for (const DType dtype : {DType::kFloat32, DType::kBFloat16}) {
      for (const Accumulate accumulate : {Accumulate::kNo, Accumulate::kYes}) {
        const Tensor dy = random_tensor({c.m, c.n}, dtype, 1),
                     x = random_tensor({c.m, c.k}, dtype, 2);
        const Tensor found = random_tensor({c.n, c.k}, DType::kFloat32, 3);
        const Tensor expected = found.clone(), magnitude = absolute(found);
        gemm_over_tokens(dy, x, found, accumulate, 0.5f);
        gemm_over_tokens_reference(dy, x, expected, accumulate, 0.5f);
        gemm_over_tokens_reference(absolute(dy), absolute(x), magnitude, accumulate, 0.5f);
        const double factor = static_cast<double>(c.m + 4) * kRoundoffF32;  // as for gemm
        expect_within(
            found, expected,
            [&](int64_t i, double) { return factor * magnitude.data<float>()[i] + 1e-37; },
            describe(c, Transpose::kNo, dtype, DType::kFloat32, accumulate));
      }
    }
  }
}

TEST(GemmOverTokens, SameBitsAtAnyThreadCount) {
  std::vector<Case> cases = kTokenCases;
  cases.push_back({2048, 16, 576});
  cases.push_back({2048, 1536, 16});
  for (const Case& c : cases) {
    for (const DType dtype : {DType::kFloat32, DType::kBFloat16}) {
      const Tensor dy = random_tensor({c.m, c.n}, dtype, 1),
                   x = random_tensor({c.m, c.k}, dtype, 2);
      expect_same_bits_at_any_thread_count(
          [&] {
            std::vector<Tensor> outputs;
            outputs.emplace_back(Shape{c.n, c.k}, DType::kFloat32);
            gemm_over_tokens(dy, x, outputs[0], Accumulate::kNo);
            return outputs;
          },
          describe(c, Transpose::kNo, dtype, DType::kFloat32, Accumulate::kNo));
    }
  }
}

TEST(GemmOverTokens, NoTokensWriteZeros) {
  const Tensor out = random_tensor({2, 3}, DType::kFloat32, 1);
  gemm_over_tokens(Tensor(Shape{0, 2}, DType::kFloat32), Tensor(Shape{0, 3}, DType::kFloat32), out,
                   Accumulate::kNo);
  for (int64_t i = 0; i < 6; ++i)
    EXPECT_EQ(out.data<float>()[i], 0.0f);
}

}  // namespace
}  // namespace shardtune::kernels
