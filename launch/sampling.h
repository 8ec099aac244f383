// How text is generated, as generate and chat are asked for it on the command line.
#pragma once

#include "inference/generate.h"
#include "launch/command_line.h"

namespace shardtune::launch {

/// --temperature --top-k --top-p --seed.
void add_sampling_options(CommandLine& line);
/// ConfigError: a value out of range, or an option that does nothing without a temperature.
inference::SamplingOptions sampling_options(const CommandLine& line);

}  // namespace shardtune::launch
