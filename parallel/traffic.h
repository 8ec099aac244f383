// What a rank moved: bytes between ranks as the callers of the communicator gave them, and bytes of
// the frozen base read from NVMe. Small calls that only compare or agree (headers, marks, norms,
// losses) are not counted. A run counts them; parallel/planned_store.h predicts them.
#pragma once

#include <cstdint>

namespace shardtune::parallel {

struct Traffic {
  int64_t sent = 0;
  int64_t received = 0;
  Traffic& operator+=(const Traffic& other) {
    sent += other.sent;
    received += other.received;
    return *this;
  }
  Traffic operator-(const Traffic& other) const {
    return {sent - other.sent, received - other.received};
  }
  bool operator==(const Traffic&) const = default;
};

struct StoreTraffic {
  Traffic units;           // stage 3: gathers
  Traffic rows;            // stage 3: rows of tables, as the tokens want them
  Traffic gradients;       // leaves to their owners; at stages 0 and 1 the finished gradient
  Traffic weights;         // stages 1 and 2: updated weights
  int64_t units_read = 0;  // from NVMe, with the padding of blocks
  int64_t rows_read = 0;   // from NVMe, the blocks (stage 3: units) that hold the rows
  StoreTraffic operator-(const StoreTraffic& other) const {
    return {units - other.units,           rows - other.rows,
            gradients - other.gradients,   weights - other.weights,
            units_read - other.units_read, rows_read - other.rows_read};
  }
  bool operator==(const StoreTraffic&) const = default;
};

}  // namespace shardtune::parallel
