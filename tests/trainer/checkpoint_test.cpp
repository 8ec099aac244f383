#include "trainer/checkpoint.h"

#include <gtest/gtest.h>

#include <fstream>
#include <limits>

#include "core/error.h"
#include "tests/trainer/tiny_model.h"
#include "tests/trainer/whole_checkpoint.h"
#include "trainer/manifest.h"
#include "trainer/run_folder.h"

namespace shardtune::trainer {
namespace {

using testing::read_checkpoint;
using testing::read_text;
using testing::TempFolder;
using testing::write_text;

Checkpoint example(int64_t step) {
  Checkpoint checkpoint;
  checkpoint.step = step;
  checkpoint.seed = 42;
  checkpoint.config_sha256 = "c";
  checkpoint.base_sha256 = "b";
  checkpoint.identity = "test 1";
  checkpoint.config = {{"training.seed", "42"}, {"data.train", "[{path: \"a\"}]"}};
  checkpoint.hook_state = {{"state", std::string("\0\x01\xff", 3)}};
  std::vector<float> values(300'000);  // more than one block of 1 MiB
  for (size_t i = 0; i < values.size(); ++i)
    values[i] = static_cast<float>(i) * 0.25f + static_cast<float>(step);
  checkpoint.adapter = {{"a.weight", {3}, {1.0f, 2.0f, 3.0f}}};
  checkpoint.optimizer = {{"a.weight.exp_avg", {3000, 100}, values}};
  return checkpoint;
}

fs::path save(const fs::path& folder, int64_t step) {
  write_partial_checkpoint(folder, example(step));
  return commit_checkpoint(folder, step);
}

TEST(Checkpoint, ReadsBackWhatWasWritten) {
  const TempFolder folder;
  const fs::path path = save(folder.path(), 12);
  EXPECT_EQ(path.filename(), "checkpoint-12");
  const Checkpoint read = read_checkpoint(path);
  const Checkpoint written = example(12);
  EXPECT_EQ(read.step, 12);
  EXPECT_EQ(read.seed, 42u);
  EXPECT_EQ(read.base_sha256, "b");
  EXPECT_EQ(read.identity, "test 1");
  EXPECT_EQ(read.config, written.config);
  ASSERT_EQ(read.hook_state.size(), 1u);
  EXPECT_EQ(read.hook_state[0].bytes, written.hook_state[0].bytes);
  ASSERT_EQ(read.optimizer.size(), 1u);
  EXPECT_EQ(read.optimizer[0].values, written.optimizer[0].values);
  EXPECT_EQ(read.optimizer[0].shape, written.optimizer[0].shape);
  EXPECT_EQ(read.adapter[0].values, written.adapter[0].values);
}

// One flipped bit at places spread over every file, and truncation: always detected, and the
// message names the file; the previous checkpoint is used.
TEST(Checkpoint, EveryDamageIsDetectedAndThePreviousOneIsUsed) {
  const TempFolder folder;
  const fs::path previous = save(folder.path(), 5);
  const fs::path newest = save(folder.path(), 10);
  ASSERT_EQ(find_newest_checkpoint(folder.path()), newest);
  for (const auto& entry : fs::directory_iterator(newest)) {
    const std::string whole = read_text(entry.path());
    ASSERT_FALSE(whole.empty());
    const std::string name = entry.path().filename().string();
    for (int i = 0; i < 25; ++i) {
      std::string flipped = whole;
      const size_t at = whole.size() * static_cast<size_t>(i) / 25;
      flipped[at] = static_cast<char>(flipped[at] ^ (1 << (i % 8)));
      write_text(entry.path(), flipped);
      try {
        verify_folder(newest);
        FAIL() << name << ": flip at byte " << at << " was not seen";
      } catch (const Error& error) {
        EXPECT_NE(std::string(error.what()).find(name), std::string::npos) << error.what();
      }
      if (i % 8 == 0) {
        EXPECT_EQ(find_newest_checkpoint(folder.path()), previous);
      }
      write_text(entry.path(), whole.substr(0, at));
      EXPECT_THROW(verify_folder(newest), Error) << name << " cut to " << at;
    }
    fs::remove(entry.path());
    EXPECT_THROW(verify_folder(newest), Error) << name << " removed";
    write_text(entry.path(), whole);
    verify_folder(newest);
  }
}

TEST(Checkpoint, ABlockIsNamed) {
  const TempFolder folder;
  const fs::path newest = save(folder.path(), 10);
  std::string whole = read_text(newest / "optimizer.safetensors");
  ASSERT_GT(whole.size(), 1u << 20);
  whole[(1 << 20) + 100] ^= 1;
  write_text(newest / "optimizer.safetensors", whole);
  try {
    read_checkpoint(newest);
    FAIL();
  } catch (const DataError& error) {
    EXPECT_NE(std::string(error.what()).find("block 1 (from byte 1048576)"), std::string::npos)
        << error.what();
  }
}

/// Flips a bit in place, as a disk does: the file keeps its inode.
void flip_in_place(const fs::path& path, int64_t at) {
  std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
  file.seekg(at);
  const auto byte = static_cast<char>(file.get() ^ 1);
  file.seekp(at);
  file.put(byte);
}

// 300,000 elements are 1.14 blocks; the header stands before them.
TEST(Checkpoint, APartIsReadAloneAndComparedBeforeUse) {
  const TempFolder folder;
  const fs::path path = save(folder.path(), 10);
  const std::vector<float> all = example(10).optimizer[0].values;
  const std::string name = "a.weight.exp_avg";
  std::vector<float> part(1000);
  {
    CheckpointReader reader(path);
    const int64_t before = reader.bytes_read();
    reader.optimizer().read(name, 299'000, part);
    EXPECT_TRUE(std::equal(part.begin(), part.end(), all.begin() + 299'000));
    const auto size = static_cast<int64_t>(fs::file_size(path / "optimizer.safetensors"));
    EXPECT_EQ(reader.bytes_read() - before, size - kManifestBlockBytes);
    reader.optimizer().read(name, 299'500, std::span(part).first(10));
    EXPECT_EQ(reader.bytes_read() - before, size - kManifestBlockBytes) << "a kept block";
  }
  // Damage in block 1: what lies in block 0 is still served, the rest is not, at open or later.
  CheckpointReader opened_before(path);
  flip_in_place(path / "optimizer.safetensors", kManifestBlockBytes + 100);
  for (const bool is_new : {false, true}) {
    std::optional<CheckpointReader> second;
    CheckpointReader& reader = is_new ? second.emplace(path) : opened_before;
    reader.optimizer().read(name, 0, part);
    EXPECT_TRUE(std::equal(part.begin(), part.end(), all.begin()));
    try {
      reader.optimizer().read(name, 299'000, part);
      ADD_FAILURE() << "damage was not seen";
    } catch (const DataError& error) {
      EXPECT_NE(std::string(error.what()).find("block 1 (from byte 1048576)"), std::string::npos)
          << error.what();
    }
  }
  flip_in_place(path / "optimizer.safetensors", 20);  // in the header
  EXPECT_THROW(CheckpointReader{path}, DataError);
}

// More blocks than are kept, back and forth: the right bytes at the price of reading again.
TEST(Checkpoint, BlocksThatWereGivenUpAreReadAgain) {
  const TempFolder folder;
  std::string text(static_cast<size_t>(12 * kManifestBlockBytes + 5), '\0');
  for (size_t i = 0; i < text.size(); ++i)
    text[i] = static_cast<char>(i * 31 + i / 1000);
  write_text(folder.path() / "file", text);
  VerifiedFile file(folder.path() / "file", describe_file(folder.path(), "file"));
  const int64_t offsets[] = {0, 11, 3, 12, 5, 7, 1, 9, 2, 0, 6, 8, 4, 10, 3};
  for (const int64_t block : offsets) {
    std::string part(static_cast<size_t>(block == 12 ? 5 : 3000), '\0');
    const int64_t begin = block * kManifestBlockBytes + (block == 12 ? 0 : kManifestBlockBytes - 5);
    const auto count = std::min<size_t>(part.size(), text.size() - static_cast<size_t>(begin));
    part.resize(count);
    file.read(begin, std::as_writable_bytes(std::span(part)));
    EXPECT_EQ(part, text.substr(static_cast<size_t>(begin), count)) << block;
  }
  EXPECT_GT(file.bytes_read(), file.size());
}

TEST(Checkpoint, AnAdapterOfZerosOrNanIsNeverCommitted) {
  const TempFolder folder;
  save(folder.path(), 5);
  for (const float value : {0.0f, std::numeric_limits<float>::quiet_NaN()}) {
    Checkpoint checkpoint = example(7);
    std::ranges::fill(checkpoint.adapter[0].values, value);
    try {
      write_partial_checkpoint(folder.path(), checkpoint);
      ADD_FAILURE() << value;
    } catch (const ArgumentError& error) {
      EXPECT_NE(std::string(error.what()).find("a norm above 0"), std::string::npos);
    }
    EXPECT_FALSE(fs::exists(folder.path() / "checkpoint-7.partial"));
  }
  EXPECT_EQ(list_checkpoints(folder.path()).size(), 1u);
}

TEST(Checkpoint, FilesOfAnotherCheckpointAreDetected) {
  const TempFolder folder;
  const fs::path a = save(folder.path(), 5);
  const fs::path b = save(folder.path(), 10);
  const std::string own = read_text(b / "adapter.safetensors");
  fs::copy_file(a / "optimizer.safetensors", b / "optimizer.safetensors",
                fs::copy_options::overwrite_existing);
  EXPECT_THROW(verify_folder(b), DataError);
  fs::copy_file(a / "manifest.json", b / "manifest.json", fs::copy_options::overwrite_existing);
  EXPECT_THROW(verify_folder(b), DataError);
  write_text(a / "extra.bin", "x");
  EXPECT_THROW(verify_folder(a), DataError);
}

TEST(Checkpoint, NamesInTheManifestStayInTheFolder) {
  const TempFolder folder;
  const fs::path path = save(folder.path(), 5);
  write_text(folder.path() / "outside", "secret");
  // A manifest with a correct checksum of its own, made by an attacker.
  Manifest manifest = verify_folder(path);
  manifest.files[0].name = "../outside";
  write_manifest(path, manifest);
  EXPECT_THROW(verify_folder(path), DataError);
}

TEST(Checkpoint, WhenAllAreDamagedNothingStartsOverSilently) {
  const TempFolder folder;
  EXPECT_EQ(find_newest_checkpoint(folder.path()), std::nullopt);
  const fs::path only = save(folder.path(), 5);
  fs::remove(only / "manifest.json");
  EXPECT_THROW(find_newest_checkpoint(folder.path()), DataError);
}

TEST(Checkpoint, OnlyOwnNamesCount) {
  const TempFolder folder;
  save(folder.path(), 5);
  for (const char* name : {"checkpoint-x", "checkpoint-05", "checkpoint-", "checkpoint--3",
                           "checkpoint-7.partial", "xcheckpoint-9", "checkpoint-9 "})
    fs::create_directory(folder.path() / name);
  fs::create_directory_symlink(folder.path() / "checkpoint-5", folder.path() / "checkpoint-11");
  write_text(folder.path() / "checkpoint-12", "a file");
  const auto found = list_checkpoints(folder.path());
  ASSERT_EQ(found.size(), 1u);
  EXPECT_EQ(found[0].first, 5);
}

TEST(Checkpoint, RotationKeepsTheNewestAndNothingElseIsTouched) {
  const TempFolder folder;
  for (const int64_t step : {5, 10, 15, 20})
    save(folder.path(), step);
  fs::create_directory(folder.path() / "mine");
  rotate_checkpoints(folder.path(), 20, 0);
  EXPECT_EQ(list_checkpoints(folder.path()).size(), 4u);
  rotate_checkpoints(folder.path(), 20, 2);
  const auto found = list_checkpoints(folder.path());
  ASSERT_EQ(found.size(), 2u);
  EXPECT_EQ(found[0].first, 20);
  EXPECT_EQ(found[1].first, 15);
  EXPECT_TRUE(fs::exists(folder.path() / "mine"));
}

// After a fall-back, folders of later steps are damaged: they go before any good one.
TEST(Checkpoint, RotationPrefersStepsBeforeTheNewSave) {
  const TempFolder folder;
  for (const int64_t step : {5, 10, 20, 12})
    save(folder.path(), step);
  rotate_checkpoints(folder.path(), 12, 2);
  const auto found = list_checkpoints(folder.path());
  ASSERT_EQ(found.size(), 2u);
  EXPECT_EQ(found[0].first, 12);
  EXPECT_EQ(found[1].first, 10);
}

TEST(Checkpoint, LeftoversOfADeadRunAreCleared) {
  const TempFolder folder;
  write_partial_checkpoint(folder.path(), example(7));  // killed before the rename
  save(folder.path(), 5);
  fs::rename(save(folder.path(), 6), folder.path() / "checkpoint-6.replaced");  // killed in between
  fs::create_directory(folder.path() / "checkpoint-4.removed");
  fs::create_directory(folder.path() / "user.partial");
  remove_stale_partials(folder.path());
  const auto found = list_checkpoints(folder.path());
  ASSERT_EQ(found.size(), 2u);
  EXPECT_EQ(found[0].first, 6);
  EXPECT_FALSE(fs::exists(folder.path() / "checkpoint-7.partial"));
  EXPECT_FALSE(fs::exists(folder.path() / "checkpoint-4.removed"));
  EXPECT_TRUE(fs::exists(folder.path() / "user.partial"));
}

TEST(Checkpoint, ASecondSaveOfAStepReplacesTheFirst) {
  const TempFolder folder;
  const fs::path path = save(folder.path(), 5);
  write_text(path / "state.json", "damaged");
  save(folder.path(), 5);
  verify_folder(path);
  EXPECT_FALSE(fs::exists(folder.path() / "checkpoint-5.replaced"));
}

TEST(Metrics, AreCutToTheStepAndTornLinesGo) {
  const std::string text =
      "{\"step\": 1, \"loss\": 2}\n{\"step\": 2, \"loss\": 1}\n{\"step\": 2, \"lo\n"
      "{\"step\": 3, \"loss\": 1}\n{\"step\": 4, \"los";
  EXPECT_EQ(cut_metrics(text, 2), "{\"step\": 1, \"loss\": 2}\n{\"step\": 2, \"loss\": 1}\n");
  EXPECT_EQ(cut_metrics(text, 0), "");
  EXPECT_EQ(cut_metrics("", 3), "");
}

TEST(RunFolder, ASecondRunIsRefused) {
  const TempFolder folder;
  const auto comm = parallel::make_single_communicator();
  const RunFolder first(*comm, folder.path() / "run");
  try {
    const RunFolder second(*comm, folder.path() / "run");
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.exit_code(), ExitCode::kCannotWrite);
    EXPECT_NE(std::string(error.what()).find("another run"), std::string::npos) << error.what();
  }
}

TEST(RunFolder, AnEarlierRunIsMovedAside) {
  const TempFolder folder;
  const auto comm = parallel::make_single_communicator();
  RunFolder run(*comm, folder.path());
  EXPECT_EQ(run.set_aside_previous_run(), fs::path());
  save(folder.path(), 5);
  write_text(folder.path() / "metrics.jsonl", "{}\n");
  EXPECT_EQ(run.set_aside_previous_run(), folder.path() / "previous-1");
  EXPECT_TRUE(list_checkpoints(folder.path()).empty());
  verify_folder(folder.path() / "previous-1" / "checkpoint-5");
  save(folder.path(), 6);
  EXPECT_EQ(run.set_aside_previous_run(), folder.path() / "previous-2");
}

}  // namespace
}  // namespace shardtune::trainer
