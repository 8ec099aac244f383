// The vector form behind rope.cpp: one call is one thread's tokens.
#pragma once

#include "kernels/rope.h"

namespace shardtune::kernels::cpu {

void rope_rows(const TensorView& x, const RopeArgs& args, RopeDirection direction, int64_t begin,
               int64_t end);

}  // namespace shardtune::kernels::cpu
