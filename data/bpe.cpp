#include "data/bpe.h"

#include <algorithm>
#include <cstring>
#include <queue>
#include <unordered_map>

#include "core/error.h"
#include "data/text_split.h"

namespace shardtune::data {
namespace {

/// Pieces up to this many symbols are merged in place by scanning; measured crossover is wide.
constexpr std::size_t kShortPiece = 48;

constexpr uint64_t kHashFactor = 0x9E3779B97F4A7C15ull;

std::array<int32_t, 256> make_byte_alphabet() {
  std::array<int32_t, 256> alphabet{};
  int32_t next = 0x100;
  for (int32_t byte = 0; byte < 256; ++byte) {
    const bool prints =
        (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
    alphabet[static_cast<std::size_t>(byte)] = prints ? byte : next++;
  }
  return alphabet;
}

/// Inverse of the alphabet for code points below 0x144; -1 elsewhere.
std::array<int32_t, 0x144> make_inverse_alphabet() {
  std::array<int32_t, 0x144> inverse;
  inverse.fill(-1);
  const auto alphabet = make_byte_alphabet();
  for (int32_t byte = 0; byte < 256; ++byte)
    inverse[static_cast<std::size_t>(alphabet[static_cast<std::size_t>(byte)])] = byte;
  return inverse;
}

uint64_t pair_key(int32_t left, int32_t right) {
  return (static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32) | static_cast<uint32_t>(right);
}

/// Whether every token is used only by merges that come after all merges making it: then merging
/// never gives rise to a pair of lower or equal rank.
bool ranks_ascend(const std::vector<BpeMerge>& merges) {
  std::unordered_map<int32_t, uint32_t> last_made;
  for (const BpeMerge& merge : merges) {
    uint32_t& last = last_made.try_emplace(merge.merged, merge.rank).first->second;
    last = std::max(last, merge.rank);
  }
  for (const BpeMerge& merge : merges) {
    for (const int32_t part : {merge.left, merge.right}) {
      const auto made = last_made.find(part);
      if (made != last_made.end() && made->second >= merge.rank)
        return false;
    }
  }
  return true;
}

}  // namespace

const std::array<int32_t, 256>& byte_alphabet() {
  static const std::array<int32_t, 256> alphabet = make_byte_alphabet();
  return alphabet;
}

std::optional<std::string> bytes_of_token_text(std::string_view token_text) {
  static const auto inverse = make_inverse_alphabet();
  std::string bytes;
  bytes.reserve(token_text.size());
  for (std::size_t offset = 0; offset < token_text.size();) {
    const CodePoint point = decode_code_point(token_text, offset);
    if (point.value < 0 || point.value >= static_cast<int32_t>(inverse.size()) ||
        inverse[static_cast<std::size_t>(point.value)] < 0)
      return std::nullopt;
    bytes.push_back(static_cast<char>(inverse[static_cast<std::size_t>(point.value)]));
    offset += static_cast<std::size_t>(point.length);
  }
  return bytes;
}

std::string token_text_of_bytes(std::string_view bytes) {
  std::string text;
  for (const char byte : bytes)
    append_code_point(text, byte_alphabet()[static_cast<unsigned char>(byte)]);
  return text;
}

BpeMerger::BpeMerger(const std::vector<BpeMerge>& merges) {
  int bits = 4;
  while ((std::size_t{1} << bits) < merges.size() * 2)
    ++bits;
  shift_ = 64 - bits;
  slots_.resize(std::size_t{1} << bits);
  const std::size_t mask = slots_.size() - 1;
  for (const BpeMerge& merge : merges) {
    const uint64_t pair = pair_key(merge.left, merge.right);
    std::size_t slot = (pair * kHashFactor) >> shift_;
    while (slots_[slot].pair != kEmpty && slots_[slot].pair != pair)
      slot = (slot + 1) & mask;
    slots_[slot] = {pair, merge.rank, merge.merged};
  }
  ranks_ascend_ = ranks_ascend(merges);
}

const BpeMerger::Slot* BpeMerger::find(int32_t left, int32_t right) const {
  const uint64_t pair = pair_key(left, right);
  const std::size_t mask = slots_.size() - 1;
  for (std::size_t slot = (pair * kHashFactor) >> shift_;; slot = (slot + 1) & mask) {
    if (slots_[slot].pair == pair)
      return &slots_[slot];
    if (slots_[slot].pair == kEmpty)
      return nullptr;
  }
}

uint32_t BpeMerger::rank(int32_t left, int32_t right) const {
  const Slot* slot = find(left, right);
  return slot != nullptr ? slot->rank : kNoRank;
}

/// Symbols of a long piece in a doubly linked list; rank is that of the pair beginning there.
struct BpeMerger::Chain {
  static constexpr uint32_t kEnd = ~uint32_t{0};
  struct Symbol {
    int32_t id;
    uint32_t previous;
    uint32_t next;
    uint32_t rank;  // kNoRank: no merge, or a dead symbol
  };
  const BpeMerger& merger;
  std::vector<Symbol> symbols;

  Chain(const BpeMerger& owner, std::span<const int32_t> ids) : merger(owner) {
    const auto count = static_cast<uint32_t>(ids.size());
    symbols.resize(count);
    for (uint32_t i = 0; i < count; ++i) {
      const bool last = i + 1 == count;
      symbols[i] = {ids[i], i == 0 ? kEnd : i - 1, last ? kEnd : i + 1,
                    last ? kNoRank : merger.rank(ids[i], ids[i + 1])};
    }
  }

  /// Merges the pair at `at` and tells `changed(position)` of each pair with a new rank.
  template <typename Changed>
  void merge_at(uint32_t at, const Changed& changed) {
    Symbol& left = symbols[at];
    Symbol& right = symbols[left.next];
    right.rank = kNoRank;
    left.id = merger.find(left.id, right.id)->merged;
    left.next = right.next;
    left.rank = kNoRank;
    if (left.next != kEnd) {
      symbols[left.next].previous = at;
      left.rank = merger.rank(left.id, symbols[left.next].id);
      changed(at);
    }
    if (left.previous != kEnd) {
      symbols[left.previous].rank = merger.rank(symbols[left.previous].id, left.id);
      changed(left.previous);
    }
  }
};

void BpeMerger::merge(std::vector<int32_t>& symbols) const {
  if (symbols.size() <= kShortPiece) {
    merge_short(symbols);
    return;
  }
  SHARDTUNE_ASSERT(symbols.size() < Chain::kEnd);
  const Chain chain = merged(symbols);
  symbols.clear();
  for (uint32_t at = 0; at != Chain::kEnd; at = chain.symbols[at].next)
    symbols.push_back(chain.symbols[at].id);
}

void BpeMerger::merge_short(std::vector<int32_t>& symbols) const {
  std::array<uint32_t, kShortPiece> ranks;
  std::size_t count = symbols.size();
  for (std::size_t i = 0; i + 1 < count; ++i)
    ranks[i] = rank(symbols[i], symbols[i + 1]);
  while (count > 1) {
    const auto best = std::min_element(ranks.begin(), ranks.begin() + static_cast<long>(count - 1));
    if (*best == kNoRank)
      break;
    const auto at = static_cast<std::size_t>(best - ranks.begin());
    symbols[at] = find(symbols[at], symbols[at + 1])->merged;
    for (std::size_t i = at + 1; i + 1 < count; ++i) {
      symbols[i] = symbols[i + 1];
      ranks[i] = ranks[i + 1];
    }
    --count;
    ranks[at] = at + 1 < count ? rank(symbols[at], symbols[at + 1]) : kNoRank;
    if (at > 0)
      ranks[at - 1] = rank(symbols[at - 1], symbols[at]);
  }
  symbols.resize(count);
}

/// What of a long piece may still change, or tells whether it may.
struct BpeMerger::Window {
  std::vector<int32_t>& symbols;  // of the last tokens, and those that have none yet
  std::vector<int32_t>& ids;      // tokens of all symbols before, and of others
  std::vector<uint32_t> begins;   // first symbols of the last tokens, in `symbols`

  /// The symbols from `from` on get these tokens.
  void append(const Chain& chain, std::size_t from) {
    for (uint32_t at = 0; at != Chain::kEnd; at = chain.symbols[at].next) {
      ids.push_back(chain.symbols[at].id);
      begins.push_back(static_cast<uint32_t>(from + at));
    }
  }

  /// Tokens are given up from the end alone, so that few of them need be known.
  void forget() {
    constexpr std::size_t kKnown = 4096;
    if (begins.size() <= 4 * kKnown)
      return;
    begins.erase(begins.begin(), begins.end() - static_cast<long>(kKnown));
    const uint32_t gone = begins.front();
    symbols.erase(symbols.begin(), symbols.begin() + static_cast<long>(gone));
    for (uint32_t& begin : begins)
      begin -= gone;
  }
};

BpeMerger::Chain BpeMerger::merged(std::span<const int32_t> symbols) const {
  Chain chain(*this, symbols);
  if (ranks_ascend_)
    merge_by_rank(chain);
  else
    merge_by_heap(chain);
  return chain;
}

/// Whether the symbols of two tokens in a row give just these two.
bool BpeMerger::stay_apart(std::span<const int32_t> symbols, int32_t left, int32_t right) const {
  const Chain chain = merged(symbols);
  const Chain::Symbol& first = chain.symbols[0];
  return first.id == left && first.next != Chain::kEnd && chain.symbols[first.next].id == right &&
         chain.symbols[first.next].next == Chain::kEnd;
}

/// Merges the symbols from the last tokens' on, where they are joined to what stays. A row of
/// tokens is what its symbols give exactly when each two neighbours are what theirs give: merges
/// inside a stretch that none of its border's merges leaves run as they would alone, so the first
/// merge across a boundary in the whole would also come in the pair. Where a boundary does not
/// hold, more tokens are given up. False: all that are known were not enough.
bool BpeMerger::drop_and_merge(Window& window) const {
  constexpr std::size_t kDropped = 16;  // what a later symbol is likely to change
  const std::span<const int32_t> symbols = window.symbols;
  const std::size_t before = window.ids.size();
  const std::size_t known = window.begins.size();
  for (std::size_t dropped = kDropped; dropped < known; dropped *= 4) {
    const std::size_t kept = known - dropped;
    const std::size_t from = window.begins[kept];
    window.ids.resize(before - dropped);
    window.begins.resize(kept);
    window.append(merged(symbols.subspan(from)), from);
    const std::size_t begin = window.begins[kept - 1];
    const std::size_t end =
        kept + 1 < window.begins.size() ? window.begins[kept + 1] : symbols.size();
    if (stay_apart(symbols.subspan(begin, end - begin), window.ids[before - dropped - 1],
                   window.ids[before - dropped]))
      return true;
  }
  if (known > kDropped)
    return false;
  window.ids.resize(before - known);  // none is forgotten yet: all from the first on
  window.begins.clear();
  window.append(merged(symbols), 0);
  return true;
}

/// Block by block, so that what merging touches stays in the cache, and memory is that of the
/// tokens.
void BpeMerger::merge_long(SymbolReader& piece, std::vector<int32_t>& symbols,
                           std::vector<int32_t>& ids) const {
  constexpr std::size_t kBlock = 8192;
  const std::size_t first = ids.size();
  symbols.clear();
  Window window{symbols, ids, {}};
  for (std::size_t merged_to = 0; piece.read(kBlock, symbols); merged_to = symbols.size()) {
    if (symbols.size() == merged_to)
      continue;
    if (!drop_and_merge(window)) {  // once: what reaches so far back may do so again
      piece.restart();
      symbols.clear();
      while (piece.read(kBlock, symbols)) {
      }
      if (symbols.size() >= Chain::kEnd)
        throw ArgumentError("text: one word of 4 GiB or more cannot be tokenised. Split the text.");
      ids.resize(first);
      window.append(merged(symbols), 0);
      return;
    }
    window.forget();
  }
}

/// Positions are kept in a bucket per rank: a rank's merges run through memory in order, and the
/// queue holds ranks, of which there are few. Right only where no merge gives rise to a pair of
/// lower or equal rank.
void BpeMerger::merge_by_rank(Chain& chain) const {
  std::unordered_map<uint32_t, std::vector<uint32_t>> buckets;
  std::priority_queue<uint32_t, std::vector<uint32_t>, std::greater<>> ranks;
  const auto note = [&](uint32_t at) {
    const uint32_t rank = chain.symbols[at].rank;
    if (rank == kNoRank)
      return;
    std::vector<uint32_t>& bucket = buckets[rank];
    if (bucket.empty())
      ranks.push(rank);
    bucket.push_back(at);
  };
  for (uint32_t at = 0; at < chain.symbols.size(); ++at)
    note(at);
  while (!ranks.empty()) {
    const uint32_t rank = ranks.top();
    ranks.pop();
    std::vector<uint32_t> positions = std::move(buckets[rank]);
    buckets.erase(rank);
    if (!std::is_sorted(positions.begin(), positions.end()))
      std::sort(positions.begin(), positions.end());
    for (const uint32_t at : positions) {
      if (chain.symbols[at].rank == rank)
        chain.merge_at(at, note);
    }
  }
}

/// One queue of (rank, position): for vocabularies whose ranks do not ascend.
void BpeMerger::merge_by_heap(Chain& chain) const {
  std::priority_queue<uint64_t, std::vector<uint64_t>, std::greater<>> queue;
  const auto note = [&](uint32_t at) {
    if (chain.symbols[at].rank != kNoRank)
      queue.push((static_cast<uint64_t>(chain.symbols[at].rank) << 32) | at);
  };
  for (uint32_t at = 0; at < chain.symbols.size(); ++at)
    note(at);
  while (!queue.empty()) {
    const uint64_t top = queue.top();
    queue.pop();
    const auto at = static_cast<uint32_t>(top);
    if (chain.symbols[at].rank == static_cast<uint32_t>(top >> 32))
      chain.merge_at(at, note);
  }
}

std::size_t PieceCache::slot_of(std::string_view piece) {
  uint64_t hash = piece.size() * kHashFactor;
  const char* data = piece.data();
  std::size_t left = piece.size();
  for (; left >= 8; left -= 8, data += 8) {
    uint64_t word;
    std::memcpy(&word, data, 8);
    hash = (hash ^ word) * kHashFactor;
    hash ^= hash >> 29;
  }
  if (left > 0) {
    uint64_t word = 0;
    std::memcpy(&word, data, left);
    hash = (hash ^ word) * kHashFactor;
  }
  return (hash >> 40) & (kEntries - 1);
}

bool PieceCache::lookup(std::string_view piece, std::vector<int32_t>& ids) {
  const Entry& entry = entries_[slot_of(piece)];
  if (entry.num_bytes != piece.size() || std::memcmp(entry.bytes, piece.data(), piece.size()) != 0)
    return false;
  ids.insert(ids.end(), entry.ids, entry.ids + entry.num_ids);
  return true;
}

void PieceCache::remember(std::string_view piece, const std::vector<int32_t>& ids,
                          std::size_t first) {
  const std::size_t count = ids.size() - first;
  if (piece.empty() || piece.size() > kMaxBytes || count > kMaxIds)
    return;
  Entry& entry = entries_[slot_of(piece)];
  entry.num_bytes = static_cast<uint8_t>(piece.size());
  entry.num_ids = static_cast<uint8_t>(count);
  std::memcpy(entry.bytes, piece.data(), piece.size());
  std::copy(ids.begin() + static_cast<long>(first), ids.end(), entry.ids);
}

PieceCachePool::Lease::Lease(PieceCachePool& pool) : pool_(pool) {
  const std::lock_guard lock(pool_.mutex_);
  if (!pool_.free_.empty()) {
    cache_ = std::move(pool_.free_.back());
    pool_.free_.pop_back();
  } else {
    cache_ = std::make_unique<PieceCache>();
  }
}

PieceCachePool::Lease::~Lease() {
  constexpr std::size_t kMaxKept = 64;
  const std::lock_guard lock(pool_.mutex_);
  if (pool_.free_.size() < kMaxKept)
    pool_.free_.push_back(std::move(cache_));
}

}  // namespace shardtune::data
