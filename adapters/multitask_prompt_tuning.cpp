// Multitask prompt tuning: all tasks share embeddings P [n, H] of virtual tokens; the prompt of
// task t is P times, element by element, a low-rank matrix of its own, cols_t [n, k] rows_t [k, H].
// A further task can start from a saved folder's tensors. Source  Wang et al. 2023, Multitask
// Prompt Tuning, arXiv:2303.02861
#include "adapters/methods.h"
#include "adapters/prompt_adapter.h"
#include "adapters/prompt_start.h"
#include "autograd/matrix_ops.h"
#include "autograd/ops.h"
#include "io/safetensors.h"

namespace shardtune::adapters {

namespace {

using autograd::Tape;
using autograd::Variable;

constexpr float kTaskDeviation = 0.02f;

struct MultitaskOptions {
  int64_t num_virtual_tokens = 0;
  int64_t num_tasks = 1;
  int64_t num_ranks = 1;
  PromptStart start;
  std::string source;       // prompt_tuning_init_state_dict_path: a safetensors file
  int64_t source_task = 0;  // prompt_tuning_init_task
  bool is_saved = false;

  bool starts_from_source() const {
    return !is_saved && start.init.find("SOURCE") != std::string::npos;
  }
  std::vector<std::pair<std::string, std::string>> keys() const {
    auto keys = start.keys();
    keys.emplace_back("num_ranks", std::to_string(num_ranks));
    keys.emplace_back("num_tasks", std::to_string(num_tasks));
    keys.emplace_back("num_virtual_tokens", std::to_string(num_virtual_tokens));
    if (starts_from_source())
      keys.emplace_back("prompt_tuning_init_state_dict_path", io::Json(source).dump());
    if (start.init == "EXACT_SOURCE_TASK")
      keys.emplace_back("prompt_tuning_init_task", std::to_string(source_task));
    return keys;
  }
  FrontTokens front_tokens() const { return {num_virtual_tokens, num_virtual_tokens, num_tasks}; }
};

/// The values of one tensor of the source's file.
std::vector<float> read_source(const MultitaskOptions& options, const std::string& name,
                               const Shape& expected) {
  const std::string where = "adapter.prompt_tuning_init_state_dict_path: " + options.source + ": ";
  const auto file = io::open_safetensors(options.source);
  const io::TensorInfo* info = file->find(name);
  if (info == nullptr)
    throw DataError(where + name +
                    " is missing. Give the file of a multitask_prompt_tuning adapter.");
  Shape shape{std::span<const int64_t>(info->shape)};
  const bool is_of_tasks = name != "prompt_embeddings";
  // A task's part must fit; how many tasks the source has is its own matter.
  const bool fits = shape.ndim() == expected.ndim() && [&] {
    for (int i = is_of_tasks ? 1 : 0; i < shape.ndim(); ++i) {
      if (shape[i] != expected[i])
        return false;
    }
    return true;
  }();
  if (!fits || (is_of_tasks && options.source_task >= shape[0])) {
    throw DataError(where + name + ": expected " + expected.to_string() + " with task " +
                    std::to_string(options.source_task) + ", found " + shape.to_string() + ".");
  }
  std::vector<float> values(static_cast<size_t>(shape.numel()));
  file->read_float32(*info, 0, shape.numel(), values.data());
  return values;
}

/// One task's values out of those of all: the mean, or the task's own.
std::vector<float> of_one_task(const std::vector<float>& all, size_t size,
                               const MultitaskOptions& options) {
  std::vector<float> one(size);
  const size_t tasks = all.size() / size;
  for (size_t i = 0; i < size; ++i) {
    if (options.start.init == "EXACT_SOURCE_TASK") {
      one[i] = all[static_cast<size_t>(options.source_task) * size + i];
      continue;
    }
    double sum = 0.0;
    for (size_t task = 0; task < tasks; ++task)
      sum += static_cast<double>(all[task * size + i]);
    one[i] = static_cast<float>(sum / static_cast<double>(tasks));
  }
  return one;
}

enum Slot : size_t { kPrompt, kCols, kRows };

class MultitaskPromptTuning : public PromptAdapter {
 public:
  static constexpr std::string_view kName = "multitask_prompt_tuning";

  MultitaskPromptTuning(const MultitaskOptions& options, models::Model& model)
      : PromptAdapter(options.num_virtual_tokens, model), options_(options) {
    const int64_t n = num_virtual_tokens(), k = options.num_ranks, tasks = options.num_tasks;
    const Shape prompt{n, width()}, cols{tasks, n, k}, rows{tasks, k, width()};
    declare_prompt("prompt_embeddings", prompt, from_source("prompt_embeddings", prompt));
    declare_prompt("prefix_task_cols", cols, from_source("prefix_task_cols", cols));
    declare_prompt("prefix_task_rows", rows, from_source("prefix_task_rows", rows));
  }

  std::string_view method() const override { return kName; }
  void initialize(const InitContext& context) override {
    initialize_from(options_.start.embeddings(model(), context, tensors()[kPrompt]), context);
  }

  void select_task(int64_t task) override { selected_ = task; }

  /// Of every task in turn, or of the selected one.
  Variable virtual_tokens(Tape& tape, const models::PassContext& context) override {
    const int64_t n = num_virtual_tokens(), k = options_.num_ranks, tasks = options_.num_tasks;
    const bool has_own = !context.batch->task_ids.empty();
    if (!has_own && selected_ < 0 && tasks > 1) {
      throw ConfigError("adapter: expected the task of each sample, as the adapter has " +
                        std::to_string(tasks) +
                        " tasks. Give --task-id, or task_id per data file.");
    }
    const Variable prompt = parameter(tape, kPrompt);
    const Variable cols = autograd::reshape(tape, parameter(tape, kCols), {tasks * n, k});
    const Variable rows = autograd::reshape(tape, parameter(tape, kRows), {tasks * k, width()});
    Variable all = Variable::constant(Tensor::zeros(Shape{tasks * n, width()}, DType::kFloat32));
    for (int64_t task = 0; task < tasks; ++task) {
      const Variable own = autograd::matmul(
          tape, autograd::gather_rows(tape, cols, range(task * n, n)),
          autograd::gather_rows(tape, rows, range(task * k, k)), kernels::Transpose::kNo);
      all = autograd::place_rows(tape, all, autograd::mul(tape, prompt, own), range(task * n, n));
    }
    if (has_own || tasks == 1)
      return all;
    return autograd::gather_rows(tape, all, range(selected_ * n, n));
  }

  io::Json peft_config(const std::string& base_model) const override {
    auto own = prompt_config();
    options_.start.add_peft_keys(base_model, own);
    own.emplace_back("num_ranks", options_.num_ranks);
    own.emplace_back("num_tasks", options_.num_tasks);
    own.emplace_back("prompt_tuning_init_state_dict_path",
                     options_.source.empty() ? io::Json() : io::Json(options_.source));
    own.emplace_back("prompt_tuning_init_task", options_.source_task);
    return peft_config_json("MULTITASK_PROMPT_TUNING", base_model, std::move(own));
  }

 private:
  static std::vector<int32_t> range(int64_t begin, int64_t count) {
    std::vector<int32_t> indices;
    for (int64_t i = 0; i < count; ++i)
      indices.push_back(static_cast<int32_t>(begin + i));
    return indices;
  }

  /// The initial values of a tensor; a source is read and checked on every rank, before loading.
  Initializer from_source(const std::string& name, const Shape& shape) const {
    const bool is_prompt = name == "prompt_embeddings";
    if (!options_.starts_from_source() ||
        (!is_prompt && options_.start.init == "ONLY_SOURCE_SHARED"))
      return is_prompt ? started_embeddings() : normal_values(kTaskDeviation);
    std::vector<float> values = read_source(options_, name, shape);
    if (!is_prompt)
      values = of_one_task(values, static_cast<size_t>(shape.numel()), options_);
    return [values = std::move(values)](const CounterRng&, std::span<float> out) {
      std::ranges::copy(values, out.begin());
    };
  }

  MultitaskOptions options_;
  int64_t selected_ = -1;
};

void check_source(const OptionReader& reader, const MultitaskOptions& options) {
  if (!options.starts_from_source())
    return;
  if (!options.source.ends_with(".safetensors")) {
    reader.error("prompt_tuning_init_state_dict_path",
                 "expected a .safetensors file for prompt_tuning_init '" + options.start.init +
                     "', found \"" + options.source + "\". Other files can run code when read.");
  }
  if (options.num_tasks != 1 && options.start.init != "ONLY_SOURCE_SHARED") {
    reader.error("num_tasks", "expected 1 with prompt_tuning_init '" + options.start.init +
                                  "', which yields one task's start, found " +
                                  std::to_string(options.num_tasks) + ".");
  }
}

}  // namespace

std::unique_ptr<AdapterOptions> read_multitask_prompt_tuning(const OptionReader& reader) {
  MultitaskOptions options;
  options.is_saved = reader.source() == OptionReader::Source::kSaved;
  options.num_virtual_tokens = read_num_virtual_tokens(reader);
  options.num_tasks = reader.integer("num_tasks", 1, {1, 65536});
  options.num_ranks = reader.integer("num_ranks", 1, {1, 65536});
  options.start =
      read_prompt_start(reader, {"RANDOM", "TEXT", "SAMPLE_VOCAB", "AVERAGE_SOURCE_TASKS",
                                 "EXACT_SOURCE_TASK", "ONLY_SOURCE_SHARED"});
  options.source = reader.text("prompt_tuning_init_state_dict_path", "");
  options.source_task = reader.integer("prompt_tuning_init_task", 0, {0, 65535});
  check_source(reader, options);
  return std::make_unique<MethodOptions<MultitaskPromptTuning, MultitaskOptions>>(
      std::move(options));
}

}  // namespace shardtune::adapters
