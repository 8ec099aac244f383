// The reader of energy counters on made-up trees as Linux lays them out.
#include "trainer/energy.h"

#include <gtest/gtest.h>

#include "tests/trainer/tiny_model.h"

namespace shardtune::trainer {
namespace {

using testing::TempFolder;
using testing::write_text;
namespace fs = std::filesystem;

class Energy : public ::testing::Test {
 protected:
  void zone(const std::string& folder, const std::string& name, const std::string& microjoules,
            const std::string& range = "262143328850") const {
    fs::create_directories(tree_.path() / folder);
    write_text(tree_.path() / folder / "name", name + "\n");
    write_text(tree_.path() / folder / "energy_uj", microjoules + "\n");
    write_text(tree_.path() / folder / "max_energy_range_uj", range + "\n");
  }
  TempFolder tree_;
};

TEST_F(Energy, AddsPackagesAndMemoryAndNothingTwice) {
  zone("intel-rapl:0", "package-0", "1000000");
  zone("intel-rapl:0:0", "core", "500000");
  zone("intel-rapl:0:1", "dram", "100000");
  zone("intel-rapl:1", "package-1", "2000000");
  zone("intel-rapl:2", "psys", "9000000");
  zone("intel-rapl-mmio:0", "package-0", "1000000");
  fs::create_directories(tree_.path() / "intel-rapl");  // the control type: no zone
  EnergyMeter meter(tree_.path());
  ASSERT_TRUE(meter.is_available());
  EXPECT_EQ(meter.joules(), 0.0);
  zone("intel-rapl:0", "package-0", "4000000");
  zone("intel-rapl:0:0", "core", "3000000");
  zone("intel-rapl:0:1", "dram", "350000");
  zone("intel-rapl:1", "package-1", "2500000");
  zone("intel-rapl:2", "psys", "19000000");
  zone("intel-rapl-mmio:0", "package-0", "4000000");
  EXPECT_DOUBLE_EQ(meter.joules(), 3.0 + 0.25 + 0.5);
  EXPECT_DOUBLE_EQ(meter.joules(), 3.75);
}

TEST_F(Energy, CountersTurnOver) {
  zone("intel-rapl:0", "package-0", "9000000", "10000000");
  EnergyMeter meter(tree_.path());
  zone("intel-rapl:0", "package-0", "500000", "10000000");
  EXPECT_DOUBLE_EQ(meter.joules(), 1.5);
  zone("intel-rapl:0", "package-0", "600000", "10000000");
  EXPECT_DOUBLE_EQ(meter.joules(), 1.6);
}

TEST_F(Energy, WithoutACounterItSaysWhy) {
  EnergyMeter none(tree_.path() / "nothing");
  EXPECT_FALSE(none.is_available());
  EXPECT_NE(none.reason().find("no counter"), std::string::npos);
  EXPECT_EQ(none.joules(), 0.0);
  zone("intel-rapl:0", "package-0", "not a number");
  EnergyMeter bad(tree_.path());
  EXPECT_FALSE(bad.is_available());
  EXPECT_NE(bad.reason().find("cannot be read"), std::string::npos) << bad.reason();
}

TEST_F(Energy, ACounterThatGoesAwayEndsIt) {
  zone("intel-rapl:0", "package-0", "1000");
  EnergyMeter meter(tree_.path());
  fs::remove(tree_.path() / "intel-rapl:0" / "energy_uj");
  meter.joules();
  EXPECT_FALSE(meter.is_available());
  EXPECT_NE(meter.reason().find("any more"), std::string::npos);
}

}  // namespace
}  // namespace shardtune::trainer
