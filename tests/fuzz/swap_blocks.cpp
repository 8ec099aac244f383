#include "tests/fuzz/swap_blocks.h"

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "io/block_file.h"
#include "io/file.h"
#include "io/swap_file.h"
#include "tests/io/block_bytes.h"

namespace shardtune::fuzz {
namespace {

using io::BlockFile;
using io::RegionId;

enum class FaultKind : uint8_t { kFlip, kZero, kLost, kError, kShort, kCopy, kCut, kLate };
constexpr uint8_t kNumFaultKinds = 8;

struct Fault {
  FaultKind kind = FaultKind::kFlip;
  uint8_t request = 0;  // the number of the request that it meets, retries counted
  uint16_t argument = 0;
  uint32_t offset = 0;
};

struct Script {
  std::vector<int64_t> region_bytes;
  std::vector<Fault> faults;
};

/// Takes numbers off the input; zeros behind its end.
class Input {
 public:
  explicit Input(std::string text) : text_(std::move(text)) {}
  bool at_end() const { return next_ >= text_.size(); }
  template <class T>
  T take() {
    T value{};
    if (!at_end())
      std::memcpy(&value, text_.data() + next_, std::min(sizeof value, text_.size() - next_));
    next_ += sizeof value;
    return value;
  }

 private:
  std::string text_;
  size_t next_ = 0;
};

Script read_script(const std::filesystem::path& file) {
  constexpr size_t kMaxFaults = 64;
  Input input(io::read_text_file(file, int64_t{1} << 20));
  Script script;
  const int num_regions = 1 + input.take<uint8_t>() % 4;
  for (int i = 0; i < num_regions; ++i) {
    const auto size = input.take<uint16_t>();
    const int64_t unit = size >= 0xC000 ? 32 : 4;  // up to 64 KiB, or 512 KiB
    script.region_bytes.push_back((size & 0x3FFF) * unit + (size & 3));
  }
  while (!input.at_end() && script.faults.size() < kMaxFaults) {
    Fault fault;
    fault.kind = FaultKind(input.take<uint8_t>() % kNumFaultKinds);
    fault.request = input.take<uint8_t>();
    fault.argument = input.take<uint16_t>();
    fault.offset = input.take<uint32_t>();
    script.faults.push_back(fault);
  }
  return script;
}

/// A device in memory, with the script's faults.
class ScriptedIo : public io::AsyncIo {
 public:
  ScriptedIo(std::vector<Fault> faults, int64_t num_bytes)
      : faults_(std::move(faults)), stored_(static_cast<size_t>(num_bytes)) {}

  void register_buffers(std::span<const std::span<std::byte>> buffers) override {}
  std::string description() const override { return "scripted"; }

  void submit(std::span<const io::IoRequest> requests) override {
    for (const io::IoRequest& request : requests) {
      const io::IoResult result = {request.tag, move(request)};
      if (const Fault* late = fault_of(FaultKind::kLate); late != nullptr)
        results_.push_front(result);
      else
        results_.push_back(result);
      ++num_requests_;
    }
  }
  io::IoResult wait_one() override {
    const auto result = try_one();
    return result ? *result : throw ArgumentError("scripted: nothing is under way");
  }
  std::optional<io::IoResult> try_one() override {
    if (results_.empty())
      return std::nullopt;
    const io::IoResult result = results_.front();
    results_.pop_front();
    return result;
  }

 private:
  const Fault* fault_of(FaultKind kind) const {
    const auto found = std::ranges::find_if(faults_, [&](const Fault& fault) {
      return fault.kind == kind && fault.request == num_requests_;
    });
    return found == faults_.end() ? nullptr : &*found;
  }

  int64_t move(const io::IoRequest& request) {
    damage();
    const int64_t end = std::ssize(stored_) - request.offset;
    auto count = std::clamp<int64_t>(end, 0, std::ssize(request.bytes));
    if (const Fault* fault = fault_of(FaultKind::kError))
      return -(1 + fault->argument % 133);
    if (const Fault* fault = fault_of(FaultKind::kShort))
      count = std::min<int64_t>(count, fault->argument * 16);
    if (count == 0)
      return 0;
    std::byte* const stored = stored_.data() + request.offset;
    if (request.kind == io::IoKind::kRead)
      std::memcpy(request.bytes.data(), stored, static_cast<size_t>(count));
    else if (fault_of(FaultKind::kLost) == nullptr)
      std::memcpy(stored, request.bytes.data(), static_cast<size_t>(count));
    return count;
  }

  /// What happens to stored bytes before this request.
  void damage() {
    for (const Fault& fault : faults_) {
      if (fault.request != num_requests_ || stored_.empty())
        continue;
      const size_t offset = fault.offset % stored_.size();
      const size_t length = std::min<size_t>(fault.argument, stored_.size() - offset);
      const auto at = [&](size_t index) {
        return stored_.begin() + static_cast<std::ptrdiff_t>(index);
      };
      if (fault.kind == FaultKind::kFlip)
        stored_[offset] ^= std::byte(fault.argument & 255);
      if (fault.kind == FaultKind::kZero)
        std::fill(at(offset), at(offset + length), std::byte{0});
      if (fault.kind == FaultKind::kCopy) {
        const size_t from = size_t{fault.argument} * 4096 % stored_.size();
        const size_t size =
            std::min<size_t>(BlockFile::kBlockBytes, stored_.size() - std::max(from, offset));
        std::memmove(&stored_[offset], &stored_[from], size);
      }
      if (fault.kind == FaultKind::kCut)
        stored_.resize(offset);
    }
  }

  std::vector<Fault> faults_;
  std::vector<std::byte> stored_;
  std::deque<io::IoResult> results_;
  int64_t num_requests_ = 0;
};

/// By memcmp: a loop over bytes is most of an input's time when each comparison is traced.
void require_equal(std::span<const std::byte> found, std::span<const std::byte> expected) {
  if (found.size() != expected.size() ||
      (!found.empty() && std::memcmp(found.data(), expected.data(), found.size()) != 0))
    std::abort();
}

int64_t pages(int64_t bytes) { return (bytes + io::kIoAlignment - 1) / io::kIoAlignment; }

}  // namespace

void read_swap_blocks(const std::filesystem::path& file) {
  const Script script = read_script(file);
  int64_t total = 0;
  for (const int64_t bytes : script.region_bytes)
    total += pages(bytes) * io::kIoAlignment;
  io::SwapOptions options;
  options.folder = file.parent_path();
  options.mode = io::SwapMode::kBuffered;
  options.wrap = [&](std::unique_ptr<io::AsyncIo>) {
    return std::make_unique<ScriptedIo>(script.faults, total);
  };
  io::SwapFile swap(options);
  BlockFile store(swap);
  for (size_t i = 0; i < script.region_bytes.size(); ++i)
    store.add_region("region " + std::to_string(i), script.region_bytes[i]);
  const auto written = store.add_buffer(total);
  const auto read = store.add_buffer(total);
  // Two generations, so that what a lost write leaves is an earlier one.
  for (const uint64_t generation : {1, 2}) {
    testing::fill_block_bytes(written, generation);
    store.wait(store.write(RegionId{0}, store.num_regions(), written));
  }
  const auto region_bytes = [&](size_t region, std::span<std::byte> all) {
    const int64_t offset = store.offset_in_extent(RegionId{0}, RegionId(region));
    return all.subspan(static_cast<size_t>(offset),
                       static_cast<size_t>(script.region_bytes[region]));
  };
  store.wait(store.read(RegionId{0}, store.num_regions(), read));
  for (size_t i = 0; i < script.region_bytes.size(); ++i)
    require_equal(region_bytes(i, read), region_bytes(i, written));
  // The last block of each alone, all under way at once.
  std::vector<std::pair<io::IoTicket, std::span<std::byte>>> under_way;
  for (size_t i = 0; i < script.region_bytes.size(); ++i) {
    const int64_t last = (script.region_bytes[i] - 1) / BlockFile::kBlockBytes;
    if (script.region_bytes[i] == 0)
      continue;
    std::memset(region_bytes(i, read).data(), 0, region_bytes(i, read).size());
    const int64_t offset = store.offset_in_extent(RegionId{0}, RegionId(i));
    const auto target = read.subspan(static_cast<size_t>(offset));
    under_way.emplace_back(
        store.read_blocks(RegionId(i), last, 1, target),
        region_bytes(i, written).subspan(static_cast<size_t>(last * BlockFile::kBlockBytes)));
  }
  for (size_t i = 0, next = 0; i < script.region_bytes.size(); ++i) {
    if (script.region_bytes[i] == 0)
      continue;
    const auto& [ticket, expected] = under_way[next++];
    store.wait(ticket, io::CheckThreads::kCaller);
    require_equal(region_bytes(i, read).first(expected.size()), expected);
  }
}

}  // namespace shardtune::fuzz
