#include <algorithm>
#include <cmath>
#include <span>
#include <string_view>

#include "core/error.h"
#include "data/plan.h"
#include "data/text_split.h"
#include "models/head.h"
#include "trainer/evaluate.h"

namespace shardtune::trainer {
namespace {

/// Log-likelihood of each sample's trained tokens, summed in fp64 in order of tokens.
std::vector<double> log_likelihoods(models::Model& model, const std::vector<data::Sample>& samples,
                                    const EvaluateOptions& options) {
  std::vector<double> sums(samples.size(), 0.0);
  int64_t done = 0;
  for (const data::MicroBatchPlan& micro_batch :
       data::plan_evaluation(samples, options.max_tokens, options.num_virtual_tokens())) {
    const TokenBatch batch = data::collate(samples, micro_batch);
    models::ForwardOptions forward;
    forward.context.batch = &batch;
    forward.hooks = options.hooks;
    autograd::Tape tape(model.store(), autograd::Recording::kOff);
    const models::Variable hidden = model.forward(tape, forward);
    const auto losses = models::head_token_losses(
        model.head(), hidden.value().rows(0, batch.num_tokens()), batch.labels);
    size_t next = 0;
    for (size_t s = 0; s < micro_batch.samples.size(); ++s) {
      double& sum = sums[static_cast<size_t>(micro_batch.samples[s])];
      for (int32_t t = batch.sample_offsets[s]; t < batch.sample_offsets[s + 1]; ++t) {
        if (batch.labels[static_cast<size_t>(t)] != kIgnoreLabel)
          sum -= losses[next++];
      }
    }
    done += std::ssize(micro_batch.samples);
    if (options.progress)
      options.progress(done, std::ssize(samples));
  }
  return sums;
}

/// Characters of a text, as Python counts them.
double num_characters(std::string_view text) {
  int64_t count = 0;
  for (size_t offset = 0; offset < text.size(); ++count)
    offset += static_cast<size_t>(data::decode_code_point(text, offset).length);
  return static_cast<double>(count);
}

/// The first of the largest.
int64_t likeliest(std::span<const double> scores) {
  return std::max_element(scores.begin(), scores.end()) - scores.begin();
}

/// Of the mean of n zeros and ones: the sample's standard deviation over sqrt(n).
double standard_error(double mean, int64_t n) {
  return n > 1 ? std::sqrt(mean * (1.0 - mean) / static_cast<double>(n - 1)) : 0.0;
}

}  // namespace

ChoiceResult evaluate_choice(models::Model& model,
                             const std::vector<data::ChoiceQuestion>& questions,
                             const EvaluateOptions& options) {
  std::vector<data::Sample> samples;
  for (const data::ChoiceQuestion& question : questions) {
    for (const data::Sample& sample : question.samples) {
      samples.push_back(sample);
      samples.back().id = samples.size() - 1;
    }
  }
  const std::vector<double> sums = log_likelihoods(model, samples, options);
  ChoiceResult result;
  size_t next = 0;
  double num_correct = 0.0, num_correct_normalised = 0.0;
  for (const data::ChoiceQuestion& question : questions) {
    const size_t count = question.choices.size();
    const std::vector<double> scores(sums.begin() + static_cast<std::ptrdiff_t>(next),
                                     sums.begin() + static_cast<std::ptrdiff_t>(next + count));
    next += count;
    std::vector<double> per_character;
    for (size_t choice = 0; choice < count; ++choice) {
      if (!std::isfinite(scores[choice]))
        throw NonFiniteError(question.file + ":" + std::to_string(question.line) +
                             ": the likelihood of choice " + std::to_string(choice) +
                             " is NaN or infinite. Check the model's weights and this question.");
      per_character.push_back(scores[choice] / num_characters(question.choices[choice]));
    }
    result.chosen.push_back(likeliest(scores));
    num_correct += result.chosen.back() == question.gold ? 1.0 : 0.0;
    num_correct_normalised += likeliest(per_character) == question.gold ? 1.0 : 0.0;
    result.log_likelihoods.push_back(scores);
  }
  result.num_questions = std::ssize(questions);
  const auto n = static_cast<double>(result.num_questions);
  result.acc = num_correct / n;
  result.acc_norm = num_correct_normalised / n;
  result.acc_stderr = standard_error(result.acc, result.num_questions);
  result.acc_norm_stderr = standard_error(result.acc_norm, result.num_questions);
  return result;
}

}  // namespace shardtune::trainer
