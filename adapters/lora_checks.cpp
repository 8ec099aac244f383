#include "adapters/lora_checks.h"

#include <algorithm>

namespace shardtune::adapters {

using models::BaseLinear;

void check_loftq(const LoraOptions& options, const BaseLinear& linear) {
  const std::string format(linear.weight().format());
  const int64_t bits = format == "int8" ? 8 : format == "nf4" || format == "fp4" ? 4 : 0;
  if (bits == 0)
    throw ConfigError("adapter.init_lora_weights: loftq gives back what quantisation takes, but " +
                      linear.path() + " is kept as it is (quantization.method " + format +
                      "). Use kaiming, or quantization.method nf4, fp4 or int8.");
  if (options.loftq_bits > 0 && options.loftq_bits != bits)
    throw ConfigError("adapter.loftq_config: loftq_bits: expected " + std::to_string(bits) +
                      " (quantization.method " + format + "), found " +
                      std::to_string(options.loftq_bits) + ".");
}

// A block with a minimum of its own takes a change in it that is the same for the whole block.
void check_groups(const LoraOptions& options, const BaseLinear& linear) {
  const int64_t group = options.qalora_group_size;
  const int64_t block = linear.weight().columns_per_minimum();
  const auto refuse = [&](const std::string& expected) {
    throw ConfigError("adapter.qalora_group_size: expected " + expected + ", found " +
                      std::to_string(group) + " (" + linear.path() + ").");
  };
  if (linear.in_features() % group != 0)
    refuse("a divisor of " + std::to_string(linear.in_features()) + " inputs");
  if (block > 0 && group % block != 0 && options.is_new)
    refuse("a multiple of " + std::to_string(block) +
           ", the columns of a block of the file that is kept, so that the merge changes minima of "
           "blocks alone");
  const int64_t rank = options.rank_of(linear.path());
  if (rank > options.columns_of(linear.in_features()) && options.is_new) {
    throw ConfigError("adapter.lora_rank: expected at most " +
                      std::to_string(options.columns_of(linear.in_features())) +
                      ", the groups of " + std::to_string(group) + " inputs of " + linear.path() +
                      ", found " + std::to_string(rank) + ".");
  }
}

void check_tables(const LoraOptions& options, const TargetTables& paths,
                  const models::VocabularyTable& head) {
  if (options.merge_aware)
    throw UnsupportedError(
        "adapter.merge_aware: embedding and head are kept as they are, so no merge rounds them: "
        "expected linears of layers alone among target_modules. Leave one of them out.");
  if (options.qalora_group_size > 0)
    throw UnsupportedError(
        "adapter.use_qalora: is there for linears of layers alone, not for the embedding or the "
        "head among target_modules. Leave one of them out.");
  if (options.use_dora)
    throw UnsupportedError(
        "adapter.use_dora: is there for linears of layers alone, not for the embedding or the head "
        "among target_modules. Leave one of them out.");
  if (options.init != LoraInit::kKaiming && options.init != LoraInit::kGaussian)
    throw UnsupportedError(
        "adapter.init_lora_weights: expected kaiming or gaussian with the embedding or the head "
        "among target_modules: the other starts are made of the weight or the inputs of a linear.");
  const int64_t narrow = std::min(head.vocab_size(), head.hidden_size());
  for (const std::string& path : {paths.embedding, paths.head}) {
    if (options.is_new && !path.empty() && options.rank_of(path) > narrow)
      throw ConfigError("adapter.lora_rank: expected at most " + std::to_string(narrow) +
                        " (the narrow side of " + path + "), found " +
                        std::to_string(options.rank_of(path)) + ".");
  }
}

}  // namespace shardtune::adapters
