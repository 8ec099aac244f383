#include "launch/export_loss.h"

#include <algorithm>
#include <cstdio>
#include <filesystem>

#include "core/log.h"
#include "trainer/config.h"
#include "trainer/evaluate.h"

namespace shardtune::launch {
namespace {

struct SampleSource {
  data::DatasetFile file;
  std::string chat_template;
  data::TrainOn train_on = data::TrainOn::kCompletion;
  int64_t max_length = 0;
};

SampleSource of_run(const std::string& adapter) {
  const auto folder = std::filesystem::absolute(adapter).lexically_normal();
  const auto path = (folder.filename().empty() ? folder.parent_path() : folder).parent_path() /
                    "resolved_config.yaml";
  const trainer::RunConfig config = trainer::load_config(path, {});
  return {config.data.train.front(), config.data.chat_template, config.data.train_on,
          config.data.max_length};
}

data::Dataset first_samples(const SampleSource& from, const data::Tokenizer& tokenizer,
                            const data::ChatTemplate* chat, int64_t context) {
  data::Dataset sample;
  sample.records = data::read_records(from.file);
  sample.records.resize(std::min(sample.records.size(), static_cast<size_t>(kLossSample)));
  const int64_t longest =
      std::min(from.max_length > 0 ? from.max_length : 1024, context > 0 ? context : 1024);
  for (size_t i = 0; i < sample.records.size(); ++i) {
    data::Sample one = data::tokenize_record(sample.records[i], tokenizer, chat, from.train_on);
    const size_t length = std::min(one.ids.size(), static_cast<size_t>(longest));
    one.ids.resize(length);
    one.trained.resize(length);
    one.id = i;
    one.record = static_cast<int64_t>(i);
    if (std::ranges::find(one.trained, uint8_t{1}) != one.trained.end())
      sample.samples.push_back(std::move(one));
  }
  if (sample.samples.empty())
    throw DataError(from.file.path + ": its first records have no token that would be trained.");
  sample.stats = data::stats_of(sample.samples);
  return sample;
}

}  // namespace

std::optional<data::Dataset> loss_sample(const ModelArguments& arguments, const std::string& data,
                                         const data::Tokenizer& tokenizer, int64_t context) {
  const auto sample_of = [&](const SampleSource& from) {
    ModelArguments with_template = arguments;
    with_template.chat_template = from.chat_template;
    const auto chat = chat_template_for(with_template, tokenizer);
    return first_samples(from, tokenizer, chat.get(), context);
  };
  if (!data.empty()) {
    SampleSource given;
    given.file.path = data;
    given.chat_template = arguments.chat_template;
    return sample_of(given);
  }
  try {
    return sample_of(of_run(arguments.adapter));
  } catch (const Error& error) {
    log_warning(
        "export: the loss before and after was not measured, since the training data of the "
        "adapter's run are not at hand: " +
        std::string(error.what()) + " Give a file with --data.");
    return std::nullopt;
  }
}

io::Json loss_before_and_after(const data::Dataset& sample, const Session& before,
                               models::Model& after) {
  trainer::EvaluateOptions options;
  options.hooks = before.hooks();
  const auto trained =
      trainer::evaluate_loss(before.model(), sample, before.communicator(), options);
  options.hooks.clear();
  const auto exported = trainer::evaluate_loss(after, sample, before.communicator(), options);
  io::Json json = io::Json::object();
  json.set("samples", trained.num_samples);
  json.set("tokens", trained.num_tokens);
  json.set("before", trained.loss);
  json.set("after", exported.loss);
  json.set("lost", exported.loss - trained.loss);
  char text[160];
  std::snprintf(text, sizeof text, "%.4g as trained, %.4g in the exported weights (%lld samples)",
                trained.loss, exported.loss, static_cast<long long>(trained.num_samples));
  // A tenth of a nat a token is 10 % of the likelihood of each.
  if (exported.loss - trained.loss > 0.1)
    log_warning("export: loss " + std::string(text) +
                ": quantising the merged weights took back what was trained. Train with "
                "'adapter.merge_aware: true' (docs/merging.md), or export with --dtype bfloat16.");
  else
    log_info("export: loss " + std::string(text));
  return json;
}

}  // namespace shardtune::launch
