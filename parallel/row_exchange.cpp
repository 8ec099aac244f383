#include "parallel/row_exchange.h"

#include <cstring>
#include <numeric>
#include <vector>

#include "parallel/collective_errors.h"

namespace shardtune::parallel {

namespace {

struct WantedRow {
  ParameterId id{};
  int32_t row = 0;
};
static_assert(sizeof(WantedRow) == 8);

/// What this rank wants of one other, and where it goes.
struct Wanted {
  std::vector<WantedRow> rows;
  std::vector<std::span<std::byte>> targets;
  std::vector<std::byte> received;
};

std::vector<Wanted> sort_by_owner(std::span<const RowFetch> fetches, const RowPlaces& places,
                                  int world_size) {
  std::vector<Wanted> wanted(static_cast<size_t>(world_size));
  for (const RowFetch& fetch : fetches) {
    if (fetch.rows.empty())
      continue;
    const size_t row_bytes = fetch.out.size() / fetch.rows.size();
    for (size_t i = 0; i < fetch.rows.size(); ++i) {
      Wanted& of_owner = wanted[static_cast<size_t>(places.owner(fetch.id, fetch.rows[i]))];
      of_owner.rows.push_back({fetch.id, fetch.rows[i]});
      of_owner.targets.push_back(fetch.out.subspan(i * row_bytes, row_bytes));
    }
  }
  return wanted;
}

/// The rows that every other rank wants of this one.
std::vector<std::vector<WantedRow>> exchange_requests(Communicator& comm,
                                                      const std::vector<Wanted>& wanted) {
  const auto n = static_cast<size_t>(comm.world_size());
  const auto me = static_cast<size_t>(comm.rank());
  std::vector<int64_t> counts;
  for (const Wanted& of_owner : wanted)
    counts.push_back(static_cast<int64_t>(of_owner.rows.size()));
  std::vector<int64_t> all(n * n);
  comm.all_gather(std::as_bytes(std::span(counts)), std::as_writable_bytes(std::span(all)));
  std::vector<std::vector<WantedRow>> asked(n);
  std::vector<Send> sends;
  std::vector<Receive> receives;
  for (size_t peer = 0; peer < n; ++peer) {
    asked[peer].resize(peer == me ? 0 : static_cast<size_t>(all[peer * n + me]));
    if (!asked[peer].empty())
      receives.push_back({static_cast<int>(peer), std::as_writable_bytes(std::span(asked[peer]))});
    if (peer != me && !wanted[peer].rows.empty())
      sends.push_back({static_cast<int>(peer), std::as_bytes(std::span(wanted[peer].rows))});
  }
  comm.exchange(sends, receives, DType::kInt32);
  return asked;
}

size_t total_bytes(const Wanted& wanted) {
  return std::accumulate(wanted.targets.begin(), wanted.targets.end(), size_t{0},
                         [](size_t sum, auto target) { return sum + target.size(); });
}

/// The rows that the other ranks asked for; this rank's own go to their targets.
std::vector<std::vector<std::byte>> read_rows(const std::vector<std::vector<WantedRow>>& asked,
                                              const Wanted& own, const RowPlaces& places) {
  std::vector<std::vector<std::byte>> answers(asked.size());
  for (size_t peer = 0; peer < asked.size(); ++peer) {
    for (const WantedRow& row : asked[peer]) {
      const auto bytes = places.bytes(row.id, row.row);
      answers[peer].insert(answers[peer].end(), bytes.begin(), bytes.end());
    }
  }
  for (size_t i = 0; i < own.rows.size(); ++i) {
    const auto bytes = places.bytes(own.rows[i].id, own.rows[i].row);
    std::memcpy(own.targets[i].data(), bytes.data(), own.targets[i].size());
  }
  return answers;
}

}  // namespace

void exchange_rows(Communicator& comm, std::span<const RowFetch> fetches, const RowPlaces& places) {
  const auto me = static_cast<size_t>(comm.rank());
  std::vector<Wanted> wanted = sort_by_owner(fetches, places, comm.world_size());
  const auto asked = exchange_requests(comm, wanted);
  std::vector<std::vector<std::byte>> answers;
  const auto read = [&] { answers = read_rows(asked, wanted[me], places); };
  if (places.reading == RowPlaces::Reading::kFallible)
    run_on_all_ranks(comm, read);
  else
    read();
  std::vector<Send> sends;
  std::vector<Receive> receives;
  for (size_t peer = 0; peer < asked.size(); ++peer) {
    if (!answers[peer].empty())
      sends.push_back({static_cast<int>(peer), answers[peer]});
    wanted[peer].received.resize(peer == me ? 0 : total_bytes(wanted[peer]));
    if (!wanted[peer].received.empty())
      receives.push_back({static_cast<int>(peer), wanted[peer].received});
  }
  comm.exchange(sends, receives);
  for (const Wanted& of_owner : wanted) {
    if (of_owner.received.empty())
      continue;
    const std::byte* source = of_owner.received.data();
    for (const std::span<std::byte> target : of_owner.targets) {
      std::memcpy(target.data(), source, target.size());
      source += target.size();
    }
  }
}

}  // namespace shardtune::parallel
