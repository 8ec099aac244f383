#include "trainer/energy.h"

#include <algorithm>
#include <fstream>
#include <optional>

namespace shardtune::trainer {
namespace {

namespace fs = std::filesystem;

std::optional<uint64_t> read_number(const fs::path& file) {
  std::ifstream in(file);
  uint64_t value = 0;
  if (!(in >> value))
    return std::nullopt;
  return value;
}

std::string read_word(const fs::path& file) {
  std::ifstream in(file);
  std::string word;
  in >> word;
  return word;
}

/// Zones stand side by side, sub-zones as intel-rapl:0:1. "psys" counts packages once more, "core"
/// and "uncore" are parts of a package.
bool is_counted(const std::string& name) { return name.starts_with("package") || name == "dram"; }

}  // namespace

EnergyMeter::EnergyMeter(const fs::path& tree) {
  std::error_code error;
  std::vector<fs::path> folders;
  for (fs::directory_iterator entry(tree, error), end; !error && entry != end;
       entry.increment(error))
    folders.push_back(entry->path());
  std::ranges::sort(folders);
  reason_ = tree.string() + " has no counter of a package";
  for (const fs::path& folder : folders) {
    // intel-rapl-mmio shows the same packages a second time.
    if (folder.filename().string().starts_with("intel-rapl:"))
      add_zone(folder);
  }
}

void EnergyMeter::add_zone(const fs::path& folder) {
  if (!is_counted(read_word(folder / "name")))
    return;
  const auto last = read_number(folder / "energy_uj");
  const auto range = read_number(folder / "max_energy_range_uj");
  if (last && range && *range > 0)
    zones_.push_back({folder, *last, *range});
  else
    reason_ = (folder / "energy_uj").string() + " cannot be read; it usually takes root";
}

double EnergyMeter::joules() {
  for (Zone& zone : zones_) {
    const auto now = read_number(zone.folder / "energy_uj");
    if (!now) {
      reason_ = (zone.folder / "energy_uj").string() + " cannot be read any more";
      zones_.clear();
      break;
    }
    const uint64_t used = *now >= zone.last         ? *now - zone.last
                          : zone.last <= zone.range ? zone.range - zone.last + *now
                                                    : 0;
    joules_ += static_cast<double>(used) * 1e-6;
    zone.last = *now;
  }
  return joules_;
}

}  // namespace shardtune::trainer
