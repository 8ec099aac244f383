// Energy that this machine used, by its own counters: the powercap tree of Linux (RAPL), packages
// and the memory that they do not count. Other programs' share is in it.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace shardtune::trainer {

class EnergyMeter {
 public:
  /// Never fails: without a counter that can be read it is not available.
  explicit EnergyMeter(const std::filesystem::path& tree = "/sys/class/powercap");

  bool is_available() const { return !zones_.empty(); }
  /// Why it is not available.
  const std::string& reason() const { return reason_; }

  /// Since the meter was made. To be called at least once an hour: counters turn over. When a
  /// counter cannot be read any more the meter is not available from then on.
  double joules();

 private:
  struct Zone {
    std::filesystem::path folder;
    uint64_t last = 0;   // microjoules
    uint64_t range = 0;  // the counter turns over after this
  };
  void add_zone(const std::filesystem::path& folder);

  std::vector<Zone> zones_;
  std::string reason_;
  double joules_ = 0.0;
};

}  // namespace shardtune::trainer
