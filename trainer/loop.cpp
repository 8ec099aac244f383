#include "trainer/loop.h"

#include <algorithm>
#include <cstdio>
#include <limits>
#include <numeric>

#include "core/log.h"
#include "trainer/evaluate.h"
#include "trainer/int8_compute.h"
#include "trainer/limit.h"
#include "trainer/memory.h"
#include "trainer/progress.h"
#include "trainer/step.h"

namespace shardtune::trainer {
namespace {

bool is_due(int64_t step, int64_t every) { return every > 0 && step % every == 0; }

std::string number(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.9g", value);
  return text;
}

/// Of this rank since `before`.
RankStep own_share(const ActivityTimes& before) {
  RankStep share{peak_rss_bytes(), activity_times()};
  for (size_t i = 0; i < share.times.size(); ++i)
    share.times[i] -= before[i];
  return share;
}

}  // namespace

Loop::Loop(Job& job, RunFolder& folder, const TrainOptions& options, int64_t first_step)
    : job_(job),
      folder_(folder),
      options_(options),
      first_step_(first_step),
      saved_step_(first_step),
      saver_(job.comm, folder, job.config.checkpoint.save_total_limit) {
  result_.steps = first_step;
  result_.total_steps = job.total_steps;
}

void Loop::run(const std::function<int()>& signal) {
  Progress progress(first_step_, job_.last_step);
  int64_t tokens = 0;
  double seconds = 0.0;
  stop_if_asked(first_step_, signal);
  if (first_step_ < job_.last_step)
    begin_measuring();
  for (int64_t done = first_step_ + 1; done <= job_.last_step; ++done) {
    const StepTraffic before = traffic();
    StepMetrics step = run_step(done - 1);
    // Of the step with the most micro-batches, which is what a plan predicts.
    if (step.result.num_micro_batches > most_micro_batches_) {
      most_micro_batches_ = step.result.num_micro_batches;
      result_.step_traffic = traffic() - before;
    }
    tokens += step.result.num_tokens;
    seconds += step.seconds;
    result_.steps = done;
    result_.final_loss = step.result.loss;
    result_.tokens_per_second = static_cast<double>(tokens) / seconds;

    const bool is_last = done == job_.total_steps;
    const bool evaluated =
        !job_.eval_set.samples.empty() && (is_last || is_due(done, job_.config.eval.eval_steps));
    if (evaluated) {
      if (job_.comm.rank() == 0)
        progress.clear();
      try {
        evaluate();
      } catch (const UnreadableBase& error) {
        log(step);
        save_and_end(done, error);
      }
      step.eval_loss = result_.eval_loss;
    }
    if (evaluated || is_last || is_due(done, job_.config.logging.logging_steps)) {
      log(step);
      if (job_.comm.rank() == 0)
        progress.show({done, step.result.loss, step.result.learning_rate, result_.tokens_per_second,
                       step.limit_fraction});
    }
    if (done == job_.last_step || is_due(done, job_.config.checkpoint.save_steps)) {
      progress.clear();
      if (done == job_.last_step)
        BufferPool::process().trim();  // no step takes them again: room for what is saved
      save(done);
    }
    if (const auto saved = saver_.poll()) {
      progress.clear();
      take_save(saved);
    }
    stop_if_asked(done, signal);
  }
  finish_save();
}

void Loop::begin_measuring() {
  compute_rate_ = measure_compute_rate(job_, first_step_);
  if (job_.comm.local_rank() == 0)
    meter_.emplace();
  if (meter_ && !meter_->is_available())
    log_info("energy: not measured: " + meter_->reason());
}

double Loop::joules() {
  if (!meter_)
    return 0.0;
  const double joules = meter_->joules();
  return meter_->is_available() ? joules : std::numeric_limits<double>::quiet_NaN();
}

StepTraffic Loop::traffic() const {
  return {job_.store->traffic(), job_.states->read_bytes(), job_.states->written_bytes()};
}

StepMetrics Loop::run_step(int64_t step) {
  try {
    const double prefetch_before = job_.store->background_cpu_seconds();
    const double joules_before = joules();
    const ActivityTimes before = activity_times();
    StepMetrics metrics;
    metrics.step = step + 1;
    metrics.result = train_step(job_, step);
    metrics.ranks = {own_share(before)};
    metrics.ranks[0].joules = joules() - joules_before;
    const ActivityTimes& times = metrics.ranks[0].times;
    metrics.seconds = std::accumulate(times.begin(), times.end(), 0.0);
    metrics.prefetch_cpu_seconds = job_.store->background_cpu_seconds() - prefetch_before;
    metrics.limit_fraction = metrics.result.flops.sum() / (compute_rate_ * metrics.seconds);
    return metrics;
  } catch (const UnreadableBase& error) {
    save_and_end(step, error);
  }
}

void Loop::save_and_end(int64_t step, const UnreadableBase& error) {
  log_error(std::string(error.what()) + " Saving the state after step " + std::to_string(step) +
            ".");
  save(step);
  finish_save();
  throw Error(error.exit_code(),
              std::string(error.what()) +
                  (saved_step_ == step && step > 0
                       ? " The checkpoint of step " + std::to_string(step) + " is saved."
                       : " Nothing new was to be saved or could be."));
}

void Loop::evaluate() {
  EvaluateOptions options;
  options.hooks = {job_.adapter.get()};
  options.run = [this](const std::function<void()>& walk) { run_walk(job_, walk); };
  const LossResult loss = evaluate_loss(*job_.model, job_.eval_set, job_.comm, options);
  result_.eval_loss = loss.loss;
  result_.has_eval = true;
  log_info("evaluation: loss " + number(loss.loss) + " over " + std::to_string(loss.num_tokens) +
           " tokens of " + std::to_string(loss.num_samples) + " samples");
}

void Loop::log(StepMetrics metrics) {
  metrics.ranks = job_.comm.all_gather_value(metrics.ranks[0]);
  result_.peak_rss_bytes =
      std::ranges::max(metrics.ranks, {}, &RankStep::peak_rss_bytes).peak_rss_bytes;
  if (job_.comm.rank() != 0)
    return;
  try {
    write_records(metrics);
  } catch (const WriteError& error) {
    note_write_failure(error.what());
  }
}

void Loop::write_records(const StepMetrics& metrics) {
  folder_.append_metrics(metrics_line(metrics));
  if (!job_.config.logging.tensorboard)
    return;
  if (!events_)
    events_.emplace(folder_.path() / kEventsFolder, first_step_);
  events_->add(metrics.step, scalars_of(metrics, job_.plan->epoch_of_step(metrics.step)));
}

void Loop::note_write_failure(const std::string& what) {
  // Once is enough to read; the exit code tells it at the end.
  if (result_.exit_code == ExitCode::kOk)
    log_warning(what + " Training goes on; the run will end with code 73.");
  else
    log_warning(what);
  result_.exit_code = ExitCode::kCannotWrite;
}

Checkpoint Loop::collect(int64_t step) {
  Checkpoint checkpoint;
  checkpoint.step = step;
  checkpoint.seed = job_.config.training.seed;
  checkpoint.config_sha256 = config_hash(job_.config);
  checkpoint.base_sha256 = job_.base_sha256;
  checkpoint.identity = options_.identity;
  checkpoint.config = resume_keys(job_.config);
  checkpoint.hook_state = job_.adapter->named_state();
  for (models::NamedState& state : int8_states(*job_.model))
    checkpoint.hook_state.push_back(std::move(state));
  checkpoint.optimizer = job_.states->gather(job_.comm);
  checkpoint.adapter = read_trainables(*job_.store, job_.comm);
  return checkpoint;
}

void Loop::save(int64_t step) {
  if (step == saved_step_ || step == saver_.step_under_way())
    return;
  finish_save();
  check_weights_finite(job_, step);
  saver_.start(step, collect(step));
}

void Loop::finish_save() { take_save(saver_.finish()); }

void Loop::take_save(const std::optional<SaveResult>& result) {
  if (!result)
    return;
  if (!result->write_error.empty()) {
    result_.exit_code = ExitCode::kCannotWrite;
    log_warning("checkpoint of step " + std::to_string(result->step) +
                " was not saved: " + result->write_error +
                " Training goes on with the previous one; the run will end with code 73.");
    return;
  }
  saved_step_ = result->step;
  log_info("saved " + (folder_.path() / ("checkpoint-" + std::to_string(result->step))).string());
}

void Loop::stop_if_asked(int64_t step, const std::function<int()>& signal) {
  const int64_t received = job_.comm.all_reduce_max(signal());
  if (received == 0 || (step == job_.last_step && step > first_step_))
    return;
  log_info("signal " + std::to_string(received) + ": saving after step " + std::to_string(step));
  save(step);
  finish_save();
  if (saved_step_ != step && step > 0)
    throw WriteError("stopped by signal " + std::to_string(received) + " after step " +
                     std::to_string(step) + ", but the checkpoint could not be written.");
  throw PreemptedError("stopped by signal " + std::to_string(received) + " after step " +
                       std::to_string(step) + ". Run the same command to go on.");
}

}  // namespace shardtune::trainer
