// Training over a GGUF file's blocks as they are: nothing is rounded a second time, so a run has
// the bits of one over the same values held densely, and its merged model is blocks + delta.
#include <gtest/gtest.h>

#include "models/model_source.h"
#include "tests/support/tiny_gguf.h"
#include "tests/trainer/small_run.h"

namespace shardtune::trainer {
namespace {

using testing::SmallRun;
using Overrides = std::vector<std::string>;

class Keep : public ::testing::Test {
 protected:
  Overrides on(const std::string& file, const std::string& method, const std::string& compute) {
    return {"model.model_name_or_path=" + small_.path(file).string(),
            "model.compute_dtype=" + compute, "quantization={method: " + method + "}"};
  }
  void run(const std::string& output, Overrides overrides, int ranks = 1) {
    overrides.push_back("training.max_steps=3");
    small_.run(small_.config(output, overrides), ranks);
  }
  void expect_same(const std::string& a, const std::string& b) {
    EXPECT_EQ(small_.losses(a), small_.losses(b));
    EXPECT_EQ(small_.adapter_bytes(a), small_.adapter_bytes(b));
  }

  SmallRun small_;
};

TEST_F(Keep, HasTheBitsOfTheSameValuesHeldDensely) {
  testing::make_tiny_gguf(small_.path("mixed.gguf"), testing::q4_k_m);
  testing::make_tiny_gguf(small_.path("others.gguf"), testing::all_other_types);
  for (const std::string model : {"mixed", "others"}) {
    for (const std::string compute : {"float32", "bfloat16"}) {
      const std::string stem = model + compute;
      run(stem + "none", on(model + ".gguf", "none", compute));
      run(stem + "keep", on(model + ".gguf", "keep", compute));
      expect_same(stem + "none", stem + "keep");
    }
  }
  EXPECT_NE(small_.adapter_bytes("mixedfloat32keep"), small_.adapter_bytes("othersfloat32keep"));
}

// A folder's weights are kept in the dtype of the file: these are fp32, computed in bf16.
TEST_F(Keep, WorksOnAFolderOfSafetensors) {
  for (const std::string compute : {"float32", "bfloat16"}) {
    run(compute + "none", on("model", "none", compute));
    run(compute + "keep", on("model", "keep", compute), 2);
    expect_same(compute + "none", compute + "keep");
  }
}

TEST_F(Keep, ATypeWithoutDecoderIsNamedBeforeAnythingIsLoaded) {
  testing::make_tiny_gguf(small_.path("ternary.gguf"),
                          [](const std::string& name, int64_t row_length) -> std::string {
                            return name == "blk.1.ffn_up.weight" ? "TQ1_0" : "Q8_0";
                          });
  for (const char* method : {"keep", "none", "nf4"}) {
    std::string message;
    try {
      run("out", on("ternary.gguf", method, "float32"));
    } catch (const UnsupportedError& error) {
      message = error.what();
    }
    EXPECT_NE(message.find("ternary.gguf: blk.1.ffn_up.weight: expected one of F32, F16, Q4_0"),
              std::string::npos)
        << message;
    EXPECT_NE(message.find("found TQ1_0"), std::string::npos) << message;
  }
}

// q and k rows move whole: the file's interleaved pairs become halves, and blocks stay.
TEST_F(Keep, RowsOfBlocksMoveWhole) {
  testing::make_tiny_gguf(small_.path("mixed.gguf"), testing::q4_k_m);
  const auto source = models::open_model_source(small_.path("mixed.gguf").string());
  const auto file = io::open_gguf(small_.path("mixed.gguf"));
  const std::string name = "model.layers.1.self_attn.k_proj.weight";
  const io::TensorInfo& tensor = *file->find("blk.1.attn_k.weight");
  EXPECT_EQ(source->stored_type(name), "Q5_K");
  const auto row_bytes = static_cast<size_t>(tensor.num_bytes / tensor.shape[0]);
  std::vector<std::byte> rows(static_cast<size_t>(tensor.num_bytes));
  source->read_stored_rows(name, 0, tensor.shape[0], rows.data());
  const auto bytes = file->bytes(tensor);
  // Two heads of 16: row 16 + 3 is the first of pair 3 of head 1, row 16 + 8 + 3 its second.
  for (const auto& [row, in_file] :
       {std::pair(0, 0), std::pair(8, 1), std::pair(16 + 3, 16 + 6), std::pair(16 + 11, 16 + 7)})
    EXPECT_TRUE(std::equal(rows.begin() + row * row_bytes, rows.begin() + (row + 1) * row_bytes,
                           bytes.begin() + in_file * row_bytes))
        << row;
}

}  // namespace
}  // namespace shardtune::trainer
