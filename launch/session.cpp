#include "launch/session.h"

#include "core/log.h"
#include "core/topology.h"
#include "trainer/config.h"

namespace shardtune::launch {
namespace {

quant::QuantizationOptions quantization_of(const ModelArguments& arguments,
                                           const std::optional<exporting::Provenance>& trained) {
  if (trained &&
      (arguments.quantization.empty() || arguments.quantization == trained->quantization.method))
    return trained->quantization;
  quant::QuantizationOptions options;
  if (!arguments.quantization.empty())
    options.method = arguments.quantization;
  return options;
}

/// int8 needs the scales that an adapter was trained with.
std::string compute_dtype_of(const ModelArguments& arguments,
                             const std::optional<exporting::Provenance>& trained) {
  const bool has_scales = trained && !trained->int8_migration.empty();
  if (arguments.compute_dtype.empty())
    return has_scales ? "int8" : "auto";
  if (arguments.compute_dtype == "int8" && !has_scales) {
    throw ConfigError(
        "--compute-dtype: int8 needs the scales of an adapter that was trained with "
        "'compute_dtype: int8', found " +
        (arguments.adapter.empty() ? "no adapter" : "none in " + arguments.adapter) +
        ". Use --compute-dtype auto.");
  }
  return arguments.compute_dtype;
}

std::optional<exporting::Provenance> provenance_of(const ModelArguments& arguments) {
  if (arguments.adapter.empty())
    return std::nullopt;
  adapters::read_adapter_options(arguments.adapter);  // a folder that is none is told as such
  return exporting::read_provenance(arguments.adapter);
}

/// A rough lower bound, so that a model that cannot fit is told instead of being killed.
void check_memory(const models::ModelSource& source, const quant::QuantizationOptions& quantization,
                  DType compute) {
  const models::ModelConfig& config = source.config();
  const double attention =
      static_cast<double>(config.hidden_size) * (2.0 * static_cast<double>(config.q_features()) +
                                                 2.0 * static_cast<double>(config.kv_features()));
  const double mlp =
      3.0 * static_cast<double>(config.hidden_size) * static_cast<double>(config.intermediate_size);
  const double tables = static_cast<double>(config.vocab_size) *
                        static_cast<double>(config.hidden_size) *
                        (config.tie_word_embeddings ? 1.0 : 2.0);
  double bytes_each = static_cast<double>(size_of(compute));
  if (quantization.method == "keep")
    bytes_each = 0.3;  // Q2_K, the smallest stored form
  else if (quantization.method != "none")
    bytes_each = quantization.method == "int8" ? 1.0 : 0.5;
  const double bytes = static_cast<double>(config.num_layers) * (attention + mlp) * bytes_each +
                       tables * static_cast<double>(size_of(compute));
  const auto usable = static_cast<double>(usable_memory_bytes());
  if (bytes > usable)
    throw OutOfMemoryError(source.path() + ": the model needs at least " +
                           std::to_string(static_cast<int64_t>(bytes / 1e6)) + " MB, " +
                           std::to_string(static_cast<int64_t>(usable / 1e6)) +
                           " MB are there. Use --quantization nf4, or a larger machine.");
}

}  // namespace

StoredModel load_alone(const models::ModelSource& source, const models::LoadOptions& options) {
  StoredModel stored;
  stored.communicator = parallel::make_single_communicator();
  stored.store = std::make_unique<parallel::ShardedParameterStore>(*stored.communicator,
                                                                   parallel::ZeroStage::k0);
  stored.model = models::load_model(source, *stored.store, options);
  return stored;
}

void add_model_options(CommandLine& line) {
  line.value("model", "M", "folder of a Hugging Face model, or one .gguf file");
  line.value("adapter", "A", "adapter folder (PEFT's layout)");
  line.value(
      "quantization", "METHOD",
      "none, keep, nf4, fp4 or int8 (default: as the adapter was trained; without one none)");
  line.value("compute-dtype", "D",
             "auto, float32, bfloat16 or int8 (default int8 where the adapter was trained so, else "
             "auto)");
  line.value("task-id", "N", "the task, for an adapter of several (multitask_prompt_tuning)");
  line.threads_option();
}

ModelArguments model_arguments(const CommandLine& line) {
  ModelArguments arguments;
  arguments.model = line.required("model");
  arguments.adapter = line.text_or("adapter", "");
  if (line.has("adapter") && arguments.adapter.empty())
    throw ConfigError("--adapter: expected a folder, found an empty text. Leave it out for none.");
  if (line.has("quantization"))
    arguments.quantization = line.choice_or("quantization", "", quant::frozen_formats().names(),
                                            {"gptq", "awq", "hqq", "q4_0", "q8_0", "auto"});
  if (line.has("compute-dtype"))
    arguments.compute_dtype = line.choice_or("compute-dtype", "auto",
                                             {"auto", "float32", "bfloat16", "int8"}, {"float16"});
  arguments.task_id = line.integer_or("task-id", -1, {0, 65535});
  return arguments;
}

namespace {

/// Before weights are read.
void check_task(const ModelArguments& arguments) {
  const int64_t tasks =
      arguments.adapter.empty()
          ? 0
          : adapters::read_adapter_options(arguments.adapter)->front_tokens().tasks;
  const std::string of_adapter =
      tasks == 0 ? "no adapter with tasks" : "an adapter of " + std::to_string(tasks) + " tasks";
  if (arguments.task_id >= tasks && arguments.task_id >= 0)
    throw ConfigError("--task-id: found " + std::to_string(arguments.task_id) + " and " +
                      of_adapter + ". Give a task from 0 on, or leave it out.");
  if (arguments.task_id < 0 && tasks > 1)
    throw ConfigError("--task-id: expected a task, found none and " + of_adapter +
                      ". Write for example '--task-id 0'.");
}

/// What was trained with is the codes: no other format has them.
void check_merge_aware(const ModelArguments& arguments, const exporting::Provenance& trained) {
  if (!arguments.quantization.empty() && arguments.quantization != trained.quantization.method)
    throw ConfigError("--quantization: expected " + trained.quantization.method + ", in which " +
                      arguments.adapter + " was trained merge-aware, found " +
                      arguments.quantization + ". Leave it out.");
}

}  // namespace

Session::Session(const ModelArguments& arguments, std::unique_ptr<models::ModelSource> source)
    : source_(std::move(source)) {
  const auto trained = provenance_of(arguments);
  check_task(arguments);
  provenance_.base_model = arguments.model;
  if (trained) {
    provenance_ = *trained;
    provenance_.base_sha256 = source_->content_hash();
    exporting::check_base(*trained, arguments.adapter, arguments.model, provenance_.base_sha256);
  }
  provenance_.quantization = quantization_of(arguments, trained);
  models::LoadOptions load;
  load.quantization = provenance_.quantization;
  const std::string compute = compute_dtype_of(arguments, trained);
  load.compute_dtype = trainer::resolve_compute_dtype(compute);
  if (!trained)
    provenance_.compute_dtype = std::string(name_of(load.compute_dtype));
  check_memory(*source_, load.quantization, load.compute_dtype);
  const auto options =
      arguments.adapter.empty() ? nullptr : adapters::read_adapter_options(arguments.adapter);
  if (options)
    load.trained = options->trained_base(source_->config());
  if (trained && trained->merge_aware) {
    check_merge_aware(arguments, *trained);
    options->set_merge_aware(*trained->merge_aware);
  }
  stored_ = load_alone(*source_, load);
  if (compute == "int8") {
    models::enable_int8(*stored_.model);
    models::set_int8_migration(*stored_.model, trained->int8_migration,
                               arguments.adapter + "/" + exporting::kProvenanceFile);
  }
  if (options) {
    adapter_ = options->attach(*stored_.model);
    adapter_->keep_base(*source_, [](const models::BaseLinear&) { return true; });
    adapters::read_adapter_values(arguments.adapter, *adapter_, *stored_.model);
  }
  if (arguments.task_id >= 0)
    adapter_->select_task(arguments.task_id);
}

std::vector<models::Hooks*> Session::hooks() const {
  return adapter_ ? std::vector<models::Hooks*>{adapter_.get()} : std::vector<models::Hooks*>{};
}

std::unique_ptr<data::ChatTemplate> chat_template_for(const ModelArguments& arguments,
                                                      const data::Tokenizer& tokenizer) {
  std::string name = arguments.chat_template;
  if (name.empty() && !arguments.adapter.empty()) {
    if (const auto trained = exporting::read_provenance(arguments.adapter))
      name = trained->chat_template;
  }
  if (name == "none")
    return nullptr;
  return data::make_chat_template(name.empty() ? "auto" : name, tokenizer);
}

}  // namespace shardtune::launch
