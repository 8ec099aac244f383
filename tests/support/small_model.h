// A golden model of tests/golden on a store of one rank, and reading of its expected tensors.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "core/token_batch.h"
#include "io/safetensors.h"
#include "models/model.h"
#include "parallel/communicator.h"
#include "parallel/sharded_store.h"

namespace shardtune::testing {

/// A path under tests/golden; a name alone is one of tests/golden/llama.
inline std::string golden(const std::string& name) {
  const std::string folder = name.find('/') == std::string::npos ? "llama/" : "";
  return std::string(SHARDTUNE_SOURCE_DIR) + "/tests/golden/" + folder + name;
}
inline std::string golden_llama(const std::string& name) { return golden(name); }

inline std::vector<float> read_tensor(const io::TensorSource& file, const std::string& name) {
  const io::TensorInfo* info = file.find(name);
  if (info == nullptr)
    throw std::runtime_error("golden tensor " + name + " is missing");
  int64_t numel = 1;
  for (const int64_t extent : info->shape)
    numel *= extent;
  std::vector<float> values(static_cast<size_t>(numel));
  file.read_float32(*info, 0, numel, values.data());
  return values;
}

/// The largest magnitude; 0 of none.
inline double largest(const std::vector<float>& values) {
  double result = 0.0;
  for (const float value : values)
    result = std::max(result, static_cast<double>(std::abs(value)));
  return result;
}

inline std::vector<int32_t> read_int32(const io::TensorSource& file, const std::string& name) {
  const io::TensorInfo* info = file.find(name);
  const auto bytes = file.bytes(*info);
  std::vector<int32_t> values(bytes.size() / 4);
  std::memcpy(values.data(), bytes.data(), bytes.size());
  return values;
}

/// Sequences laid end to end; labels are shifted here (labels_i of the golden are not).
inline TokenBatch make_batch(const std::vector<std::vector<int32_t>>& sequences,
                             const std::vector<std::vector<int32_t>>& labels = {}) {
  TokenBatch batch;
  batch.sample_offsets.push_back(0);
  for (size_t s = 0; s < sequences.size(); ++s) {
    const std::vector<int32_t>& ids = sequences[s];
    for (size_t t = 0; t < ids.size(); ++t) {
      batch.ids.push_back(ids[t]);
      batch.positions.push_back(static_cast<int32_t>(t));
      batch.token_indices.push_back(static_cast<int32_t>(t));
      int32_t label = kIgnoreLabel;
      if (t + 1 < ids.size())
        label = labels.empty() ? ids[t + 1] : labels[s][t + 1];
      batch.labels.push_back(label);
      batch.num_trained_tokens += label != kIgnoreLabel ? 1 : 0;
    }
    batch.sample_offsets.push_back(static_cast<int32_t>(batch.ids.size()));
    batch.sample_ids.push_back(s);
  }
  return batch;
}

struct SmallModel {
  std::unique_ptr<parallel::Communicator> comm = parallel::make_single_communicator();
  parallel::ShardedParameterStore store{*comm, parallel::ZeroStage::k0};
  std::unique_ptr<models::ModelSource> source;
  std::unique_ptr<models::Model> model;

  explicit SmallModel(const std::string& name, models::LoadOptions options = {}) {
    source = models::open_model_source(testing::golden(name));
    model = models::load_model(*source, store, options);
  }

  models::ForwardOptions forward_options(const TokenBatch& batch) const {
    models::ForwardOptions options;
    options.context.batch = &batch;
    return options;
  }

  /// Gradients of the step just run, by trainable name, as one rank holds them.
  std::vector<float> gradient(const std::string& name) {
    for (const auto& segment : store.segments()) {
      if (store.spec(segment.id).name == name)
        return {segment.gradient.begin(), segment.gradient.end()};
    }
    return {};
  }
};

}  // namespace shardtune::testing
