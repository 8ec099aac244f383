// That SHARDTUNE_MAX_CPU_ISA reaches every dispatch; CMake runs suites once more under it.
#include "core/instruction_set.h"

#include <gtest/gtest.h>
#include <hwy/targets.h>

#include <cstdlib>
#include <string>

#include "core/error.h"
#include "core/topology.h"
#include "kernels/gemm.h"
#include "kernels/gemm_int8.h"

namespace shardtune {
namespace {

std::string wanted() {
  const char* text = std::getenv("SHARDTUNE_MAX_CPU_ISA");
  return text == nullptr ? "" : text;
}

TEST(InstructionSet, DispatchChoosesWhatTheEnvironmentAllows) {
  const std::string features = cpu_features();
  const auto has = [&](const char* name) { return features.find(name) != std::string::npos; };
#if defined(__x86_64__)
  const int64_t targets = hwy::SupportedTargets();
  if (wanted() == "baseline") {
    EXPECT_EQ(targets & (HWY_AVX2 | HWY_AVX3), 0);
    EXPECT_FALSE(has("AVX2"));
  }
  if (wanted() == "avx2") {
    EXPECT_EQ(targets & HWY_AVX3, 0);
    EXPECT_EQ((targets & HWY_AVX2) != 0, has("AVX2"));
    EXPECT_FALSE(has("AVX-512"));
  }
#endif
  if (wanted() == "baseline" || wanted() == "avx2") {
    EXPECT_FALSE(kernels::has_fast_int8());
  }
  if (wanted() == "baseline" || wanted() == "avx2" || wanted() == "avx512") {
    EXPECT_FALSE(kernels::has_fast_bfloat16());
    EXPECT_FALSE(has("BF16"));
  } else {
    EXPECT_EQ(kernels::has_fast_bfloat16(), has("AVX512-BF16") || has("AMX-BF16"));
  }
}

TEST(InstructionSet, AnUnknownWordIsAnError) {
  const std::string before = wanted();
  setenv("SHARDTUNE_MAX_CPU_ISA", "avx3", 1);
  EXPECT_THROW(check_instruction_set_limit(), ConfigError);
  setenv("SHARDTUNE_MAX_CPU_ISA", "avx2", 1);
  EXPECT_NO_THROW(check_instruction_set_limit());
  setenv("SHARDTUNE_MAX_CPU_ISA", "", 1);
  EXPECT_NO_THROW(check_instruction_set_limit());
  if (before.empty())
    unsetenv("SHARDTUNE_MAX_CPU_ISA");
  else
    setenv("SHARDTUNE_MAX_CPU_ISA", before.c_str(), 1);
}

}  // namespace
}  // namespace shardtune
