#include "trainer/event_file.h"

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <algorithm>
#include <csignal>
#include <limits>
#include <sstream>

#include "core/error.h"
#include "tests/trainer/small_run.h"
#include "trainer/run_folder.h"

namespace shardtune::trainer {
namespace {

using testing::read_text;
using testing::SmallRun;

std::string golden_bytes() {
  return read_text(fs::path(SHARDTUNE_SOURCE_DIR) / "tests/golden/tensorboard/events.tfevents");
}

TEST(EventFile, WritesTheBytesOfTensorBoard) {
  std::string long_tag = "eval/";  // its length takes two bytes
  for (int i = 0; i < 40; ++i)
    long_tag += "long";
  const std::string written =
      event_record(version_event(1764324000.25)) + event_record(restart_event(1764324000.5, 301)) +
      event_record(scalars_event(1764324001.0, 301,
                                 {{"train/loss", 2.5f}, {"train/learning_rate", 2e-4f}})) +
      event_record(scalars_event(
          1764324002.0, 123456789012,
          {{"train/loss", std::numeric_limits<float>::infinity()}, {long_tag, -0.0f}}));
  EXPECT_EQ(written, golden_bytes());
}

/// Files of a folder in the order in which TensorBoard reads them.
std::vector<fs::path> event_files(const fs::path& folder) {
  std::vector<fs::path> files;
  for (const auto& entry : fs::directory_iterator(folder))
    files.push_back(entry.path());
  std::sort(files.begin(), files.end());
  return files;
}

size_t count_of(const std::string& text, const std::string& part) {
  size_t count = 0;
  for (size_t at = 0; (at = text.find(part, at)) != std::string::npos; ++at)
    ++count;
  return count;
}

TEST(EventFile, NamesAreNewAndFirstRecordTellsTheVersion) {
  const testing::TempFolder folder;
  {
    EventFile first(folder.path() / "events", 0);
    EventFile second(folder.path() / "events", 4);
    first.add(1, {{"a", 1.0f}});
  }
  const auto files = event_files(folder.path() / "events");
  ASSERT_EQ(files.size(), 2u);
  for (const fs::path& file : files) {
    EXPECT_TRUE(file.filename().string().starts_with("events.out.tfevents.")) << file;
    EXPECT_EQ(read_text(file).find("brain.Event:2"), 12u + 9u + 2u);
  }
  EXPECT_THROW(EventFile("/proc/nothing", 0), WriteError);
}

TEST(EventFile, ARecordThatDoesNotFitIsTakenBack) {
  const testing::TempFolder folder;
  EventFile file(folder.path(), 0);
  file.add(1, {{"a", 1.0f}});
  const fs::path path = event_files(folder.path()).at(0);
  const std::string before = read_text(path);
  rlimit old{};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &old), 0);
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  const rlimit tight{before.size() + 10, old.rlim_max};
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &tight), 0);
  EXPECT_THROW(file.add(2, {{"a", 2.0f}}), WriteError);
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &old), 0);
  std::signal(SIGXFSZ, handler);
  EXPECT_EQ(read_text(path), before);
  file.add(2, {{"a", 2.0f}});
  EXPECT_TRUE(read_text(path).starts_with(before));
}

TEST(EventFile, OfARunHoldsItsStepsAndAResumeStartsANewOne) {
  const SmallRun small;
  const std::vector<std::string> on = {"logging.tensorboard=true"};
  small.run(small.config("off"));
  EXPECT_FALSE(fs::exists(small.path("off") / kEventsFolder));
  small.run(small.config("run", {on[0], "training.stop_at_step=2"}), 2);
  const fs::path folder = small.path("run") / kEventsFolder;
  ASSERT_EQ(event_files(folder).size(), 1u);
  const std::string first = read_text(event_files(folder)[0]);
  for (const char* tag : {"train/loss", "train/grad_norm", "train/learning_rate", "train/epoch",
                          "train/tokens_per_second"})
    EXPECT_EQ(count_of(first, tag), 2u) << tag;
  EXPECT_EQ(count_of(first, "eval/loss"), 0u);
  small.run(small.config("run", on));
  ASSERT_EQ(event_files(folder).size(), 2u);
  std::string second;
  for (const fs::path& file : event_files(folder)) {
    if (read_text(file) != first)
      second = read_text(file);
  }
  EXPECT_EQ(count_of(second, "train/loss"), 2u);
  EXPECT_EQ(count_of(second, "eval/loss"), 1u);
  const std::string restart = restart_event(0.0, 3).substr(9);  // behind the time
  EXPECT_NE(second.find(restart), std::string::npos);
  EXPECT_EQ(first.find(restart), std::string::npos);
}

}  // namespace
}  // namespace shardtune::trainer
