// compute_dtype int8: every linear of the layers computes in int8 (quant/w8a8.h), whatever its
// format. The exponents that move outliers into the weights come from one forward pass over the
// first samples of a run, and are kept with what was trained, so that a resume and an evaluation
// compute the same.
#pragma once

#include <string>
#include <vector>

#include "models/model.h"

namespace shardtune::models {

/// The exponents of one linear, a letter per input channel: 'a' is quant::W8A8::kMinExponent.
struct Int8Migration {
  std::string linear;  // its path
  std::string exponents;
};

/// Relative error of a linear's outputs that int8 causes: |y_int8 - y| / |y| over all elements.
struct Int8Error {
  std::string linear;
  UnitId unit{};
  double relative = 0.0;
};

/// Makes room for scales at every linear. UnsupportedError: a linear with too many features, or one
/// whose weight is trained.
void enable_int8(Model& model);

/// Sets the scales in a forward pass of the model as stored, with the batch's input magnitudes, or
/// with the exponents of `saved` (empty: none). The batch decides alone: all ranks make the call
/// with the same one and get the same. Errors  those of set_int8_migration
std::vector<Int8Error> prepare_int8(Model& model, const TokenBatch& batch,
                                    const std::vector<Int8Migration>& saved,
                                    const std::string& source);
/// Sets the scales without a batch, unit by unit. `source` is where the exponents come from.
/// Errors  DataError: not the linears of this model, naming the first that differs
void set_int8_migration(Model& model, const std::vector<Int8Migration>& saved,
                        const std::string& source);

/// What the linears compute with; empty where int8 is not enabled.
std::vector<Int8Migration> int8_migration(Model& model);

}  // namespace shardtune::models
