// export: merged weights or an adapter folder.
#include <cmath>
#include <cstdlib>

#include "core/log.h"
#include "export/combined_adapter.h"
#include "export/exporter.h"
#include "launch/command_line.h"
#include "launch/export_loss.h"
#include "launch/output.h"
#include "launch/session.h"
#include "launch/verbs.h"
#include "trainer/config.h"

namespace shardtune::launch {
namespace {

struct ExportArguments {
  ModelArguments model;
  std::string format;
  std::string out;
  exporting::ExportOptions options;
  std::string data;  // "": the training data of the adapter's run
  exporting::Existing existing = exporting::Existing::kRefuse;
  std::vector<std::string> combined;  // all adapters, where there are several
  adapters::Combination combination;
};

/// "50GB", "500MB" or a number of bytes, powers of ten as transformers counts.
int64_t parse_size(const std::string& text, const std::string& what) {
  const size_t digits = std::min(text.find_first_not_of("0123456789"), text.size());
  const std::string unit = text.substr(digits);
  int64_t factor = 0;
  if (unit.empty() || unit == "B")
    factor = 1;
  else if (unit == "KB")
    factor = 1'000;
  else if (unit == "MB")
    factor = 1'000'000;
  else if (unit == "GB")
    factor = 1'000'000'000;
  if (factor == 0)
    throw ConfigError(what + ": expected a size, found '" + text + "'. Write for example 5GB.");
  return factor * parse_integer(text.substr(0, digits), what, {1, 1'000'000'000'000'000 / factor});
}

void add_options(CommandLine& line) {
  add_model_options(line);
  line.value("to", "FORMAT", "hf or gguf (merged weights), peft or gguf-lora (adapter only)");
  line.value("out", "PATH", "output folder; must be empty or absent");
  line.value(
      "dtype", "D",
      "of merged weights: bfloat16 (default of hf), float32; of hf also nf4, fp4 and int8 as "
      "bitsandbytes has them; of gguf float16 (its default), q8_0 and keep (the blocks of the "
      "model's own file)");
  line.value(
      "data", "FILE",
      "records to measure the loss before and after on, with --dtype nf4, fp4 or int8 and an "
      "adapter (default: the training data of its run)");
  line.value(
      "merge-base", "WHICH",
      "trained (default): the base as it was in training, dequantised; original: the model's "
      "own tensors");
  line.value("max-shard-size", "SIZE", "weights above it go into several files (default 50GB)");
  line.repeated("combine", "A", "a further LoRA adapter; with --to peft all of them become one");
  line.value(
      "combination-type", "HOW",
      "svd (default: the nearest of a given rank), cat (exact, ranks add up) or linear (A and "
      "B are added)");
  line.repeated("weight", "W", "of an adapter, in their order (default 1 each)");
  line.value("svd-rank", "N", "rank of svd (default: the largest of theirs)");
  line.flag("overwrite", "replace an output folder that shardtune wrote");
  line.flag("json", "print the report as one JSON document");
}

/// GGUF's word for --dtype.
std::string gguf_type(const CommandLine& line) {
  const std::string dtype =
      line.choice_or("dtype", "float16", {"float16", "bfloat16", "float32", "q8_0", "keep"});
  return dtype == "q8_0"       ? "Q8_0"
         : dtype == "keep"     ? "keep"
         : dtype == "float32"  ? "F32"
         : dtype == "bfloat16" ? "BF16"
                               : "F16";
}

/// Of --to hf.
void read_dtype(const CommandLine& line, exporting::ExportOptions& options) {
  const std::string dtype = line.choice_or(
      "dtype", "bfloat16", {"bfloat16", "float32", "nf4", "fp4", "int8"}, {"float16"});
  if (dtype == "float32")
    options.dtype = DType::kFloat32;
  else if (dtype != "bfloat16")
    options.low_bit = dtype;
}

double parse_weight(const std::string& text) {
  char* end = nullptr;
  const double weight = std::strtod(text.c_str(), &end);
  if (text.empty() || *end != '\0' || !std::isfinite(weight))
    throw ConfigError("--weight: expected a number, found '" + text + "'. Write for example 0.5.");
  return weight;
}

void read_combination(const CommandLine& line, ExportArguments& arguments) {
  const std::vector<std::string> more = line.all("combine");
  if (more.empty()) {
    for (const char* name : {"combination-type", "weight", "svd-rank"}) {
      if (line.has(name))
        throw ConfigError(std::string("--") + name + ": belongs to --combine A. Leave it out.");
    }
    return;
  }
  if (arguments.format != "peft")
    throw ConfigError("--combine: expected --to peft, found --to " + arguments.format +
                      ". Combine first, then export what came out.");
  arguments.combined = {arguments.model.adapter};
  arguments.combined.insert(arguments.combined.end(), more.begin(), more.end());
  adapters::Combination& combination = arguments.combination;
  combination.type = adapters::combination_type(
      line.choice_or("combination-type", "svd", {"svd", "cat", "linear"}, {"ties", "dare_linear"}));
  combination.svd_rank = line.integer_or("svd-rank", 0, {1, 65536});
  for (const std::string& weight : line.all("weight"))
    combination.weights.push_back(parse_weight(weight));
  if (combination.weights.empty())
    combination.weights.assign(arguments.combined.size(), 1.0);
}

ExportArguments read_arguments(const CommandLine& line) {
  ExportArguments arguments;
  line.required("to");
  arguments.format = line.choice_or("to", "", exporting::exporters().names());
  arguments.model = model_arguments(line);
  arguments.out = line.required("out");
  if (arguments.format == "gguf")
    arguments.options.gguf_type = gguf_type(line);
  else
    read_dtype(line, arguments.options);
  if (line.choice_or("merge-base", "trained", {"trained", "original"}) == "original")
    arguments.options.merge_base = exporting::MergeBase::kOriginal;
  arguments.data = line.text_or("data", "");
  if (line.has("data") && (arguments.options.low_bit.empty() || arguments.model.adapter.empty()))
    throw ConfigError(
        "--data: belongs to --to hf --dtype nf4, fp4 or int8 with an adapter. Leave it out.");
  if (line.has("max-shard-size"))
    arguments.options.max_shard_bytes =
        parse_size(line.required("max-shard-size"), "--max-shard-size");
  if (line.has("overwrite"))
    arguments.existing = exporting::Existing::kReplace;
  if (arguments.format == "gguf" && line.has("max-shard-size"))
    throw ConfigError("--max-shard-size: belongs to --to hf; a GGUF file is one. Leave it out.");
  if (arguments.format == "peft" || arguments.format == "gguf-lora") {
    if (arguments.model.adapter.empty())
      throw ConfigError("shardtune export --to " + arguments.format +
                        ": expected --adapter A, found none. Give the adapter's folder.");
    for (const char* name : {"dtype", "merge-base", "max-shard-size"}) {
      if (line.has(name))
        throw ConfigError(std::string("--") + name +
                          ": belongs to merged weights; an adapter is saved in "
                          "float32 as it was trained. Leave it out.");
    }
  }
  read_combination(line, arguments);
  return arguments;
}

/// nullptr with a warning where the model's tokenizer is of a kind that is not read yet: weights
/// can be exported all the same, and a folder's files are carried as they are.
std::unique_ptr<data::Tokenizer> tokenizer_of(const std::string& model) {
  try {
    return data::load_tokenizer(model);
  } catch (const MissingInputError& error) {
    log_warning(error.what());
  } catch (const UnsupportedError& error) {
    log_warning(error.what());
  }
  return nullptr;
}

/// A second copy of the model is read back for the check: bf16 weights stay bf16 where that is
/// fast.
ModelArguments with_compute_dtype(ModelArguments model, bool is_float32) {
  if (model.compute_dtype == "int8")
    throw ConfigError(
        "--compute-dtype: expected auto, float32 or bfloat16, found int8: an export "
        "writes weights, which int8 products do not change.");
  const bool is_free = model.compute_dtype.empty() || model.compute_dtype == "auto";
  if (is_free)
    model.compute_dtype = is_float32 ? "float32" : "auto";
  return model;
}

bool is_trained_in_float32(const std::string& adapter) {
  const auto trained = adapter.empty() ? std::nullopt : exporting::read_provenance(adapter);
  return trained && trained->compute_dtype == "float32";
}

io::Json run(const ExportArguments& arguments) {
  const auto format = exporting::exporters().at(arguments.format);
  auto source = models::open_model_source(arguments.model.model);
  const auto tokenizer = tokenizer_of(arguments.model.model);
  exporting::OutputFolder output(arguments.out, arguments.existing);
  if (!arguments.combined.empty()) {
    io::Json report =
        exporting::export_combined(arguments.combined, arguments.combination, arguments.model.model,
                                   source->content_hash(), output);
    output.commit();
    report.set("out", output.target().string());
    return report;
  }
  exporting::ExportOptions options = arguments.options;
  // What is not in low bits stays in the dtype that was computed in.
  if (!options.low_bit.empty() && is_trained_in_float32(arguments.model.adapter))
    options.dtype = DType::kFloat32;
  const bool is_float32 =
      arguments.format == "gguf" ? options.gguf_type == "F32" : options.dtype == DType::kFloat32;
  const Session session(with_compute_dtype(arguments.model, is_float32), std::move(source));
  StoredModel read_back;
  exporting::ExportRequest request{session.model(),
                                   session.source(),
                                   session.adapter(),
                                   tokenizer.get(),
                                   session.provenance(),
                                   options,
                                   {}};
  if (request.provenance.base_sha256.empty())
    request.provenance.base_sha256 = session.source().content_hash();
  request.load_back = [&](const models::ModelSource& source) -> models::Model& {
    models::LoadOptions load;
    load.compute_dtype = session.model().compute_dtype();
    read_back = load_alone(source, load);
    return *read_back.model;
  };
  // Read before weights are written, so that a file that cannot be is told at once.
  std::optional<data::Dataset> sample;
  if (!options.low_bit.empty() && session.adapter() != nullptr && tokenizer != nullptr)
    sample = loss_sample(arguments.model, arguments.data, *tokenizer,
                         session.source().config().max_position_embeddings);
  io::Json report = format(request, output);
  if (sample)
    report.set("loss", loss_before_and_after(*sample, session, *read_back.model));
  output.commit();
  report.set("out", output.target().string());
  return report;
}

}  // namespace

int run_export(Arguments list) {
  CommandLine line(
      "export --model M [--adapter A] --to hf|peft|gguf|gguf-lora --out PATH",
      "Writes what PEFT, transformers and llama.cpp load, and reads it back before it appears.");
  add_options(line);
  if (!line.parse(list))
    return 0;
  const ExportArguments arguments = read_arguments(line);
  line.apply_threads();
  const io::Json report = run(arguments);
  if (line.has("json"))
    print_json(report);
  else
    print("wrote " + arguments.out + "\n" + report.dump(2) + "\n");
  return 0;
}

}  // namespace shardtune::launch
