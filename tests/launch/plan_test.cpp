// plan against what runs really allocate: a process of its own for each, since a pool's peak is the
// process's. One thread, so that no two tasks' scratch overlaps by chance.
#include <gtest/gtest.h>

#include "core/topology.h"
#include "io/json.h"
#include "tests/launch/program.h"

namespace shardtune::launch {
namespace {

namespace fs = std::filesystem;
using testing::Outcome;
using testing::ProgramFolder;
using testing::write_text;

int64_t integer_of(const io::Json& json, const char* key) {
  const io::Json* value = json.find(key);
  return value != nullptr && value->is_integer() ? value->as_integer() : -1;
}

class Plan : public ::testing::Test {
 protected:
  /// Trains two steps and compares the buffers counted with those predicted, to the byte.
  void expect_exact(const std::string& options, int ranks = 1) const {
    const Outcome outcome = folder_.shell(
        "SHARDTUNE_BINARY=$st " + std::string(SHARDTUNE_SOURCE_DIR) + "/launch/run -n " +
        std::to_string(ranks) +
        " train run.yaml --json --resume never --set training.max_steps=2 " + options);
    ASSERT_EQ(outcome.code, 0) << options << "\n" << outcome.err;
    const io::Json json = io::parse_json(outcome.out, "train --json");
    EXPECT_EQ(integer_of(json, "pool_peak_bytes"), integer_of(json, "predicted_pool_bytes"))
        << options;
    const io::Json& moved = *json.find("step_traffic");
    const io::Json& predicted = *json.find("predicted_step_traffic");
    for (const char* key :
         {"units_sent_bytes", "units_received_bytes", "gradients_sent_bytes",
          "gradients_received_bytes", "weights_sent_bytes", "weights_received_bytes",
          "units_read_bytes", "rows_read_bytes", "states_read_bytes", "states_written_bytes"})
      EXPECT_EQ(integer_of(moved, key), integer_of(predicted, key)) << options << " " << key;
  }
  ProgramFolder folder_;
};

TEST_F(Plan, CountsEveryFormatAndDtypeToTheByte) {
  for (const char* dtype : {"float32", "bfloat16", "int8"}) {
    for (const char* method : {"none", "keep", "nf4", "fp4", "int8"}) {
      for (const char* recompute : {"false", "true"}) {
        expect_exact(std::string("--set model.compute_dtype=") + dtype +
                     " --set quantization.method=" + method +
                     " --set training.gradient_checkpointing=" + recompute);
      }
    }
  }
}

TEST_F(Plan, CountsLengthsBatchesAndAccumulationToTheByte) {
  expect_exact(
      "--set data.max_length=64 --set data.packing=false --set training.micro_batch_size=2"
      " --set training.global_batch_size=10");
  expect_exact("--set data.max_length=400 --set training.global_batch_size=1");
  expect_exact("--set quantization.double_quant=false --set adapter.lora_dropout=0.1");
  expect_exact("--set training.global_batch_size=1 --set 'data.eval=[{path: eval.jsonl}]'");
}

TEST_F(Plan, CountsLayersThatOutweighTheRest) {
  testing::make_tiny_model(folder_.path("model"), {192, 512, 5, 6, 2, 20000});
  expect_exact("");
  expect_exact("--set training.gradient_checkpointing=true --set model.compute_dtype=bfloat16");
  expect_exact("--set model.compute_dtype=int8");
}

TEST_F(Plan, CountsStagesOnTwoRanksToTheByte) {
  if (folder_.shell("command -v mpirun").code != 0)
    GTEST_SKIP() << "mpirun is not there";
  for (const char* stage : {"0", "1", "2", "3"})
    expect_exact(std::string("--set training.global_batch_size=5 "
                             "--set parallel.zero_optimization.stage=") +
                     stage,
                 2);
  expect_exact("--set training.global_batch_size=5 --set parallel.share_base_per_host=true", 2);
}

TEST_F(Plan, CountsABaseThatRanksShareOnce) {
  const auto planned = [&](const std::string& options) {
    const Outcome outcome = folder_.run("plan run.yaml --json --ranks 3 " + options);
    EXPECT_EQ(outcome.code, 0) << outcome.err;
    return io::parse_json(outcome.out, "plan --json");
  };
  const io::Json own = planned("");
  const io::Json shared = planned("--set parallel.share_base_per_host=true");
  EXPECT_EQ(integer_of(own, "shared_bytes"), 0);
  int64_t base = 0;
  for (const io::Json& row : shared.find("memory")->as_array()) {
    if (row.find("name")->as_string().rfind("base: ", 0) == 0)
      base += integer_of(row, "bytes");
  }
  EXPECT_GT(base, 0);
  EXPECT_EQ(integer_of(shared, "shared_bytes"), base);
  EXPECT_EQ(integer_of(shared, "host_bytes"), integer_of(shared, "peak_bytes") +
                                                  2 * integer_of(shared, "other_rank_peak_bytes") -
                                                  2 * base);
  // What a rank has mapped is the same; the pool holds no base any more.
  EXPECT_LT(integer_of(shared, "pool_bytes"), integer_of(own, "pool_bytes"));
  const Outcome text =
      folder_.run("plan run.yaml --ranks 3 --set parallel.share_base_per_host=true");
  EXPECT_NE(text.out.find("with one base per host"), std::string::npos) << text.out;
  EXPECT_NE(text.out.find("counted once"), std::string::npos) << text.out;
}

TEST_F(Plan, CountsOffloadToTheByte) {
  const std::string states =
      " --set 'parallel.zero_optimization.offload_optimizer={device: nvme, nvme_path: .}'";
  const std::string base =
      " --set 'parallel.zero_optimization.offload_param={device: nvme, nvme_path: .}'";
  expect_exact(states + base);
  expect_exact(base + " --set training.gradient_checkpointing=true");
  if (folder_.shell("command -v mpirun").code != 0)
    GTEST_SKIP() << "mpirun is not there";
  for (const char* stage : {"2", "3"})
    expect_exact(states + base + " --set training.global_batch_size=5 --set " +
                     "parallel.zero_optimization.stage=" + stage,
                 2);
}

TEST_F(Plan, CountsTheStatesOfEachOptimizerToTheByte) {
  const auto states_of = [&](const std::string& options) {
    const Outcome plan = folder_.run("plan run.yaml --json " + options);
    EXPECT_EQ(plan.code, 0) << plan.err;
    const io::Json document = io::parse_json(plan.out, "plan --json");
    for (const io::Json& row : document.find("memory")->as_array()) {
      if (row.find("name")->as_string() == "optimizer states")
        return integer_of(row, "bytes");
    }
    return int64_t{0};
  };
  const auto held_by = [&](const std::string& options) {
    const Outcome train =
        folder_.run("train run.yaml --json --resume never --set training.max_steps=1 " + options);
    EXPECT_EQ(train.code, 0) << train.err;
    return io::parse_json(train.out, "train --json")
        .find("rank_held_bytes")
        ->as_array()[0]
        .as_integer();
  };
  const std::string plain = "--set optimizer.name=sgd";
  const std::string momentum = plain + " --set optimizer.momentum=0.9";
  const int64_t without_states = held_by(plain);
  EXPECT_EQ(states_of(plain), 0);
  EXPECT_GT(states_of(momentum), 0);
  for (const std::string& options : {momentum, std::string("--set optimizer.name=adamw")})
    EXPECT_EQ(states_of(options), held_by(options) - without_states) << options;
  expect_exact(momentum +
               " --set 'parallel.zero_optimization.offload_optimizer={device: nvme, "
               "nvme_path: .}'");
}

TEST_F(Plan, TellsTheSwapFilesOfRankAndMachine) {
  const Outcome outcome = folder_.run(
      "plan run.yaml --ranks 2 --set parallel.zero_optimization.stage=2"
      " --set 'parallel.zero_optimization.offload_param={device: nvme, nvme_path: .}'");
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_NE(outcome.out.find("disk, offload_param swap file: "), std::string::npos) << outcome.out;
  EXPECT_NE(outcome.out.find(" on this machine; "), std::string::npos) << outcome.out;
}

TEST_F(Plan, SaysThatARunFitsAndReadsNoWeights) {
  // Weights that nobody can read as numbers: a plan must not look at them.
  const std::string model = folder_.path("model/model.safetensors").string();
  ASSERT_EQ(folder_
                .shell("size=$(stat -c %s " + model + ") && truncate -s -100000 " + model +
                       " && head -c 100000 /dev/zero | tr '\\0' '\\377' >> " + model)
                .code,
            0);
  const Outcome text = folder_.run("plan run.yaml --ranks 2");
  ASSERT_EQ(text.code, 0) << text.err;
  EXPECT_NE(text.out.find(": fits\n"), std::string::npos) << text.out;
  EXPECT_NE(text.out.find("cheapest that fits: ZeRO stage "), std::string::npos) << text.out;
  const Outcome json = folder_.run("plan run.yaml --json");
  ASSERT_EQ(json.code, 0) << json.err;
  const io::Json document = io::parse_json(json.out, "plan --json");
  ASSERT_NE(document.find("fits"), nullptr);
  EXPECT_TRUE(document.find("fits")->as_bool());
  EXPECT_FALSE(fs::exists(folder_.path("run")));
}

TEST_F(Plan, RefusesWhatOtherVerbsRefuse) {
  EXPECT_EQ(folder_.run("plan run.yaml --ranks 0").code, 64);
  EXPECT_EQ(folder_.run("plan").code, 64);
  const Outcome device = folder_.run("plan run.yaml --set parallel.device=cuda");
  EXPECT_EQ(device.code, 64);
  EXPECT_NE(device.err.find("docs/status.md"), std::string::npos) << device.err;
  EXPECT_EQ(folder_.run("plan absent.yaml").code, 66);
}

TEST_F(Plan, ADryRunOfTrainShowsTheTable) {
  const Outcome outcome = folder_.run("train run.yaml --dry-run");
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_NE(outcome.err.find("memory of a rank"), std::string::npos) << outcome.err;
  EXPECT_FALSE(fs::exists(folder_.path("run")));
}

TEST_F(Plan, TrainComparesPredictionAndMeasurementAtItsEnd) {
  const Outcome outcome = folder_.run("train run.yaml");
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  EXPECT_NE(outcome.err.find("memory of rank 0: predicted "), std::string::npos) << outcome.err;
  EXPECT_NE(outcome.err.find("measured peak "), std::string::npos) << outcome.err;
}

// A large program (a notebook) starts the run: its memory is not the run's, though the kernel hands
// its peak on.
TEST_F(Plan, MeasuresItsOwnPeakWhoeverStartsIt) {
  constexpr size_t kBytes = size_t{1} << 30;
  const std::vector<char> ballast(kBytes, 1);
  const Outcome outcome = folder_.shell("exec $st train run.yaml");
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  const std::string mark = "measured peak ";
  const size_t at = outcome.err.find(mark);
  ASSERT_NE(at, std::string::npos) << outcome.err;
  EXPECT_LT(std::stod(outcome.err.substr(at + mark.size())), 512.0) << outcome.err;
  EXPECT_EQ(ballast.back(), 1);
}

/// A model of some billion weights of which only the header is written: the file has holes.
void make_hollow_model(const fs::path& folder) {
  constexpr int64_t kHidden = 4096, kInner = 16384, kLayers = 8, kVocab = 260;
  write_text(folder / "config.json",
             R"({"model_type": "llama", "hidden_act": "silu", "hidden_size": 4096,
"intermediate_size": 16384, "num_hidden_layers": 8, "num_attention_heads": 32,
"num_key_value_heads": 32, "vocab_size": 260, "max_position_embeddings": 512,
"rms_norm_eps": 1e-5, "tie_word_embeddings": true, "eos_token_id": 258})");
  int64_t offset = 0;
  io::Json header = io::Json::object();
  const auto add = [&](const std::string& name, std::vector<int64_t> shape) {
    int64_t bytes = 2;
    io::Json extents = io::Json::array();
    for (const int64_t extent : shape) {
      bytes *= extent;
      extents.push_back(extent);
    }
    io::Json tensor = io::Json::object();
    tensor.set("dtype", "BF16");
    tensor.set("shape", std::move(extents));
    tensor.set("data_offsets", io::Json(io::Json::Array{offset, offset + bytes}));
    header.set(name, std::move(tensor));
    offset += bytes;
  };
  add("model.embed_tokens.weight", {kVocab, kHidden});
  add("model.norm.weight", {kHidden});
  for (int64_t i = 0; i < kLayers; ++i) {
    const std::string layer = "model.layers." + std::to_string(i) + ".";
    for (const char* name : {"q_proj", "k_proj", "v_proj", "o_proj"})
      add(layer + "self_attn." + name + ".weight", {kHidden, kHidden});
    add(layer + "mlp.gate_proj.weight", {kInner, kHidden});
    add(layer + "mlp.up_proj.weight", {kInner, kHidden});
    add(layer + "mlp.down_proj.weight", {kHidden, kInner});
    for (const char* name : {"input_layernorm", "post_attention_layernorm"})
      add(layer + name + ".weight", {kHidden});
  }
  std::string text = header.dump();
  text.append((8 - text.size() % 8) % 8, ' ');
  const auto length = static_cast<uint64_t>(text.size());
  write_text(folder / "model.safetensors",
             std::string(reinterpret_cast<const char*>(&length), sizeof length) + text);
  fs::resize_file(folder / "model.safetensors", 8 + length + static_cast<uint64_t>(offset));
}

/// The text after each "  --set ", up to the parenthesis.
std::vector<std::string> suggested_options(const std::string& message) {
  std::vector<std::string> options;
  std::istringstream lines(message);
  for (std::string line; std::getline(lines, line);) {
    if (line.starts_with("  --set "))
      options.push_back(line.substr(2, line.find("   (") - 2));
  }
  return options;
}

TEST_F(Plan, ARunThatDoesNotFitEndsBeforeLoadingWithThreeThatDo) {
  // 200,000 tokens in one micro-batch: half a terabyte of activations.
  if (usable_memory_bytes() > int64_t{400} << 30 || usable_memory_bytes() < int64_t{6} << 30)
    GTEST_SKIP() << "meant for machines of 6 to 400 GiB";
  make_hollow_model(folder_.path("model"));
  write_text(folder_.path("long.txt"), std::string(200000, 'a'));
  const std::string options =
      " --set 'data.train=[{path: long.txt, format: text}]' --set data.chat_template=none"
      " --set training.objective=pretrain --set training.micro_batch_size=400"
      " --set data.max_length=512 --set training.global_batch_size=400";
  const Outcome train = folder_.run("train run.yaml" + options);
  EXPECT_EQ(train.code, 77) << train.err;
  EXPECT_NE(train.err.find("predicted not to fit"), std::string::npos) << train.err;
  EXPECT_NE(train.err.find("memory of a rank"), std::string::npos) << train.err;
  const auto suggestions = suggested_options(train.err);
  EXPECT_EQ(suggestions.size(), 3u) << train.err;
  for (const std::string& suggestion : suggestions) {
    const Outcome plan = folder_.run("plan run.yaml" + options + " " + suggestion);
    EXPECT_NE(plan.out.find(": fits\n"), std::string::npos) << suggestion << "\n" << plan.out;
  }
  const Outcome plan = folder_.run("plan run.yaml --json" + options);
  EXPECT_EQ(plan.code, 0) << plan.err;
  EXPECT_FALSE(io::parse_json(plan.out, "plan --json").find("fits")->as_bool());
  EXPECT_FALSE(fs::exists(folder_.path("run")));
}

}  // namespace
}  // namespace shardtune::launch
