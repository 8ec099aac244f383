#include "core/error.h"

namespace shardtune::detail {

void assertion_failed(const char* expression, const char* file, int line) {
  throw ArgumentError(std::string(file) + ":" + std::to_string(line) + ": internal check failed: " +
                      expression + ". This is a bug of shardtune; please report it with the log.");
}

}  // namespace shardtune::detail
