// Everything one run works with, in the order in which it comes to be: inputs that every rank can
// check alone, then what the ranks build together.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "adapters/adapter.h"
#include "data/chat_template.h"
#include "data/dataset.h"
#include "data/plan.h"
#include "data/tokenizer.h"
#include "models/model.h"
#include "models/model_source.h"
#include "objectives/objective.h"
#include "optim/schedule.h"
#include "parallel/communicator.h"
#include "parallel/sharded_store.h"
#include "trainer/checkpoint.h"
#include "trainer/config.h"
#include "trainer/optimizer_states.h"

namespace shardtune::trainer {

struct Job {
  Job(const RunConfig& run_config, parallel::Communicator& communicator)
      : config(run_config), comm(communicator) {}

  const RunConfig& config;
  parallel::Communicator& comm;
  SwapSettings swap;

  // Filled by check_inputs(): local, the same on every rank.
  std::unique_ptr<models::ModelSource> source;
  std::unique_ptr<data::Tokenizer> tokenizer;
  std::unique_ptr<data::ChatTemplate> chat;  // null: records are taken as raw text
  data::Dataset train_set;
  data::Dataset eval_set;  // empty: no evaluation
  std::unique_ptr<data::DataPlan> plan;
  std::unique_ptr<objectives::Objective> objective;
  std::unique_ptr<optim::Schedule> schedule;
  DType compute_dtype = DType::kFloat32;
  int64_t total_steps = 0;  // of the schedule
  int64_t last_step = 0;    // where this process ends: total_steps or stop_at_step

  // Filled by agree_on_base().
  std::string base_sha256;

  // Filled by load().
  std::unique_ptr<io::SwapFile> base_file;  // null: the frozen base is in memory
  std::unique_ptr<parallel::ShardedParameterStore> store;
  std::unique_ptr<models::Model> model;
  std::unique_ptr<adapters::Adapter> adapter;
  std::unique_ptr<io::SwapFile> state_file;  // null: states are in memory
  std::unique_ptr<OptimizerStates> states;
};

/// The options of the data plan that the configuration asks for.
data::PlanOptions plan_options(const RunConfig& config);

/// The part of check_inputs() that reads data: opens the model's header, tokenises, plans.
void read_data(Job& job);
/// DataError when no end token would ever be trained (data/audit.h).
void require_trainable(const Job& job);

/// Opens the model's header, tokenises, plans. No collective: what is wrong in the inputs is told
/// by every rank that sees it. Errors  those of model, tokenizer, template and data; ConfigError:
/// max_length above the model's
///         context
void check_inputs(Job& job);

/// RankMismatchError when ranks were started with another config, program or data.
void agree_on_inputs(Job& job, const std::string& identity);
/// Reads and hashes the weights: RankMismatchError when the ranks have other ones.
void agree_on_base(Job& job);

/// Loads and quantises the base, attaches the adapter, shards, makes zero optimizer states.
/// `start`: the checkpoint that will be restored. Where an adapter's shapes follow from data, a
/// start from the beginning loads the base twice. Errors  DataError: a checkpoint without the
/// shapes of its adapter
void load(Job& job, const CheckpointState* start = nullptr);

/// Runs a sample of the data through the model with only these hooks. Collective.
void forward_sample(models::Model& model, const TokenBatch& sample, models::Hooks& hooks);

/// The options of a forward pass in training, without its batch.
models::ForwardOptions forward_options(const Job& job, int64_t step);

}  // namespace shardtune::trainer
