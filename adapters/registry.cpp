// Adapter methods: one file and one line each.
#include <algorithm>

#include "adapters/adapter.h"
#include "adapters/methods.h"

namespace shardtune::adapters {

namespace {

// [rows, columns] as [columns, rows].
void transpose(const std::vector<float>& from, int64_t columns, std::span<float> to) {
  const int64_t rows = std::ssize(from) / columns;
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < columns; ++j)
      to[static_cast<size_t>(j * rows + i)] = from[static_cast<size_t>(i * columns + j)];
  }
}

// Parts of a tensor follow each other.
void add_part(const AdapterTensor& tensor, std::vector<SavedTensor>& saved) {
  const AdapterTensor::InFile& in_file = *tensor.in_file;
  if (in_file.first_row > 0) {
    saved.back().sources.push_back(tensor.id);
    if (!in_file.also.empty())
      saved[saved.size() - 2].sources.push_back(tensor.id);
    return;
  }
  SavedTensor out{tensor.name, in_file.shape, {tensor.id}, {}, tensor.prefix};
  out.compose = [transposes = in_file.is_transposed, columns = in_file.shape[0]](
                    const auto& sources, std::span<float> to) {
    if (transposes)
      return transpose(sources[0], columns, to);
    for (const std::vector<float>& source : sources) {
      std::ranges::copy(source, to.begin());
      to = to.subspan(source.size());
    }
  };
  if (!in_file.also.empty()) {
    saved.push_back(out);
    saved.back().name = in_file.also;
  }
  saved.push_back(std::move(out));
}

}  // namespace

void AdapterOptions::set_merge_aware(quant::KeptForm) {
  throw DataError("adapter: an adapter of method " + std::string(method()) +
                  " cannot have been trained merge-aware. Copy the adapter folder again.");
}

std::unique_ptr<AdapterOptions> AdapterOptions::fitted_to_data(models::Model&,
                                                               const InitContext&) const {
  throw ArgumentError("adapter of method " + std::string(method()) +
                      ": expected one whose shapes follow from data");
}

std::unique_ptr<AdapterOptions> AdapterOptions::fitted_as(
    models::Model&, const std::vector<models::NamedState>&) const {
  throw ArgumentError("adapter of method " + std::string(method()) +
                      ": expected one whose shapes follow from data");
}

std::vector<SavedTensor> Adapter::saved_tensors() const {
  std::vector<SavedTensor> saved;
  for (const AdapterTensor& tensor : tensors()) {
    if (tensor.in_file) {
      add_part(tensor, saved);
      continue;
    }
    SavedTensor& out =
        saved.emplace_back(SavedTensor{tensor.name, tensor.shape, {}, {}, tensor.prefix});
    if (tensor.constant != nullptr) {
      out.compose = [values = tensor.constant](const auto&, std::span<float> to) {
        std::ranges::copy(values->span<const float>(), to.begin());
      };
      continue;
    }
    out.sources = {tensor.id};
    out.compose = [](const auto& sources, std::span<float> to) {
      std::ranges::copy(sources[0], to.begin());
    };
  }
  return saved;
}

const Registry<AdapterMethod>& adapter_methods() {
  static const Registry<AdapterMethod> kMethods(
      "adapter.method", {{"lora", {&read_lora, "LORA", {{"r", "lora_rank"}}}},
                         {"adalora", {&read_adalora, "ADALORA", {}}},
                         {"bitfit", {&read_bitfit, "", {}}},
                         {"freeze", {&read_freeze, "", {}}},
                         {"full", {&read_full, "", {}}},
                         {"ia3", {&read_ia3, "IA3", {}}},
                         {"vera", {&read_vera, "VERA", {}}},
                         {"loha", {&read_loha, "LOHA", {}}},
                         {"lokr", {&read_lokr, "LOKR", {}}},
                         {"oft", {&read_oft, "OFT", {}}},
                         {"boft", {&read_boft, "BOFT", {}}},
                         {"bottleneck", {&read_bottleneck, "", {}}},
                         {"prefix_tuning", {&read_prefix_tuning, "PREFIX_TUNING", {}}},
                         {"prompt_tuning", {&read_prompt_tuning, "PROMPT_TUNING", {}}},
                         {"p_tuning", {&read_p_tuning, "P_TUNING", {}}},
                         {"adaption_prompt", {&read_adaption_prompt, "ADAPTION_PROMPT", {}}},
                         {"multitask_prompt_tuning",
                          {&read_multitask_prompt_tuning, "MULTITASK_PROMPT_TUNING", {}}}});
  return kMethods;
}

namespace {

// Options and initial values of a saved adapter.
class ContinuedAdapter : public AdapterOptions {
 public:
  ContinuedAdapter(std::string folder, std::unique_ptr<AdapterOptions> saved)
      : folder_(std::move(folder)), saved_(std::move(saved)) {}
  std::string_view method() const override { return saved_->method(); }
  std::vector<std::pair<std::string, std::string>> keys() const override {
    return {{"adapter_name_or_path", io::Json(folder_).dump()}, {"method", std::string(method())}};
  }
  std::string start_folder() const override { return folder_; }
  models::TrainedBase trained_base(const models::ModelConfig& config) const override {
    return saved_->trained_base(config);
  }
  FrontTokens front_tokens() const override { return saved_->front_tokens(); }
  std::vector<std::string> element_states() const override { return saved_->element_states(); }
  void check_total_steps(int64_t total_steps) const override {
    saved_->check_total_steps(total_steps);
  }
  std::unique_ptr<Adapter> attach(models::Model& model) const override {
    return saved_->attach(model);
  }

 private:
  std::string folder_;
  std::unique_ptr<AdapterOptions> saved_;
};

std::unique_ptr<AdapterOptions> continued_options(const io::YamlNode& section) {
  const std::string folder = section.string_or("adapter_name_or_path", "");
  const std::string method = section.string_or("method", "");
  std::unique_ptr<AdapterOptions> saved;
  try {
    saved = read_adapter_options(folder);
  } catch (const Error& error) {
    section.error("adapter_name_or_path", error.what());
    return nullptr;
  }
  if (!method.empty() && method != saved->method())
    section.error("method", "expected " + std::string(saved->method()) + " (that of " + folder +
                                "), found " + method + ". Leave it out.");
  // What else stands here would not be the adapter's own.
  for (const std::string& key : section.keys()) {
    if (key != "adapter_name_or_path" && key != "method")
      section.error(key,
                    "the options of an adapter that goes on are those of its "
                    "adapter_config.json. Leave it out.");
    section.has(key);
  }
  return std::make_unique<ContinuedAdapter>(folder, std::move(saved));
}

}  // namespace

std::unique_ptr<AdapterOptions> adapter_options_from_yaml(const io::YamlNode& section) {
  if (section.has("adapter_name_or_path"))
    return continued_options(section);
  const std::string name = section.choice_or("method", "lora", adapter_methods().names());
  if (!adapter_methods().contains(name))
    return nullptr;
  const AdapterMethod& method = adapter_methods().at(name);
  auto options = method.read(*read_yaml_options(section, method.names));
  section.finish();
  return options;
}

namespace {

// AdapterHub's file: the method's options one level down, its name beside them.
std::unique_ptr<AdapterOptions> adapter_hub_options(const io::Json& config,
                                                    const std::string& name) {
  io::Json options = *config.find("config");
  const io::Json* architecture = options.find("architecture");
  if (!options.is_object() || (architecture != nullptr && !architecture->is_null())) {
    throw UnsupportedError(name +
                           ": of AdapterHub's methods bottleneck adapters alone are read. Save "
                           "others with PEFT.");
  }
  options.set("adapter_name", io::JsonReader(config, name).string("name"));
  const auto reader = read_peft_options(options, name);
  auto read = read_bottleneck(*reader);
  reader->finish();
  return read;
}

}  // namespace

std::unique_ptr<AdapterOptions> adapter_options_from_peft(const io::Json& config,
                                                          const std::string& name) {
  if (config.find("config") != nullptr && config.find("peft_type") == nullptr)
    return adapter_hub_options(config, name);
  const std::string peft_type = io::JsonReader(config, name).string("peft_type");
  for (const std::string& method : adapter_methods().names()) {
    if (adapter_methods().at(method).peft_type == peft_type) {
      const auto reader = read_peft_options(config, name);
      auto options = adapter_methods().at(method).read(*reader);
      reader->finish();
      return options;
    }
  }
  std::string known;
  for (const std::string& method : adapter_methods().names())
    known += (known.empty() ? "" : ", ") + std::string(adapter_methods().at(method).peft_type);
  throw UnsupportedError(name + ": peft_type: expected one of " + known + ", found '" + peft_type +
                         "', which is not supported yet (docs/status.md).");
}

}  // namespace shardtune::adapters
