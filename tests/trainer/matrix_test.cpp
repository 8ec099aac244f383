// The promise of the project as one table: every frozen format, adapter, ZeRO stage, offload,
// recompute and number of ranks gives the losses and the adapter of one rank without any of them,
// or is refused before anything is loaded. Ranks are processes under mpirun. docs/compatibility.md
// is what these tests found: with SHARDTUNE_WRITE_DOCS=1 the first of them writes the file,
// otherwise it compares.
#include <cstdlib>
#include <map>
#include <set>

#include "core/error.h"
#include "tests/support/tiny_gguf.h"
#include "tests/trainer/run_list.h"

namespace shardtune::trainer {
namespace {

using testing::ListedRun;
using testing::read_text;
using testing::SmallRun;
using Overrides = std::vector<std::string>;

/// A choice of one column of the table.
struct Choice {
  std::string name;
  Overrides overrides;
};

const Choice kNf4Double{"nf4, double_quant", {"quantization={method: nf4, double_quant: true}"}};
const Choice kNf4{"nf4", {"quantization={method: nf4}"}};
const Choice kFp4Double{"fp4, double_quant", {"quantization={method: fp4, double_quant: true}"}};
const Choice kFp4{"fp4", {"quantization={method: fp4}"}};
const Choice kInt8{"int8", {"quantization={method: int8}"}};
// '@' is the folder of the models.
const Choice kKeepMixed{"keep (GGUF: Q4_K, Q5_K, Q6_K, Q5_0, Q5_1)",
                        {"quantization={method: keep}", "model.model_name_or_path=@mixed.gguf"}};
const Choice kKeepOthers{"keep (GGUF: Q2_K, Q3_K, Q4_0, Q4_1, Q8_0, IQ4_NL, F16, BF16, F32)",
                         {"quantization={method: keep}", "model.model_name_or_path=@others.gguf"}};
const Choice kDense{"none (dense)", {"quantization={method: none}"}};
const Choice kBf16{"bfloat16", {"model.compute_dtype=bfloat16"}};
const Choice kF32{"float32", {"model.compute_dtype=float32"}};
const Choice kInt8Compute{"int8", {"model.compute_dtype=int8"}};
const Choice kLora{"lora", {}};
const Choice kRsLora{"lora, use_rslora", {"adapter.use_rslora=true"}};

constexpr int kStages = 4;

/// Where states and base are.
enum class Place { kMemory, kShared, kNvme };

/// What each stage of one line of the table is run with.
struct Line {
  Choice base;
  Choice compute;
  Choice adapter;
  Place place = Place::kMemory;
  std::vector<int> ranks;
  int threads = 1;

  Overrides method() const {
    Overrides all;
    for (const Choice* choice : {&base, &compute, &adapter})
      all.insert(all.end(), choice->overrides.begin(), choice->overrides.end());
    return all;
  }
  /// Stage 3 with a shared base is refused.
  int num_stages() const { return place == Place::kShared ? kStages - 1 : kStages; }
  std::string place_name() const {
    return place == Place::kNvme     ? "nvme"
           : place == Place::kShared ? "none, share_base_per_host"
                                     : "none";
  }
  std::string method_name() const { return base.name + compute.name + adapter.name; }
};

/// The two formats that most runs use on every number of ranks; the others where it costs most.
std::vector<Line> lines() {
  std::vector<Line> result;
  const auto add = [&](const Choice& base, const Choice& compute, const Choice& adapter,
                       const std::vector<int>& ranks) {
    for (const Place place : {Place::kMemory, Place::kNvme})
      result.push_back({base, compute, adapter, place, ranks});
  };
  for (const Choice& base : {kNf4Double, kDense})
    add(base, kBf16, kLora, {1, 2, 4});
  add(kKeepMixed, kBf16, kLora, {1, 2, 4});
  for (const Choice& base : {kNf4, kFp4Double, kInt8, kKeepOthers})
    add(base, kBf16, kLora, {4});
  result.push_back({kFp4, kF32, kLora, Place::kMemory, {2}});
  result.push_back({kFp4Double, kBf16, kLora, Place::kShared, {2}});
  result.push_back({kKeepMixed, kF32, kLora, Place::kMemory, {2}});
  for (const Choice& base : {kNf4Double, kDense})
    add(base, kF32, kLora, {4});
  for (const Choice& base : {kNf4Double, kDense})
    add(base, kBf16, kRsLora, {2});
  for (const Choice& base : {kNf4Double, kInt8, kDense})
    add(base, kInt8Compute, kLora, {2});
  result.push_back({kNf4Double, kInt8Compute, kLora, Place::kMemory, {1, 4}, 2});
  result.push_back({kNf4Double, kInt8Compute, kLora, Place::kShared, {2}});
  for (const Choice& base : {kNf4Double, kDense})
    result.push_back({base, kBf16, kLora, Place::kMemory, {1, 2}, 2});
  for (const Choice& base : {kNf4Double, kDense, kInt8, kKeepMixed})
    result.push_back({base, kBf16, kLora, Place::kShared, {1, 2, 4}});
  return result;
}

/// One training of the table.
struct Cell {
  size_t line = 0;
  int stage = 0;
  int ranks = 1;
  bool recomputes = false;

  std::string name() const {
    return "l" + std::to_string(line) + "s" + std::to_string(stage) + "r" + std::to_string(ranks) +
           (recomputes ? "c" : "");
  }
};

class Matrix {
 public:
  Matrix() : lines_(lines()) {
    testing::make_tiny_gguf(small_.path("mixed.gguf"), testing::q4_k_m);
    testing::make_tiny_gguf(small_.path("others.gguf"), testing::all_other_types);
    for (size_t i = 0; i < lines_.size(); ++i) {
      references_.emplace(lines_[i].method_name(), i);
      for (const int ranks : lines_[i].ranks) {
        for (int stage = 0; stage < lines_[i].num_stages(); ++stage) {
          for (const bool recomputes : {false, true})
            cells_.push_back({i, stage, ranks, recomputes});
        }
      }
    }
  }

  void run() {
    std::map<int, std::vector<ListedRun>> by_ranks;
    for (const auto& [method, line] : references_)
      by_ranks[1].push_back({reference(line), overrides(lines_[line].method(), {})});
    for (const Cell& cell : cells_) {
      const Line& line = lines_[cell.line];
      Overrides more = {
          testing::zero_stage(cell.stage), "parallel.threads=" + std::to_string(line.threads),
          std::string("training.gradient_checkpointing=") + (cell.recomputes ? "true" : "false")};
      if (line.place == Place::kShared)
        more.push_back("parallel.share_base_per_host=true");
      if (line.place == Place::kNvme) {
        const Overrides nvme = testing::everything_on_nvme(small_);
        more.insert(more.end(), nvme.begin(), nvme.end());
      }
      by_ranks[cell.ranks].push_back({cell.name(), overrides(line.method(), more)});
    }
    for (const auto& [ranks, runs] : by_ranks)
      ASSERT_NO_FATAL_FAILURE(testing::run_list(small_, ranks, runs));
  }

  /// "same bits", or what had others.
  std::string verdict(size_t line, int stage) const {
    if (stage >= lines_[line].num_stages())
      return "refused";
    std::string differing;
    for (const Cell& cell : cells_) {
      if (cell.line != line || cell.stage != stage || has_the_bits_of_its_reference(cell))
        continue;
      differing += differing.empty() ? "" : ", ";
      differing += std::to_string(cell.ranks) + (cell.ranks == 1 ? " rank" : " ranks") +
                   (cell.recomputes ? " with recompute" : "");
    }
    return differing.empty() ? "same bits" : "OTHER BITS: " + differing;
  }

  /// Trainings with the same bits by chance or because nothing is trained would prove nothing.
  void expect_that_methods_differ() const {
    std::set<std::string> adapters;
    for (const auto& [method, line] : references_) {
      EXPECT_EQ(small_.losses(reference(line)).size(), static_cast<size_t>(kSteps)) << method;
      adapters.insert(small_.adapter_bytes(reference(line)));
    }
    EXPECT_EQ(adapters.size(), references_.size());
  }

  const std::vector<Line>& table() const { return lines_; }

 private:
  static constexpr int kSteps = 3;

  static std::string reference(size_t line) { return "reference" + std::to_string(line); }
  Overrides overrides(Overrides method, const Overrides& more) const {
    for (std::string& key : method) {
      if (const size_t at = key.find('@'); at != std::string::npos)
        key.replace(at, 1, small_.path("").string());
    }
    method.push_back("training.max_steps=" + std::to_string(kSteps));
    method.insert(method.end(), more.begin(), more.end());
    return method;
  }
  bool has_the_bits_of_its_reference(const Cell& cell) const {
    const std::string expected = reference(references_.at(lines_[cell.line].method_name()));
    return small_.losses(cell.name()) == small_.losses(expected) &&
           small_.adapter_bytes(cell.name()) == small_.adapter_bytes(expected);
  }

  SmallRun small_;
  std::vector<Line> lines_;
  std::vector<Cell> cells_;
  std::map<std::string, size_t> references_;  // by method: the first line that has it
};

/// What is asked for and not done: refused while the configuration is read, nothing loaded.
struct Refusal {
  std::string asked;
  Overrides overrides;
};

std::vector<Refusal> refusals() {
  const std::string zero = "parallel.zero_optimization.";
  return {
      {"share_base_per_host at stage 3",
       {"parallel.share_base_per_host=true", testing::zero_stage(3)}},
      {"share_base_per_host with the base on NVMe",
       {"parallel.share_base_per_host=true",
        zero + "offload_param={device: nvme, nvme_path: /var/tmp}"}},
      {"optimizer states in the CPU's memory", {zero + "offload_optimizer={device: cpu}"}},
      {"frozen base in the CPU's memory", {zero + "offload_param={device: cpu}"}},
      {"NVMe without a folder", {zero + "offload_param={device: nvme}"}},
      {"DeepSpeed's bucket sizes", {zero + "reduce_bucket_size=500000000"}},
      {"stage 4", {testing::zero_stage(4)}},
      {"CUDA", {"parallel.device=cuda"}},
      {"computing in float16", {"model.compute_dtype=float16"}},
      {"a method that is not there", {"adapter.method=hira"}},
      {"preference objectives", {"training.objective=dpo"}},
  };
}

/// The message that refuses it, "" when it was not refused.
std::string message_of(const SmallRun& small, const Refusal& refusal) {
  try {
    small.run(small.config("refused", refusal.overrides));
  } catch (const Error& error) {
    EXPECT_EQ(error.exit_code(), ExitCode::kUsage) << error.what();
    return error.what();
  }
  return "";
}

std::string joined(const std::vector<int>& numbers) {
  std::string text;
  for (const int number : numbers)
    text += (text.empty() ? "" : ", ") + std::to_string(number);
  return text;
}

/// A message in a cell: one line, and '|' would end it.
std::string in_a_cell(const std::string& text) {
  std::string result;
  for (const char c : text)
    result += c == '\n' ? "<br>" : c == '|' ? "\\|" : std::string(1, c);
  return result;
}

std::string page(const Matrix& matrix) {
  std::string text =
      "# Compatibility\n\n"
      "Written by tests/trainer/matrix_test.cpp from the trainings that it ran, and compared with "
      "them by every test run; `SHARDTUNE_WRITE_DOCS=1 build/release/tests/trainer/matrix_test` "
      "writes it anew.\n\n"
      "\"same bits\": the loss, gradient norm and learning rate of every step and every byte of "
      "the "
      "trained adapter equal those of one rank on one thread at stage 0 without offload and "
      "without recompute, in the same format. A cell is one training for each number of ranks of "
      "its line (processes under mpirun), each without and with `gradient_checkpointing`. "
      "\"nvme\" is `offload_optimizer` and `offload_param` both.\n\n"
      "| quantization | compute_dtype | adapter | offload | ranks | threads a rank | stage 0 | "
      "stage 1 | stage 2 | stage 3 |\n|---|---|---|---|---|---|---|---|---|---|\n";
  for (size_t i = 0; i < matrix.table().size(); ++i) {
    const Line& line = matrix.table()[i];
    text += "| " + line.base.name + " | " + line.compute.name + " | " + line.adapter.name + " | " +
            line.place_name() + " | " + joined(line.ranks) + " | " + std::to_string(line.threads) +
            " |";
    for (int stage = 0; stage < kStages; ++stage)
      text += " " + matrix.verdict(i, stage) + " |";
    text += "\n";
  }
  text +=
      "\n## Refused before anything is loaded\n\n"
      "| asked for | as | answer (exit code 64) |\n|---|---|---|\n";
  const SmallRun small;
  for (const Refusal& refusal : refusals()) {
    std::string keys;
    for (const std::string& key : refusal.overrides)
      keys += (keys.empty() ? "`" : "<br>`") + key + "`";
    text += "| " + refusal.asked + " | " + keys + " | " + in_a_cell(message_of(small, refusal)) +
            " |\n";
  }
  return text;
}

TEST(Matrix, DocsCompatibilityIsWhatRan) {
  if (!testing::has_mpirun())
    GTEST_SKIP() << "mpirun is not there";
  Matrix matrix;
  ASSERT_NO_FATAL_FAILURE(matrix.run());
  matrix.expect_that_methods_differ();
  for (size_t i = 0; i < matrix.table().size(); ++i) {
    for (int stage = 0; stage < matrix.table()[i].num_stages(); ++stage)
      EXPECT_EQ(matrix.verdict(i, stage), "same bits") << "line " << i << ", stage " << stage;
  }
  const fs::path file = fs::path(SHARDTUNE_SOURCE_DIR) / "docs" / "compatibility.md";
  if (std::getenv("SHARDTUNE_WRITE_DOCS") != nullptr)
    testing::write_text(file, page(matrix));
  EXPECT_EQ(read_text(file), page(matrix))
      << "docs/compatibility.md is out of date; write it anew with SHARDTUNE_WRITE_DOCS=1";
}

TEST(Matrix, WhatIsNotThereIsRefusedBeforeLoading) {
  const SmallRun small;
  for (const Refusal& refusal : refusals()) {
    EXPECT_NE(message_of(small, refusal), "") << refusal.asked;
    EXPECT_FALSE(fs::exists(small.path("refused"))) << refusal.asked;
  }
}

}  // namespace
}  // namespace shardtune::trainer
