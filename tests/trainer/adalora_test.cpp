// AdaLoRA in training: losses, importance and the triplets kept over ten steps as PEFT has them, on
// any ranks and stages; and whole runs: offload, resume at every boundary of the schedule, the
// regulariser once per step, and the folder that is saved.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "adapters/adapter.h"
#include "io/file.h"
#include "io/safetensors.h"
#include "objectives/sft.h"
#include "optim/adamw.h"
#include "tests/support/small_model.h"
#include "tests/tolerance.h"
#include "tests/trainer/small_run.h"
#include "trainer/optimizer_states.h"
#include "trainer/step_hooks.h"

namespace shardtune::trainer {
namespace {

using parallel::ShardedParameterStore;
using testing::golden;
using testing::largest;
using testing::make_batch;
using testing::read_int32;
using testing::read_tensor;
using testing::SmallRun;

constexpr int64_t kSteps = 10;
constexpr int64_t kImportanceStep = 5;  // after which importance is compared
constexpr double kLearningRate = 1e-2;

TokenBatch golden_batch() {
  const auto inputs = io::open_safetensors(golden("lora_qv") + "/expected.safetensors");
  std::vector<std::vector<int32_t>> ids, labels;
  for (const char* i : {"0", "1"}) {
    ids.push_back(read_int32(*inputs, std::string("input_ids_") + i));
    labels.push_back(read_int32(*inputs, std::string("labels_") + i));
  }
  return make_batch(ids, labels);
}

/// What a run has after each step, or after kImportanceStep.
struct Record {
  std::vector<double> losses;
  std::vector<std::string> kept;            // "" before the first allocation
  std::vector<std::vector<float>> entries;  // of E, all linears in order
  std::vector<NamedTensor> states;
  bool operator==(const Record& other) const {
    return losses == other.losses && kept == other.kept && entries == other.entries;
  }
};

/// One rank of the golden training, from the golden start.
class GoldenTraining {
 public:
  GoldenTraining(parallel::Communicator& comm, parallel::ZeroStage stage)
      : comm_(comm), store_(comm, stage), optimizer_(optim::AdamWOptions()) {
    const std::string folder = golden("adapters/adalora_schedule");
    file_ = io::open_safetensors(folder + "/schedule.safetensors");
    source_ = models::open_model_source(golden("tied_gqa"));
    model_ = models::load_model(*source_, store_, {});
    io::ConfigErrors errors;
    const std::string path = folder + "/run.yaml";
    const auto options = adapters::adapter_options_from_yaml(
        io::YamlNode::parse(io::read_text_file(path, 1 << 16), path, errors));
    adapter_ = options->attach(*model_);
    store_.seal();
    for (const adapters::AdapterTensor& tensor : adapter_->tensors()) {
      std::vector<float> values;
      if (store_.is_publisher(tensor.id))
        values = read_tensor(*file_, "start." + tensor.name);
      store_.publish(tensor.id, std::as_bytes(std::span(values)));
    }
    std::vector<std::string> names = optimizer_.state_names();
    for (const std::string& name : options->element_states())
      names.push_back(name);
    states_ = std::make_unique<OptimizerStates>(store_, optimizer_, names);
    states_->set_hooks(*adapter_);
  }

  Record run() {
    Record record;
    for (int64_t step = 0; step < kSteps; ++step) {
      run_step(step, record);
      if (step == kImportanceStep)
        record.states = states_->gather(comm_);
      record.kept.push_back(adapter_->named_state().at(0).bytes);
      std::vector<float>& entries = record.entries.emplace_back();
      for (const adapters::AdapterTensor& tensor : adapter_->tensors()) {
        std::vector<float> values(comm_.rank() == 0 ? tensor.shape.numel() : 0);
        store_.read(tensor.id, values);
        if (tensor.name.ends_with(".lora_E"))
          entries.insert(entries.end(), values.begin(), values.end());
      }
    }
    return record;
  }

  const io::TensorSource& file() const { return *file_; }

 private:
  void run_step(int64_t step, Record& record) {
    store_.begin_step(1);
    const auto objective = objectives::make_next_token();
    store_.begin_walk(objective->train_walk(*model_));
    if (store_.micro_batch_of_round(0) == 0) {
      store_.begin_micro_batch(0);
      models::ForwardOptions options;
      options.context.batch = &batch_;
      options.context.mode = models::Mode::kTraining;
      options.hooks = {adapter_.get()};
      options.gradient_checkpointing = step % 2 == 1;
      std::vector<double> extra;
      options.extra_losses = &extra;
      const auto result =
          objective->train(*model_, options, 1.0f / static_cast<float>(batch_.num_trained_tokens));
      record.losses.push_back(result.loss_sum / static_cast<double>(result.num_trained_tokens) +
                              result.extra_loss);
    }
    store_.end_walk();
    store_.end_round();
    store_.finish_gradients();
    states_->step(kLearningRate, 0.0, step + 1);
    run_step_hooks(store_, comm_, *adapter_, step);
    store_.publish_updates();
  }

  parallel::Communicator& comm_;
  ShardedParameterStore store_;
  optim::AdamW optimizer_;
  TokenBatch batch_ = golden_batch();
  std::unique_ptr<io::TensorSource> file_;
  std::unique_ptr<models::ModelSource> source_;
  std::unique_ptr<models::Model> model_;
  std::unique_ptr<adapters::Adapter> adapter_;
  std::unique_ptr<OptimizerStates> states_;
};

Record train_golden(int ranks, int stage) {
  Record record;
  parallel::run_on_threads(ranks, [&](parallel::Communicator& comm) {
    const Record own = GoldenTraining(comm, parallel::zero_stage_from(stage)).run();
    if (comm.rank() == 0)
      record = own;
  });
  return record;
}

TEST(AdaLoraTraining, KeepsTheTripletsThatPeftKeeps) {
  const auto file =
      io::open_safetensors(golden("adapters/adalora_schedule") + "/schedule.safetensors");
  const Record record = train_golden(1, 0);
  const auto losses = read_tensor(*file, "losses");
  for (int64_t step = 0; step < kSteps; ++step) {
    const auto s = static_cast<size_t>(step);
    // An update has the size of the learning rate whatever the gradient's: rounding grows by step.
    const double bound = tolerance::network(64, 60) * static_cast<double>(step + 1);
    EXPECT_NEAR(record.losses[s], losses[s], bound * losses[s]) << step;
    const auto kept = read_tensor(*file, "kept." + std::to_string(step));
    std::string marks;
    for (const float mark : kept)
      marks += mark != 0.0f ? '1' : '0';
    EXPECT_EQ(record.kept[s], marks) << step;
    const auto zeros = read_tensor(*file, "zeros." + std::to_string(step));
    for (size_t i = 0; i < zeros.size(); ++i)
      EXPECT_EQ(record.entries[s][i] == 0.0f, zeros[i] != 0.0f) << step << " " << i;
  }
  int compared = 0;
  for (const NamedTensor& state : record.states) {
    const size_t dot = state.name.rfind('.');
    const std::string key = state.name.substr(dot + 1) + "." + state.name.substr(0, dot);
    if (file->find(key) == nullptr)
      continue;
    const auto want = read_tensor(*file, key);
    for (size_t i = 0; i < want.size(); ++i)
      ASSERT_NEAR(state.values[i], want[i], 1e-3 * largest(want)) << key;
    ++compared;
  }
  EXPECT_EQ(compared, 6 * 3 * 2);
}

TEST(AdaLoraTraining, KeepsThemOnAnyRanksAndStages) {
  const Record reference = train_golden(1, 0);
  for (const auto& [ranks, stage] :
       std::vector<std::pair<int, int>>{{2, 0}, {2, 1}, {3, 2}, {4, 3}, {8, 2}, {8, 3}})
    EXPECT_TRUE(train_golden(ranks, stage) == reference) << ranks << " ranks, stage " << stage;
}

class AdaLoraRuns : public ::testing::Test {
 protected:
  /// Ranks fall from 4 to 2 between steps 1 and 6 of 8.
  std::vector<std::string> options(const std::vector<std::string>& more = {}) const {
    std::vector<std::string> all = {
        "adapter={method: adalora, init_r: 4, target_r: 2, tinit: 1, tfinal: 2, deltaT: 2, "
        "lora_dropout: 0.1, target_modules: [q_proj, v_proj, down_proj]}",
        "training.max_steps=8", "checkpoint.save_steps=0"};
    all.insert(all.end(), more.begin(), more.end());
    return all;
  }
  void expect_the_same(const std::string& output, const std::string& reference) const {
    EXPECT_EQ(small_.losses(output), small_.losses(reference)) << output;
    EXPECT_TRUE(small_.adapter_bytes(output) == small_.adapter_bytes(reference)) << output;
    EXPECT_EQ(config_text(output), config_text(reference)) << output;
  }
  std::string config_text(const std::string& output) const {
    return testing::read_text(small_.path(output) / "adapter" / "adapter_config.json");
  }
  double first_extra_loss(const std::string& output) const {
    std::istringstream lines(testing::read_text(small_.path(output) / "metrics.jsonl"));
    std::string line;
    std::getline(lines, line);
    return io::parse_json(line, "metrics.jsonl").find("extra_loss")->as_number();
  }

  SmallRun small_;
};

TEST_F(AdaLoraRuns, HaveTheSameBitsOffloadedPackedAndOnAnyRanks) {
  const std::string nvme = "{device: nvme, nvme_path: \"" + small_.path("model").string() + "\"}";
  small_.run(small_.config("reference", options()));
  const auto run = [&](const std::string& output, int ranks, const std::string& more) {
    small_.run(small_.config(output, options({more})), ranks);
    expect_the_same(output, "reference");
  };
  run("nvme1", 1, "parallel.zero_optimization={stage: 0, offload_optimizer: " + nvme + "}");
  run("nvme2", 2, "parallel.zero_optimization={stage: 2, offload_optimizer: " + nvme + "}");
  run("nvme3", 3,
      "parallel.zero_optimization={stage: 3, offload_optimizer: " + nvme +
          ", offload_param: " + nvme + "}");
  run("stage1", 4, "parallel.zero_optimization={stage: 1}");
  run("stage3", 8, "parallel.zero_optimization={stage: 3}");
  run("recompute", 2, "training.gradient_checkpointing=true");
  small_.run(small_.config("packed", options({"data.packing=true"})));
  small_.run(small_.config("packed3",
                           options({"data.packing=true", "parallel.zero_optimization={stage: 3}"})),
             3);
  expect_the_same("packed3", "packed");
}

TEST_F(AdaLoraRuns, GoOnAfterAStopInEveryPhase) {
  small_.run(small_.config("whole", options()));
  for (const int stop : {1, 3, 5, 6, 7}) {
    const std::string output = "resumed" + std::to_string(stop);
    const int first = stop % 2 + 1, second = stop % 3 + 1;
    small_.run(small_.config(output, options({"training.stop_at_step=" + std::to_string(stop),
                                              "parallel.zero_optimization={stage: 2}"})),
               first);
    small_.run(small_.config(output, options({"parallel.zero_optimization={stage: " +
                                              std::to_string(stop % 4) + "}"})),
               second);
    expect_the_same(output, "whole");
  }
}

TEST_F(AdaLoraRuns, CountTheRegulariserOncePerStep) {
  for (const int size : {1, 3, 9}) {
    const std::string output = "size" + std::to_string(size);
    small_.run(small_.config(output, options({"training.micro_batch_size=" + std::to_string(size),
                                              "training.stop_at_step=1"})),
               size == 1 ? 3 : 1);
    EXPECT_GT(first_extra_loss(output), 0.1);
    EXPECT_EQ(first_extra_loss(output), first_extra_loss("size1")) << output;
  }
}

TEST_F(AdaLoraRuns, SaveTheTripletsThatAreLeftAndGoOnFromThem) {
  small_.run(small_.config("first", options()));
  const io::Json config = io::parse_json(config_text("first"), "adapter_config.json");
  const auto file =
      io::open_safetensors(small_.path("first/adapter/adapter_model.safetensors").string());
  int64_t kept = 0, entries = 0;
  for (const auto& [name, marks] : config.find("rank_pattern")->as_object()) {
    int64_t own = 0;
    for (const io::Json& mark : marks.as_array())
      own += mark.as_bool() ? 1 : 0;
    const io::TensorInfo* e = file->find("base_model.model." + name);
    ASSERT_NE(e, nullptr) << name;
    EXPECT_EQ(e->shape, (std::vector<int64_t>{own, 1})) << name;
    kept += own;
    ++entries;
  }
  EXPECT_EQ(entries, 2 * 3);
  EXPECT_EQ(kept, 2 * entries);
  EXPECT_EQ(config.find("total_step")->as_integer(), 8);

  const std::vector<std::string> onward = {
      "adapter={adapter_name_or_path: \"" + small_.path("first/adapter").string() + "\"}",
      "training.learning_rate=1e-30", "training.max_steps=2", "parallel.zero_optimization.stage=3"};
  small_.run(small_.config("second", onward), 2);
  EXPECT_TRUE(small_.adapter_bytes("second") == small_.adapter_bytes("first"));
  EXPECT_EQ(config_text("second"), config_text("first"));
}

TEST_F(AdaLoraRuns, AreRefusedBeforeLoadingWhereNoRankCouldFall) {
  std::string message;
  try {
    small_.run(small_.config("refused", options({"training.max_steps=3"})));
  } catch (const ConfigError& error) {
    message = error.what();
  }
  EXPECT_NE(message.find("expected less than 3 (steps of this run) together"), std::string::npos)
      << message;
}

}  // namespace
}  // namespace shardtune::trainer
