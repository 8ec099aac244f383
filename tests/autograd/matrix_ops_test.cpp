// Operations on small matrices against central differences in fp32.
#include "autograd/matrix_ops.h"

#include <gtest/gtest.h>

#include "autograd/ops.h"
#include "tests/autograd/ops_fixture.h"

namespace shardtune::autograd {
namespace {

using kernels::Transpose;
using MatrixOps = testing::OpsFixture;

TEST_F(MatrixOps, MatmulGoesBackToBothSides) {
  check({{3, 5}, {4, 5}, {4, 6}}, [](Tape& tape, const auto& x) {
    return matmul(tape, matmul(tape, x[0], x[1], Transpose::kYes), x[2], Transpose::kNo);
  });
}

TEST_F(MatrixOps, ReshapeAndSliceGoBack) {
  check({{3, 8}}, [](Tape& tape, const auto& x) {
    const Variable wide = reshape(tape, x[0], Shape{4, 6});
    return add(tape, slice_columns(tape, wide, 1, 4), slice_columns(tape, wide, 3, 6));
  });
}

TEST_F(MatrixOps, SumsOfColumnGroupsGoBackToEveryColumn) {
  check({{3, 8}}, [](Tape& tape, const auto& x) {
    return add(tape, sum_column_groups(tape, x[0], 4, 0.5f),
               sum_column_groups(tape, slice_columns(tape, x[0], 1, 7), 3, -2.0f));
  });
}

TEST_F(MatrixOps, AppendedColumnsGoBackToBothParts) {
  check({{3, 4}, {3, 2}}, [](Tape& tape, const auto& x) {
    return append_columns(tape, x[0], mul(tape, x[1], x[1]));
  });
}

TEST_F(MatrixOps, GatheredRowsThatRepeatAddTheirGradients) {
  check({{3, 4}}, [](Tape& tape, const auto& x) { return gather_rows(tape, x[0], {2, 0, 2}); });
}

TEST_F(MatrixOps, PlacedRowsTakeTheGradientOfTheRowsTheyCover) {
  check({{5, 4}, {2, 4}}, [](Tape& tape, const auto& x) {
    return place_rows(tape, mul(tape, x[0], x[0]), x[1], {3, 0});
  });
}

TEST_F(MatrixOps, AddRowGoesBackToTheRow) {
  check({{5, 4}, {4}}, [](Tape& tape, const auto& x) { return add_row(tape, x[0], x[1]); });
}

TEST_F(MatrixOps, KroneckerGoesBackToBothFactors) {
  check({{2, 3}, {4, 2}}, [](Tape& tape, const auto& x) { return kronecker(tape, x[0], x[1]); });
}

TEST_F(MatrixOps, KroneckerPlacesBlocks) {
  Tape tape(store_, Recording::kOff);
  const float a[] = {1, 2}, b[] = {3, 4};
  const Variable c = kronecker(tape, Variable::constant(Tensor::from(a, {1, 2})),
                               Variable::constant(Tensor::from(b, {2, 1})));
  EXPECT_EQ(c.shape(), (Shape{2, 2}));
  const float want[] = {3, 6, 4, 8};
  for (int i = 0; i < 4; ++i)
    EXPECT_EQ(c.value().data<const float>()[i], want[i]);
}

TEST_F(MatrixOps, LowRankUpdateMayKeepFloat32) {
  const ParameterId a = trainable("lora_A", {2, 5}, 11);
  const ParameterId b = trainable("lora_B", {6, 2}, 12);
  check({{4, 6}, {4, 5}}, [&](Tape& tape, const auto& x) {
    return low_rank_update(tape, scaled(tape, x[0], 1.0f), x[1], {a, b, 0.5f, DType::kFloat32});
  });
}

}  // namespace
}  // namespace shardtune::autograd
