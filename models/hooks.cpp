#include "models/hooks.h"

#include "autograd/ops.h"

namespace shardtune::models {

Hooks::Next::Next(Tape& tape, Call call) : call_(std::move(call)) {
  with_low_rank_ = [&tape, made = call_](const Variable& x, const Variable& seen,
                                         const autograd::LowRank& update) {
    return autograd::low_rank_update(tape, made(x), seen, update);
  };
}

}  // namespace shardtune::models
