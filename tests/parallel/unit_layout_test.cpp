// Where the bytes of a unit stand and who holds them.
#include "parallel/unit_layout.h"

#include <gtest/gtest.h>

namespace shardtune::parallel {
namespace {

struct Declared {
  explicit Declared(int world_size) : table(world_size) {
    unit = table.add_unit("layer");
    const auto frozen = [&](std::string name, DType dtype, Shape shape) {
      return table.declare({std::move(name), unit, ParameterKind::kFrozen, dtype, shape});
    };
    frozen("norm", DType::kFloat32, {33});
    matrix = frozen("weight", DType::kBFloat16, {37, 21});  // rows of 42 bytes
    trained = table.declare({"lora_A", unit, ParameterKind::kTrainable, DType::kFloat32, {70, 90}});
    frozen("offset", DType::kFloat32, {1});
    table.declare(
        {"other", table.add_unit("other"), ParameterKind::kTrainable, DType::kFloat32, {5000}});
    last = table.declare({"lora_B", unit, ParameterKind::kTrainable, DType::kFloat32, {9}});
    std::vector<ShardedTensor> tensors;
    for (const ParameterId id : table.trainables())
      tensors.push_back({id, table.at(id).spec.shape.numel()});
    flat = FlatLayout(ShardLayout(std::move(tensors), world_size));
    layout = lay_out_frozen(table, unit);
    lay_out_trainables(table, unit, flat, layout);
  }
  ParameterTable table;
  UnitId unit{};
  ParameterId matrix{}, trained{}, last{};
  FlatLayout flat;
  UnitLayout layout;
};

TEST(UnitLayout, PiecesOfAllRanksCoverEveryParameterOnce) {
  for (int world_size = 1; world_size <= 9; ++world_size) {
    const Declared declared(world_size);
    std::vector<int> hits(static_cast<size_t>(declared.layout.bf16_begin()), 0);
    for (int rank = 0; rank < world_size; ++rank) {
      for (const auto& piece : declared.layout.pieces(rank, declared.flat.shard(rank))) {
        for (int64_t i = piece.begin; i < piece.end; ++i)
          ++hits[static_cast<size_t>(i)];
      }
    }
    for (const auto& [id, offset] : declared.layout.offsets) {
      EXPECT_EQ(offset % 64, 0);
      for (int64_t i = 0; i < declared.table.at(id).num_bytes; ++i)
        ASSERT_EQ(hits[static_cast<size_t>(offset + i)], 1) << world_size << " ranks, byte " << i;
    }
  }
}

TEST(UnitLayout, ARowOfAMatrixIsHeldByOneRank) {
  for (int world_size = 1; world_size <= 9; ++world_size) {
    const UnitLayout layout = Declared(world_size).layout;
    const int64_t offset = layout.offsets.at(Declared(world_size).matrix);
    for (int64_t row = 0; row < 37; ++row) {
      const int owner = layout.owner_of(offset + row * 42);
      EXPECT_EQ(layout.owner_of(offset + row * 42 + 41), owner);
      EXPECT_LE(layout.cuts[static_cast<size_t>(owner)], offset + row * 42);
    }
  }
}

TEST(UnitLayout, FrozenBytesAreSharedOutEvenly) {
  for (int world_size = 2; world_size <= 8; ++world_size) {
    const UnitLayout layout = Declared(world_size).layout;
    for (size_t rank = 0; rank < static_cast<size_t>(world_size); ++rank)
      EXPECT_LE(layout.cuts[rank + 1] - layout.cuts[rank],
                layout.frozen_bytes / world_size + 64 + 1);  // one granule, one of rounding
  }
}

TEST(UnitLayout, TrainablesKeepTheOrderOfTheFlatLayout) {
  const Declared declared(3);
  ASSERT_EQ(declared.layout.runs.size(), 2u);  // another unit's tensor stands between
  EXPECT_EQ(declared.layout.runs[0].offset, declared.layout.offsets.at(declared.trained));
  EXPECT_EQ(declared.layout.runs[1].offset, declared.layout.offsets.at(declared.last));
  EXPECT_EQ(declared.layout.runs[1].flat_begin, declared.flat.offset(2));
  EXPECT_EQ(declared.layout.weights_bytes, (6304 + 16) * 4);  // each rounded up to 64 bytes
}

}  // namespace
}  // namespace shardtune::parallel
