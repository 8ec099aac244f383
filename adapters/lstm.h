// A bidirectional LSTM layer from tape operations, as torch.nn.LSTM computes it: gates i, f, g, o
// in the rows of the weights, state zero before the first token.
#pragma once

#include "autograd/tape.h"

namespace shardtune::adapters {

/// Shapes  weight_ih [4h, in]; weight_hh [4h, h]; bias_ih, bias_hh [4h]
struct LstmWeights {
  autograd::Variable weight_ih, weight_hh, bias_ih, bias_hh;
};

/// x [n,in] f32 -> [n, 2h]: outputs of the forward direction, then of the reverse one.
autograd::Variable bidirectional_lstm(autograd::Tape& tape, const autograd::Variable& x,
                                      const LstmWeights& forward, const LstmWeights& reverse);

}  // namespace shardtune::adapters
