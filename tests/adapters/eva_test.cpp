// EVA's ranks: those that PEFT gives on the same tokens, what a plan takes for them, and how they
// go through a checkpoint.
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <map>
#include <set>

#include "adapters/adapter.h"
#include "adapters/eva_ranks.h"
#include "core/dry_run.h"
#include "io/json.h"
#include "io/yaml_node.h"
#include "tests/io/temp_folder.h"
#include "tests/support/small_model.h"
#include "tests/tolerance.h"

namespace shardtune::adapters {
namespace {

using testing::golden_llama;
using testing::make_batch;
using testing::read_int32;
using testing::read_tensor;
using testing::SmallModel;

/// A model whose adapter is fitted to the sequences of the golden files.
class Fitted {
 public:
  Fitted(const std::string& base, const std::string& yaml) : seen_(base), small_(base) {
    const auto inputs = io::open_safetensors(golden_llama("lora_qv") + "/expected.safetensors");
    std::vector<std::vector<int32_t>> ids, labels;
    for (const char* i : {"0", "1"}) {
      ids.push_back(read_int32(*inputs, std::string("input_ids_") + i));
      labels.push_back(read_int32(*inputs, std::string("labels_") + i));
    }
    batch_ = make_batch(ids, labels);
    start_.sample = &batch_;
    start_.forward = [this](models::Hooks& hooks) {
      models::ForwardOptions options = seen_.forward_options(batch_);
      options.hooks = {&hooks};
      autograd::Tape tape(seen_.store, autograd::Recording::kOff);
      seen_.model->forward(tape, options);
    };
    io::ConfigErrors errors;
    options_ = adapter_options_from_yaml(io::YamlNode::parse(yaml, "run.yaml", errors));
    errors.throw_if_any();
  }

  void fit() { use(options_->fitted_to_data(*seen_.model, start_)); }
  void resume(const std::string& state) {
    use(options_->fitted_as(*small_.model, {{"lora.eva_ranks", state}}));
  }
  std::unique_ptr<Adapter> planned() { return options_->attach(*seen_.model); }

  Adapter& adapter() { return *adapter_; }
  const AdapterOptions& options() const { return *options_; }
  SmallModel& small() { return small_; }
  InitContext& start() { return start_; }

 private:
  void use(const std::unique_ptr<AdapterOptions>& fitted) {
    adapter_ = fitted->attach(*small_.model);
    small_.store.seal();
    adapter_->initialize(start_);
  }

  SmallModel seen_;  // goes away before the adapter's model comes, in a run
  SmallModel small_;
  TokenBatch batch_;
  InitContext start_{42};
  std::unique_ptr<AdapterOptions> options_;
  std::unique_ptr<Adapter> adapter_;
};

struct Case {
  const char* name;
  const char* base;
  const char* section;
};
void PrintTo(const Case& c, std::ostream* out) { *out << c.name; }

// As make_golden.py asks PEFT.
const Case kCases[] = {
    {"eva", "tied_gqa", "{init_lora_weights: eva, lora_rank: 2, lora_alpha: 6}"},
    {"eva_patterns", "tied_gqa",
     "{init_lora_weights: eva, lora_rank: 1, lora_alpha: 3, use_rslora: true, "
     "target_modules: [q_proj, o_proj, down_proj], rank_pattern: {layers.0.*o_proj: 3}, "
     "alpha_pattern: {down_proj: 5}, "
     "eva_config: {rho: 3, use_label_mask: false, whiten: true}}"},
    {"gpt2_eva", "families/gpt2",
     "{init_lora_weights: eva, lora_rank: 1, lora_alpha: 2, target_modules: [c_attn, c_fc, "
     "c_proj], "
     "eva_config: {rho: 3, adjust_scaling_factors: false}}"}};

class EvaGolden : public ::testing::TestWithParam<Case> {
 protected:
  std::string folder() const {
    return std::string(SHARDTUNE_SOURCE_DIR) + "/tests/golden/adapters/" + GetParam().name;
  }
};

std::map<std::string, double> numbers(const io::Json& config, const char* key) {
  std::map<std::string, double> values;
  for (const auto& [name, value] : config.find(key)->as_object())
    values[name] = value.as_number();
  return values;
}

TEST_P(EvaGolden, RanksAndScalesArePefts) {
  Fitted fitted(GetParam().base, GetParam().section);
  fitted.fit();
  const io::Json theirs = io::read_json_file(folder() + "/adapter_config.json");
  const io::Json ours = fitted.adapter().peft_config("base");
  for (const char* key : {"rank_pattern", "alpha_pattern"})
    EXPECT_EQ(numbers(ours, key), numbers(theirs, key)) << key;
  for (const char* key : {"r", "lora_alpha", "use_rslora", "fan_in_fan_out"})
    EXPECT_EQ(ours.find(key)->dump(), theirs.find(key)->dump()) << key;
  const auto file = io::open_safetensors(folder() + "/adapter_model.safetensors");
  std::set<std::string> names;
  for (const SavedTensor& tensor : fitted.adapter().saved_tensors()) {
    const io::TensorInfo* info = file->find(tensor.prefix + tensor.name);
    ASSERT_NE(info, nullptr) << tensor.name;
    EXPECT_EQ(Shape(info->shape), tensor.shape) << tensor.name;
    names.insert(tensor.name);
  }
  EXPECT_EQ(names.size(), file->tensors().size());
}

// Up to the sign, and with whitening up to the tokens that PEFT has seen again and again.
TEST_P(EvaGolden, DirectionsArePefts) {
  Fitted fitted(GetParam().base, GetParam().section);
  fitted.fit();
  const bool whitens = std::string(GetParam().section).find("whiten: true") != std::string::npos;
  const auto file = io::open_safetensors(folder() + "/adapter_model.safetensors");
  for (const AdapterTensor& tensor : fitted.adapter().tensors()) {
    if (!tensor.name.ends_with("lora_A.weight"))
      continue;
    const auto theirs = read_tensor(*file, tensor.prefix + tensor.name);
    const auto& store = fitted.small().store;
    const auto lease = fitted.small().store.acquire(store.spec(tensor.id).unit, Pass::kForward);
    const auto ours = store.value(tensor.id).span<const float>();
    const auto in = static_cast<size_t>(tensor.shape[1]);
    double first_factor = 0.0;
    for (size_t k = 0; k * in < ours.size(); ++k) {
      double inner = 0.0, norm = 0.0, their_norm = 0.0;
      for (size_t i = k * in; i < (k + 1) * in; ++i) {
        inner += static_cast<double>(ours[i]) * theirs[i];
        norm += static_cast<double>(ours[i]) * ours[i];
        their_norm += static_cast<double>(theirs[i]) * theirs[i];
      }
      EXPECT_NEAR(std::abs(inner) / std::sqrt(norm * their_norm), 1.0, 1e-3)
          << tensor.name << " " << k;
      const double factor = std::sqrt(norm / their_norm);
      if (k == 0)
        first_factor = factor;
      EXPECT_NEAR(factor, whitens ? first_factor : 1.0, 1e-3 * factor) << tensor.name << " " << k;
    }
  }
}

// The ranks of a plan need at least the memory of any that the data may give.
TEST_P(EvaGolden, APlanTakesRanksThatNeedTheMost) {
  Fitted fitted(GetParam().base, GetParam().section);
  fitted.fit();
  const auto elements = [](const Adapter& adapter) {
    int64_t sum = 0;
    for (const AdapterTensor& tensor : adapter.tensors())
      sum += tensor.shape.numel();
    return sum;
  };
  const auto planned = fitted.planned();
  EXPECT_GE(elements(*planned), elements(fitted.adapter()));
  EXPECT_THROW(planned->initialize(fitted.start()), ArgumentError);
}

TEST_P(EvaGolden, ACheckpointBringsTheRanksBack) {
  Fitted fitted(GetParam().base, GetParam().section);
  fitted.fit();
  const auto states = fitted.adapter().named_state();
  ASSERT_EQ(states.size(), 1u);
  Fitted resumed(GetParam().base, GetParam().section);
  resumed.resume(states[0].bytes);
  EXPECT_EQ(resumed.adapter().peft_config("base").dump(),
            fitted.adapter().peft_config("base").dump());
  EXPECT_EQ(resumed.adapter().tensors().size(), fitted.adapter().tensors().size());
}

INSTANTIATE_TEST_SUITE_P(Cases, EvaGolden, ::testing::ValuesIn(kCases),
                         [](const auto& info) { return std::string(info.param.name); });

TEST(EvaRanks, GoToTheLargestRatiosAndAmongEqualsToTheFirst) {
  EXPECT_EQ(share_ranks({{0.5, 0.1}, {0.3, 0.2}, {0.05, 0.01}}, 3),
            (std::vector<int64_t>{1, 2, 0}));
  EXPECT_EQ(share_ranks({{0.5, 0.2}, {0.5, 0.2}, {0.5, 0.2}}, 4), (std::vector<int64_t>{2, 1, 1}));
  EXPECT_EQ(share_ranks({{0.5}, {0.4}}, 9), (std::vector<int64_t>{1, 1}));
}

TEST(EvaRanks, OfAnotherCheckpointAreRefused) {
  const std::string section =
      "{init_lora_weights: eva, lora_rank: 2, target_modules: [q_proj], eva_config: {rho: 2}}";
  const auto message = [&](const std::string& state) {
    return io::message_of<Error>([&] { Fitted("tied_gqa", section).resume(state); });
  };
  const std::string q0 = "\"model.layers.0.self_attn.q_proj\"";
  const std::string q1 = "\"model.layers.1.self_attn.q_proj\"";
  EXPECT_NO_THROW(Fitted("tied_gqa", section).resume("{" + q0 + ": 0, " + q1 + ": 4}"));
  for (const std::string& state :
       {std::string("[]"), std::string("{"), "{" + q0 + ": 2}", "{" + q0 + ": 2, \"other\": 2}",
        "{" + q0 + ": 2, " + q1 + ": 2.5}", "{" + q0 + ": -1, " + q1 + ": 2}",
        "{" + q0 + ": 2, " + q1 + ": 1000000000000}"})
    EXPECT_NE(message(state).find("ranks of eva"), std::string::npos) << state << message(state);
  EXPECT_NE(io::message_of<Error>([&] {
              Fitted fitted("tied_gqa", section);
              fitted.options().fitted_as(*fitted.small().model, {});
            }).find("--resume never"),
            std::string::npos);
}

TEST(EvaConfig, RefusesWhatItCannotDo) {
  const auto message = [](const std::string& section) {
    return io::message_of<Error>([&] { Fitted("tied_gqa", section).fit(); });
  };
  const std::string eva = "{init_lora_weights: eva, eva_config: ";
  EXPECT_NE(message(eva + "{tau: 0.9}}").find("eva_config.tau: has no meaning"), std::string::npos);
  EXPECT_NE(message(eva + "{rho: 0.5}}").find("eva_config.rho"), std::string::npos);
  EXPECT_NE(message(eva + "{roh: 2}}").find("did you mean 'rho'"), std::string::npos);
  EXPECT_NE(message(eva + "{label_mask_value: 0}}").find("label_mask_value"), std::string::npos);
  EXPECT_NE(message("{eva_config: {rho: 2}}").find("belongs to init_lora_weights: eva"),
            std::string::npos);
  EXPECT_NE(message("{init_lora_weights: eva, lora_rank: 12, target_modules: [q_proj]}")
                .find("use_label_mask: false"),
            std::string::npos);
}

// A plan tells it too, before anything is loaded.
TEST(EvaConfig, ADryRunFindsNothingAndChecksTheSample) {
  const DryRun dry_run;
  Fitted fitted("tied_gqa", "{init_lora_weights: eva, lora_rank: 2}");
  EXPECT_EQ(fitted.options().fitted_to_data(*fitted.small().model, fitted.start()), nullptr);
}

}  // namespace
}  // namespace shardtune::adapters
