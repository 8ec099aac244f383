#include "core/registry.h"

#include <gtest/gtest.h>

namespace shardtune {
namespace {

const std::vector<std::string> kNames = {"lora_rank", "lora_alpha", "lora_dropout"};

TEST(NearestName, FindsTyposAndSwapsAndRefusesStrangers) {
  EXPECT_EQ(nearest_name("lora_alhpa", kNames), "lora_alpha");
  EXPECT_EQ(nearest_name("lora_rnk", kNames), "lora_rank");
  EXPECT_EQ(nearest_name("loraa_rank", kNames), "lora_rank");
  EXPECT_EQ(nearest_name("learning_rate", kNames), "");
  EXPECT_EQ(nearest_name("", kNames), "");
  EXPECT_EQ(nearest_name(std::string(100'000, 'l'), kNames), "");
  EXPECT_EQ(nearest_name("x", {}), "");
}

TEST(Registry, FindsEntriesAndListsTheKnownOnes) {
  const Registry<int> registry("adapter.method", {{"lora", 1}, {"prefix", 2}});
  EXPECT_EQ(registry.at("prefix"), 2);
  EXPECT_TRUE(registry.contains("lora"));
  EXPECT_FALSE(registry.contains("Lora"));
  EXPECT_EQ(registry.names(), (std::vector<std::string>{"lora", "prefix"}));
  try {
    registry.at("loar");
    FAIL() << "nothing was thrown";
  } catch (const ConfigError& error) {
    EXPECT_STREQ(error.what(),
                 "adapter.method: unknown 'loar'; did you mean 'lora'? Known: lora, prefix.");
    EXPECT_EQ(error.exit_code(), ExitCode::kUsage);
  }
}

}  // namespace
}  // namespace shardtune
