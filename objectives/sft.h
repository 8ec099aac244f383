// Next-token cross-entropy: the objectives "sft" and "pretrain".
#pragma once

#include <memory>

#include "objectives/objective.h"

namespace shardtune::objectives {

std::unique_ptr<Objective> make_next_token();

}  // namespace shardtune::objectives
