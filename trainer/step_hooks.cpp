#include "trainer/step_hooks.h"

#include <map>
#include <vector>

#include "core/checked.h"

namespace shardtune::trainer {
namespace {

using models::ChunkValues;
using parallel::kShardGranule;

/// At stage 0 every rank has filled in everything; else the owners of the chunks give theirs.
void gather_chunks(const parallel::ShardedParameterStore& store, parallel::Communicator& comm,
                   std::span<const ChunkValues> values) {
  if (store.stage() == parallel::ZeroStage::k0)
    return;
  std::map<ParameterId, const ChunkValues*> by_id;
  for (const ChunkValues& tensor : values)
    by_id[tensor.id] = &tensor;
  std::vector<parallel::Block> blocks;
  for (int rank = 0; rank < comm.world_size(); ++rank) {
    for (const parallel::ShardRange& range : store.layout().ranges(rank)) {
      const auto found = by_id.find(range.id);
      if (found == by_id.end() || range.begin == range.end)
        continue;
      const ChunkValues& tensor = *found->second;
      const int64_t first = range.begin / kShardGranule * tensor.per_chunk;
      const int64_t last = ceil_div(range.end, kShardGranule) * tensor.per_chunk;
      blocks.push_back({rank, std::as_writable_bytes(tensor.values.subspan(
                                  static_cast<size_t>(first), static_cast<size_t>(last - first)))});
    }
  }
  comm.all_gather_blocks(blocks);
}

}  // namespace

void run_step_hooks(parallel::ShardedParameterStore& store, parallel::Communicator& comm,
                    models::Hooks& hooks, int64_t step) {
  std::vector<models::UpdatedRange> ranges;
  for (const auto& segment : store.segments())
    ranges.push_back({segment.id, segment.begin, segment.parameter, segment.gradient, {}});
  hooks.after_optimizer_step(step, ranges, [&](std::span<const ChunkValues> values) {
    gather_chunks(store, comm, values);
  });
}

}  // namespace shardtune::trainer
