// What one optimizer step moves: between ranks, and to and from NVMe. Counted in a run, predicted
// in a plan.
#pragma once

#include <cstdint>

#include "parallel/traffic.h"

namespace shardtune::trainer {

struct StepTraffic {
  parallel::StoreTraffic store;
  int64_t states_read = 0;  // optimizer states on NVMe
  int64_t states_written = 0;

  int64_t sent_bytes() const {
    return store.units.sent + store.rows.sent + store.gradients.sent + store.weights.sent;
  }
  int64_t received_bytes() const {
    return store.units.received + store.rows.received + store.gradients.received +
           store.weights.received;
  }
  int64_t read_bytes() const { return store.units_read + store.rows_read + states_read; }
  StepTraffic operator-(const StepTraffic& other) const {
    return {store - other.store, states_read - other.states_read,
            states_written - other.states_written};
  }
};

}  // namespace shardtune::trainer
