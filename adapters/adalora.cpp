// AdaLoRA: y = W x + scale * B (E .* (A dropout(x))), scale = lora_alpha / (init_r + 1e-5): LoRA in
// the form of a singular value decomposition, whose entries of E are taken away during training
// (rank_allocator.h), while A and B are held near orthogonal by a loss of their own
// (orthogonality.h): orth_reg_weight times the mean over all A and B. A, B ~ N(0, 0.02^2), E starts
// at 0. A saved folder holds the kept triplets alone and says in rank_pattern which of init_r they
// were; an adapter read from one keeps its ranks. Source  Zhang et al. 2023, AdaLoRA,
// arXiv:2303.10512
#include <algorithm>
#include <cmath>
#include <memory>

#include "adapters/linear_adapter.h"
#include "adapters/lora_options.h"
#include "adapters/methods.h"
#include "adapters/orthogonality.h"
#include "adapters/rank_allocator.h"
#include "autograd/ops.h"

namespace shardtune::adapters {

namespace {

using autograd::Tape;
using autograd::Variable;
using models::BaseLinear;

constexpr const char* kPatternSuffix = ".lora_E";

struct AdaLoraOptions {
  RankSchedule schedule;
  double lora_alpha = 24.0;
  double lora_dropout = 0.0;
  double orth_reg_weight = 0.5;
  TargetModules targets;
  Masks rank_pattern;  // of a saved adapter
  bool is_new = true;  // read from a run's section, not from a saved adapter

  std::vector<std::pair<std::string, std::string>> keys() const;
  /// A saved adapter keeps its ranks: it has no importance.
  std::vector<std::string> element_states() const {
    return is_new ? RankAllocator::element_states() : std::vector<std::string>();
  }
  void check_total_steps(int64_t total_steps) const;
};

std::vector<std::pair<std::string, std::string>> AdaLoraOptions::keys() const {
  auto keys = target_keys(targets);
  const auto number = [](double value) { return number_json(value).dump(); };
  keys.insert(keys.end(), {{"beta1", number(schedule.beta1)},
                           {"beta2", number(schedule.beta2)},
                           {"deltaT", std::to_string(schedule.deltaT)},
                           {"init_r", std::to_string(schedule.init_r)},
                           {"lora_alpha", number(lora_alpha)},
                           {"lora_dropout", number(lora_dropout)},
                           {"orth_reg_weight", number(orth_reg_weight)},
                           {"target_r", std::to_string(schedule.target_r)},
                           {"tfinal", std::to_string(schedule.tfinal)},
                           {"tinit", std::to_string(schedule.tinit)}});
  if (schedule.total_step > 0)
    keys.emplace_back("total_step", std::to_string(schedule.total_step));
  return keys;
}

void AdaLoraOptions::check_total_steps(int64_t total_steps) const {
  if (!is_new)
    return;
  const int64_t own = schedule.total_step;
  if (own > total_steps)
    throw ConfigError("adapter.total_step: expected at most the " + std::to_string(total_steps) +
                      " steps of this run, found " + std::to_string(own) +
                      ": it would end before the ranks have fallen to target_r. Leave it out.");
  const int64_t total = own > 0 ? own : total_steps;
  if (schedule.tinit + schedule.tfinal >= total)
    throw ConfigError("adapter.tinit, adapter.tfinal: expected less than " + std::to_string(total) +
                      (own > 0 ? " (total_step)" : " (steps of this run)") + " together, found " +
                      std::to_string(schedule.tinit) + " and " + std::to_string(schedule.tfinal) +
                      ": no step is left in which ranks fall. Make them smaller.");
}

class AdaLora : public LinearAdapter {
 public:
  static constexpr std::string_view kName = "adalora";

  AdaLora(const AdaLoraOptions& options, models::Model& model);

  std::string_view method() const override { return kName; }
  void set_total_steps(int64_t total_steps) override {
    if (allocator_.schedule().total_step == 0)
      allocator_.set_total_step(total_steps);
  }
  Variable on_linear(Tape& tape, const BaseLinear& linear, const Variable& x,
                     const models::PassContext& context, const Next& next) override;
  Variable extra_loss(Tape& tape, const models::PassContext& context) override;
  void on_update(int64_t step, const models::UpdatedRange& piece) override {
    allocator_.on_update(step, piece);
  }
  void after_optimizer_step(int64_t step, std::span<const models::UpdatedRange> ranges,
                            const models::GatherChunks& gather) override {
    if (options_.is_new)
      allocator_.after_optimizer_step(step, ranges, gather);
  }
  std::vector<models::NamedState> named_state() const override {
    if (!options_.is_new)
      return {};
    return {{kStateName, allocator_.state()}};
  }
  void load_named_state(const std::vector<models::NamedState>& state) override {
    for (const models::NamedState& named : state) {
      if (named.name == kStateName)
        allocator_.load_state(named.bytes);
    }
  }
  void merge_rows(const BaseLinear& linear, int64_t begin, int64_t end,
                  const TensorView& rows) const override;
  std::vector<SavedTensor> saved_tensors() const override;
  io::Json peft_config(const std::string& base_model) const override;

 private:
  using Allocator = RankAllocator;
  static constexpr const char* kStateName = "adalora.rank_pattern";

  void attach(const BaseLinear& linear);
  void declare_triplets(const BaseLinear& linear, int64_t rank);
  float scale() const {
    const auto rank = static_cast<double>(options_.schedule.init_r);
    return static_cast<float>(options_.lora_alpha / (rank + 1e-5));
  }
  Masks pattern() const;

  AdaLoraOptions options_;
  RankAllocator allocator_;
  std::vector<const BaseLinear*> targets_;  // those without a triplet left too
};

AdaLora::AdaLora(const AdaLoraOptions& options, models::Model& model)
    : LinearAdapter(model), options_(options), allocator_(options.schedule) {
  for (const BaseLinear* linear : match_target_modules(options.targets, model)) {
    targets_.push_back(linear);
    attach(*linear);
  }
  for (const auto& [name, kept] : options.rank_pattern) {
    if (std::ranges::none_of(targets_, [&](const BaseLinear* linear) {
          return linear->path() + kPatternSuffix == name;
        }))
      throw DataError("adapter_config.json: rank_pattern: " + name +
                      " is no linear that target_modules names. The adapter is of another model.");
  }
}

void AdaLora::attach(const BaseLinear& linear) {
  const int64_t init_r = options_.schedule.init_r;
  if (options_.is_new) {
    check_rank("init_r", init_r, linear);
    declare_triplets(linear, init_r);
    allocator_.add(
        {{id_of(linear, Allocator::kA), id_of(linear, Allocator::kE), id_of(linear, Allocator::kB)},
         linear.in_features(),
         linear.out_features()});
    return;
  }
  if (options_.rank_pattern.empty())
    return declare_triplets(linear, init_r);
  const std::string name = linear.path() + kPatternSuffix;
  const auto found = options_.rank_pattern.find(name);
  if (found == options_.rank_pattern.end() || std::ssize(found->second) != init_r)
    throw DataError(
        "adapter_config.json: rank_pattern: " + name + ": expected " + std::to_string(init_r) +
        " marks (init_r), found " +
        (found == options_.rank_pattern.end() ? "none" : std::to_string(found->second.size())) +
        ". The adapter is incomplete or of another model.");
  declare_triplets(linear, std::ranges::count(found->second, uint8_t{1}));
}

void AdaLora::declare_triplets(const BaseLinear& linear, int64_t rank) {
  const Shape a{rank, linear.in_features()}, e{rank, 1}, b{linear.out_features(), rank};
  if (rank > 0) {
    declare(linear, ".lora_A", a, normal_values(0.02f));
    declare(linear, ".lora_E", e, constant_values(0.0f));
    declare(linear, ".lora_B", b, normal_values(0.02f));
    return;
  }
  // Nothing to train, but the folder has the empty tensors.
  const auto add_empty = [&](const char* suffix, Shape shape) {
    add_constant(kModulePrefix, linear.path() + suffix,
                 std::make_shared<Tensor>(Tensor(shape, DType::kFloat32)));
  };
  add_empty(".lora_A", a);
  add_empty(".lora_E", e);
  add_empty(".lora_B", b);
}

Variable AdaLora::on_linear(Tape& tape, const BaseLinear& linear, const Variable& x,
                            const models::PassContext& context, const Next& next) {
  autograd::LowRank update;
  update.lora_A = id_of(linear, Allocator::kA);
  update.lora_B = id_of(linear, Allocator::kB);
  update.lora_E = id_of(linear, Allocator::kE);
  update.scale = scale();
  return next.with_low_rank(x, drop(tape, linear, x, context, options_.lora_dropout), update);
}

Variable AdaLora::extra_loss(Tape& tape, const models::PassContext& context) {
  Variable sum;
  if (options_.orth_reg_weight == 0.0)
    return sum;
  const auto weight =
      static_cast<float>(options_.orth_reg_weight / (2.0 * static_cast<double>(targets_.size())));
  const auto add = [&](const Variable& loss) {
    sum = sum.defined() ? autograd::add(tape, sum, loss) : loss;
  };
  for (const BaseLinear* linear : targets_) {
    if (!wraps(*linear) || linear->unit() != model().layer_unit(context.layer))
      continue;
    add(orthogonality_loss(tape, tape.parameter(id_of(*linear, Allocator::kA)), Along::kRows,
                           weight));
    add(orthogonality_loss(tape, tape.parameter(id_of(*linear, Allocator::kB)), Along::kColumns,
                           weight));
  }
  return sum;
}

void AdaLora::merge_rows(const BaseLinear& linear, int64_t begin, int64_t end,
                         const TensorView& rows) const {
  if (!wraps(linear))
    return;
  const TensorView a = store().value(id_of(linear, Allocator::kA));
  const auto e = store().value(id_of(linear, Allocator::kE)).span<const float>();
  Tensor weighed(a.shape(), DType::kFloat32);
  for (int64_t i = 0; i < a.numel(); ++i)
    weighed.data<float>()[i] = a.data<const float>()[i] * e[static_cast<size_t>(i / a.dim(1))];
  add_product(store().value(id_of(linear, Allocator::kB)).rows(begin, end), weighed, scale(), rows);
}

// By the name of a linear's lora_E: the triplets that stay; empty: all.
Masks AdaLora::pattern() const {
  if (!options_.is_new)
    return options_.rank_pattern;
  Masks pattern;
  for (size_t i = 0; i < allocator_.kept().size(); ++i)
    pattern[targets_[i]->path() + kPatternSuffix] = allocator_.kept()[i];
  return pattern;
}

std::vector<SavedTensor> AdaLora::saved_tensors() const {
  std::vector<SavedTensor> saved = LinearAdapter::saved_tensors();
  if (!options_.is_new || allocator_.kept().empty())
    return saved;
  const Masks masks = pattern();
  for (SavedTensor& tensor : saved) {
    const size_t dot = tensor.name.rfind('.');
    const auto found = masks.find(tensor.name.substr(0, dot) + kPatternSuffix);
    const std::string factor = tensor.name.substr(dot);
    if (found == masks.end() || !factor.starts_with(".lora_"))
      continue;
    const std::vector<uint8_t>& kept = found->second;
    const bool by_columns = factor == ".lora_B";
    const int64_t left = std::ranges::count(kept, uint8_t{1});
    const int64_t width = by_columns ? std::ssize(kept) : tensor.shape[1];
    tensor.shape = by_columns ? Shape{tensor.shape[0], left} : Shape{left, tensor.shape[1]};
    tensor.compose = [kept, by_columns, width](const auto& sources, std::span<float> out) {
      size_t to = 0;
      for (size_t i = 0; i < sources[0].size(); ++i) {
        const size_t row = i / static_cast<size_t>(width), column = i % static_cast<size_t>(width);
        if (kept[by_columns ? column : row] != 0)
          out[to++] = sources[0][i];
      }
    };
  }
  return saved;
}

io::Json AdaLora::peft_config(const std::string& base_model) const {
  std::vector<std::string> paths;
  for (const BaseLinear* linear : targets_)
    paths.push_back(linear->path());
  io::Json masks = nullptr;
  for (const auto& [name, kept] : pattern()) {
    if (masks.is_null())
      masks = io::Json::object();
    io::Json list = io::Json::array();
    for (const uint8_t mark : kept)
      list.push_back(mark != 0);
    masks.set(name, std::move(list));
  }
  const RankSchedule& schedule = allocator_.schedule();
  std::vector<std::pair<std::string, io::Json>> own = {
      {"alpha_pattern", io::Json::object()},
      {"beta1", schedule.beta1},
      {"beta2", schedule.beta2},
      {"bias", "none"},
      {"deltaT", schedule.deltaT},
      {"ensure_weight_tying", false},
      {"fan_in_fan_out", wraps_conv1d()},
      {"init_lora_weights", true},
      {"init_r", schedule.init_r},
      {"loftq_config", io::Json::object()},
      {"lora_alpha", number_json(options_.lora_alpha)},
      {"lora_bias", false},
      {"lora_dropout", options_.lora_dropout},
      {"megatron_core", "megatron.core"},
      {"orth_reg_weight", options_.orth_reg_weight},
      {"qalora_group_size", 16},
      {"r", 8},  // PEFT's default, without effect
      {"rank_pattern", std::move(masks)},
      {"target_modules", list_json(compact_targets(paths, model()))},
      {"target_r", schedule.target_r},
      {"tfinal", schedule.tfinal},
      {"tinit", schedule.tinit},
      {"total_step", schedule.total_step},
      {"use_dora", false},
      {"use_qalora", false},
      {"use_rslora", false}};
  for (const char* key : kUnusedLoraKeys)
    own.emplace_back(key, nullptr);
  return with_trained_parts(peft_config_json("ADALORA", base_model, std::move(own)),
                            options_.targets);
}

void read_schedule(const OptionReader& reader, bool is_new, RankSchedule& schedule) {
  constexpr io::NumberRange kSteps{0, 1e12};
  schedule.init_r = reader.integer("init_r", 12, {1, 65536});
  schedule.target_r = reader.integer("target_r", 8, {1, 65536});
  schedule.tinit = reader.integer("tinit", 0, kSteps);
  schedule.tfinal = reader.integer("tfinal", 0, kSteps);
  schedule.deltaT = reader.integer("deltaT", 1, {1, 1e12});
  schedule.total_step = reader.integer("total_step", 0, kSteps);
  schedule.beta1 = reader.number("beta1", 0.85, {0, 1, true, true});
  schedule.beta2 = reader.number("beta2", 0.85, {0, 1, true, true});
  if (is_new && schedule.target_r > schedule.init_r)
    reader.error("target_r", "expected at most init_r (" + std::to_string(schedule.init_r) +
                                 "), found " + std::to_string(schedule.target_r) +
                                 ": ranks only fall.");
}

}  // namespace

std::unique_ptr<AdapterOptions> read_adalora(const OptionReader& reader) {
  AdaLoraOptions options;
  options.is_new = reader.source() == OptionReader::Source::kRun;
  read_schedule(reader, options.is_new, options.schedule);
  options.lora_alpha = reader.number(
      "lora_alpha", options.is_new ? 2.0 * static_cast<double>(options.schedule.init_r) : 8.0,
      {0, 1e6, true});
  options.lora_dropout = reader.number("lora_dropout", 0.0, {0, 1, false, true});
  options.orth_reg_weight = reader.number("orth_reg_weight", 0.5, {0, 1e6});
  if (options.is_new) {
    if (reader.has("rank_pattern"))
      reader.error("rank_pattern", "is what training finds out. Leave it out.");
  } else {
    options.rank_pattern = reader.masks("rank_pattern");
    for (const char* key : {"r", "init_lora_weights"})
      reader.has(key);  // without effect on a trained adapter
  }
  options.targets = read_target_modules(reader, {kAllLinear}, "lora_only");
  return std::make_unique<MethodOptions<AdaLora, AdaLoraOptions>>(std::move(options));
}

}  // namespace shardtune::adapters
