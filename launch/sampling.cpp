#include "launch/sampling.h"

#include "core/error.h"

namespace shardtune::launch {

void add_sampling_options(CommandLine& line) {
  line.value("temperature", "T", "0 (default): greedy; above: sample from softmax(logits / T)");
  line.value("top-k", "N", "sample among the N most probable tokens alone");
  line.value("top-p", "P", "sample among the fewest tokens whose probability reaches P alone");
  line.value("seed", "N", "of the draws (default 0); the same seed gives the same text");
}

inference::SamplingOptions sampling_options(const CommandLine& line) {
  inference::SamplingOptions sampling;
  sampling.temperature = line.number_or("temperature", 0.0, {0.0, 100.0});
  sampling.top_k = line.integer_or("top-k", 0, {1, 1 << 28});
  sampling.top_p = line.number_or("top-p", 1.0, {1e-9, 1.0});
  sampling.seed = static_cast<uint64_t>(line.integer_or("seed", 0, {0, int64_t{1} << 62}));
  for (const char* name : {"top-k", "top-p", "seed"}) {
    if (sampling.is_greedy() && line.has(name))
      throw ConfigError(std::string("--") + name +
                        ": expected --temperature above 0 beside it, found greedy decoding, which "
                        "draws nothing. Add for example --temperature 0.7.");
  }
  return sampling;
}

}  // namespace shardtune::launch
