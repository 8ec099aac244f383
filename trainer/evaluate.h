// Evaluation: mean negative log-likelihood per trained token, exact match of greedy answers, and
// choice by likelihood.
// Sums are taken per micro-batch in a fixed order, so the result has the same bits on any number of
// ranks.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "data/chat_template.h"
#include "data/choices.h"
#include "data/dataset.h"
#include "data/tokenizer.h"
#include "models/model.h"
#include "parallel/communicator.h"

namespace shardtune::trainer {

struct EvaluateOptions {
  std::vector<models::Hooks*> hooks;  // the adapter, if any
  /// Of all hooks together, before each sample.
  int64_t num_virtual_tokens() const {
    int64_t count = 0;
    for (const models::Hooks* each : hooks)
      count += each->num_virtual_tokens();
    return count;
  }
  /// Tokens of one micro-batch; part of what fixes the bits.
  int64_t max_tokens = 2048;
  int64_t max_new_tokens = 256;                               // of an answer (exact match)
  int64_t batch_size = 16;                                    // answers decoded together
  std::function<void(int64_t done, int64_t total)> progress;  // samples; may be empty
  /// Runs the walk of a micro-batch or its replay; empty: just so.
  std::function<void(const std::function<void()>& walk)> run;
};

struct LossResult {
  double loss = 0.0;        // mean over trained tokens
  double perplexity = 0.0;  // exp(loss)
  int64_t num_tokens = 0;   // trained tokens
  int64_t num_samples = 0;
};

/// Collective: micro-batch m runs on rank m mod world_size; every rank gets the result.
/// Errors  NonFiniteError: a loss that is NaN or infinite, naming the sample's file and line
LossResult evaluate_loss(models::Model& model, const data::Dataset& dataset,
                         parallel::Communicator& comm, const EvaluateOptions& options);

struct ExactMatchResult {
  double exact_match = 0.0;  // share of answers equal to the expected text
  int64_t num_samples = 0;
  int64_t num_matches = 0;
  std::vector<std::string> answers;  // in order of samples; a wrong one ends where it was decided
};

/// Generates greedily from each record's prompt and compares texts, white space at the ends apart.
/// One rank, single process. Records without an answer (plain text) are a DataError.
ExactMatchResult evaluate_exact_match(models::Model& model, const data::Tokenizer& tokenizer,
                                      const data::ChatTemplate* chat, const data::Dataset& dataset,
                                      const EvaluateOptions& options);

struct ChoiceResult {
  double acc = 0.0;       // share of questions whose right choice is the likeliest
  double acc_norm = 0.0;  // the same of log-likelihoods divided by the choice's characters
  double acc_stderr = 0.0, acc_norm_stderr = 0.0;  // of these means
  int64_t num_questions = 0;
  std::vector<int64_t> chosen;  // in order of questions; the first among equals
  std::vector<std::vector<double>> log_likelihoods;  // of each question's choices
};

/// One rank, single process. Choices of all questions share micro-batches.
/// Errors  NonFiniteError: a likelihood that is NaN or infinite, naming file and line
/// Source  lm-evaluation-harness 0.4: api/task.py (multiple_choice), api/metrics.py (mean_stderr)
ChoiceResult evaluate_choice(models::Model& model,
                             const std::vector<data::ChoiceQuestion>& questions,
                             const EvaluateOptions& options);

}  // namespace shardtune::trainer
