// The readers of all methods' options, for registry.cpp; each is defined in its method's file.
#pragma once

#include <memory>

#include "adapters/adapter.h"

namespace shardtune::adapters {

std::unique_ptr<AdapterOptions> read_adalora(const OptionReader& reader);
std::unique_ptr<AdapterOptions> read_adaption_prompt(const OptionReader& reader);
std::unique_ptr<AdapterOptions> read_bitfit(const OptionReader& reader);
std::unique_ptr<AdapterOptions> read_boft(const OptionReader& reader);
std::unique_ptr<AdapterOptions> read_bottleneck(const OptionReader& reader);
std::unique_ptr<AdapterOptions> read_freeze(const OptionReader& reader);
std::unique_ptr<AdapterOptions> read_full(const OptionReader& reader);
std::unique_ptr<AdapterOptions> read_ia3(const OptionReader& reader);
std::unique_ptr<AdapterOptions> read_loha(const OptionReader& reader);
std::unique_ptr<AdapterOptions> read_lokr(const OptionReader& reader);
std::unique_ptr<AdapterOptions> read_lora(const OptionReader& reader);
std::unique_ptr<AdapterOptions> read_multitask_prompt_tuning(const OptionReader& reader);
std::unique_ptr<AdapterOptions> read_oft(const OptionReader& reader);
std::unique_ptr<AdapterOptions> read_p_tuning(const OptionReader& reader);
std::unique_ptr<AdapterOptions> read_prefix_tuning(const OptionReader& reader);
std::unique_ptr<AdapterOptions> read_prompt_tuning(const OptionReader& reader);
std::unique_ptr<AdapterOptions> read_vera(const OptionReader& reader);

}  // namespace shardtune::adapters
