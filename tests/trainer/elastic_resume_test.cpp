// R19: a checkpoint saved on any number of ranks, at any stage and with any offload, resumed on any
// other: the losses of the steps that follow and every byte of the final adapter and optimizer
// states are those of a run that nobody interrupted. Ranks are processes under mpirun. And how much
// of a checkpoint a rank reads for it.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <numeric>

#include "io/file.h"
#include "tests/trainer/run_list.h"
#include "trainer/manifest.h"

namespace shardtune::trainer {
namespace {

using testing::ListedRun;
using testing::read_text;
using testing::SmallRun;
using testing::TinyShape;
using Overrides = std::vector<std::string>;

/// Where a checkpoint is saved or resumed.
struct Place {
  int ranks = 1;
  int stage = 0;
  bool is_on_nvme = false;

  std::string name() const {
    return "r" + std::to_string(ranks) + "s" + std::to_string(stage) + (is_on_nvme ? "n" : "");
  }
  Overrides overrides(const SmallRun& small) const {
    Overrides all = {testing::zero_stage(stage)};
    if (is_on_nvme) {
      const Overrides nvme = testing::everything_on_nvme(small);
      all.insert(all.end(), nvme.begin(), nvme.end());
    }
    return all;
  }
};

/// Every number of ranks, stage and offload among them.
constexpr Place kSources[] = {{1, 0, false}, {2, 1, true},  {3, 2, false},
                              {4, 3, true},  {8, 3, false}, {2, 0, true}};

std::vector<Place> targets() {
  std::vector<Place> all;
  for (const int ranks : {1, 2, 3, 4, 8}) {
    for (int stage = 0; stage <= 3; ++stage) {
      for (const bool is_on_nvme : {false, true})
        all.push_back({ranks, stage, is_on_nvme});
    }
  }
  return all;
}

/// All 40 targets of a source at full scale, else some, spread so that the sources together meet
/// every number of ranks.
std::vector<Place> targets_of(size_t source) {
  const std::vector<Place> all = targets();
  const char* scale = std::getenv("SHARDTUNE_TEST_SCALE");
  const size_t divisor = scale == nullptr ? 20 : static_cast<size_t>(std::max(std::atoi(scale), 1));
  const size_t count = std::max<size_t>(all.size() / divisor, 5);
  std::vector<Place> chosen;
  for (size_t k = 0; k < count; ++k)
    chosen.push_back(all[(source * 7 + k * all.size() / count) % all.size()]);
  return chosen;
}

TEST(ElasticResume, AnyRanksStageAndOffloadToAnyOther) {
  if (!testing::has_mpirun())
    GTEST_SKIP() << "mpirun is not there";
  const SmallRun small;
  small.run(small.config("whole", {"parallel.threads=1"}));
  std::map<int, std::vector<ListedRun>> saving;
  for (const Place& source : kSources) {
    Overrides overrides = source.overrides(small);
    overrides.push_back("training.stop_at_step=2");
    saving[source.ranks].push_back({source.name(), overrides});
  }
  for (const auto& [ranks, runs] : saving)
    ASSERT_NO_FATAL_FAILURE(testing::run_list(small, ranks, runs));

  std::map<int, std::vector<ListedRun>> resuming;
  for (size_t i = 0; i < std::size(kSources); ++i) {
    for (const Place& target : targets_of(i)) {
      const std::string name = kSources[i].name() + "-" + target.name();
      fs::copy(small.path(kSources[i].name()), small.path(name), fs::copy_options::recursive);
      resuming[target.ranks].push_back({name, target.overrides(small)});
    }
  }
  size_t num_resumes = 0;
  for (const auto& [ranks, runs] : resuming) {
    ASSERT_NO_FATAL_FAILURE(testing::run_list(small, ranks, runs, testing::Start::kFromStep2));
    for (const ListedRun& run : runs) {
      EXPECT_EQ(small.losses(run.output), small.losses("whole")) << run.output;
      EXPECT_EQ(small.adapter_bytes(run.output), small.adapter_bytes("whole")) << run.output;
      for (const char* file : {"adapter.safetensors", "optimizer.safetensors"})
        EXPECT_TRUE(read_text(small.path(run.output) / "checkpoint-4" / file) ==
                    read_text(small.path("whole") / "checkpoint-4" / file))
            << run.output << " " << file;
    }
    num_resumes += runs.size();
  }
  std::printf("report: %zu resumes from %zu sources\n", num_resumes, std::size(kSources));
}

class ReadsPerRank : public ::testing::TestWithParam<Place> {};

// 8 layers (whose order by name is that of declaration), so that a rank's ranges are one run of
// each file: beside its share it reads at most the block of the header and one more at each end.
TEST_P(ReadsPerRank, AreTheRangesOfTheRank) {
  SmallRun small;
  TinyShape shape;
  shape.layers = 8;
  shape.hidden = 256;
  shape.kv_heads = 4;
  testing::make_tiny_model(small.path("model"), shape);
  const Overrides common = {"adapter.lora_rank=64", "training.max_steps=2", "parallel.threads=1",
                            "data.eval=[]"};
  Overrides first = common;
  first.push_back("training.stop_at_step=1");
  small.run(small.config("run", first));
  Overrides second = common;
  const Overrides place = GetParam().overrides(small);
  second.insert(second.end(), place.begin(), place.end());
  const TrainResult result = small.run(small.config("run", second), GetParam().ranks);
  ASSERT_EQ(result.resumed_from, 1);

  const fs::path checkpoint = small.path("run") / "checkpoint-1";
  const auto whole = static_cast<int64_t>(fs::file_size(checkpoint / "adapter.safetensors") +
                                          fs::file_size(checkpoint / "optimizer.safetensors"));
  const auto& read = result.rank_resume_bytes;
  ASSERT_EQ(read.size(), static_cast<size_t>(GetParam().ranks));
  EXPECT_GE(std::accumulate(read.begin(), read.end(), int64_t{0}), whole);
  ASSERT_GT(whole, 17 * kManifestBlockBytes);
  for (size_t rank = 0; rank < read.size(); ++rank)
    EXPECT_LE(read[rank], whole / GetParam().ranks + 2 * 3 * kManifestBlockBytes) << rank;
}

INSTANTIATE_TEST_SUITE_P(Places, ReadsPerRank,
                         ::testing::Values(Place{1, 0, false}, Place{4, 0, false},
                                           Place{4, 2, false}, Place{4, 3, true}, Place{8, 1, true},
                                           Place{4, 0, true}),
                         [](const auto& info) { return info.param.name(); });

}  // namespace
}  // namespace shardtune::trainer
