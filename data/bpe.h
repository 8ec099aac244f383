// Byte-pair merging of one piece's symbols: the adjacent pair of lowest rank again and again,
// leftmost first. Time is near linear in the piece.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace shardtune::data {

/// Characters of the byte alphabet (FORMATS 3.1): byte b is written as the character with this
/// code point in vocabulary files.
const std::array<int32_t, 256>& byte_alphabet();
/// Bytes that a token's text stands for; nullopt when it has a character outside the alphabet.
std::optional<std::string> bytes_of_token_text(std::string_view token_text);
std::string token_text_of_bytes(std::string_view bytes);

struct BpeMerge {
  int32_t left;
  int32_t right;
  int32_t merged;
  uint32_t rank;
};

/// The symbols of a long piece, from its beginning on.
class SymbolReader {
 public:
  virtual ~SymbolReader() = default;
  virtual void restart() = 0;
  /// Appends some `count` more to `symbols`; false: there are none left.
  virtual bool read(std::size_t count, std::vector<int32_t>& symbols) = 0;
};

class BpeMerger {
 public:
  /// Longer ones go through merge_long().
  static constexpr std::size_t kLongPiece = 16384;  // symbols

  BpeMerger() : BpeMerger(std::vector<BpeMerge>{}) {}
  /// Where a pair comes twice the later one holds, as in the reference. Merges may share a rank.
  explicit BpeMerger(const std::vector<BpeMerge>& merges);

  void merge(std::vector<int32_t>& symbols) const;
  /// The same of a piece of any length, a block of symbols at a time; appended to `ids`. `symbols`
  /// is scratch.
  void merge_long(SymbolReader& piece, std::vector<int32_t>& symbols,
                  std::vector<int32_t>& ids) const;

 private:
  struct Slot {
    uint64_t pair = kEmpty;
    uint32_t rank = 0;
    int32_t merged = 0;
  };
  static constexpr uint64_t kEmpty = ~uint64_t{0};
  static constexpr uint32_t kNoRank = ~uint32_t{0};
  struct Chain;   // the linked symbols of a long piece
  struct Window;  // the last symbols of a long piece and their tokens

  const Slot* find(int32_t left, int32_t right) const;
  uint32_t rank(int32_t left, int32_t right) const;
  void merge_short(std::vector<int32_t>& symbols) const;
  Chain merged(std::span<const int32_t> symbols) const;
  bool stay_apart(std::span<const int32_t> symbols, int32_t left, int32_t right) const;
  bool drop_and_merge(Window& window) const;
  void merge_by_rank(Chain& chain) const;
  void merge_by_heap(Chain& chain) const;

  std::vector<Slot> slots_;
  int shift_ = 0;
  bool ranks_ascend_ = true;
};

/// Ids of recent short pieces, direct mapped. Bounded; used by one thread at a time.
class PieceCache {
 public:
  static constexpr std::size_t kMaxBytes = 30;
  static constexpr std::size_t kMaxIds = 8;
  PieceCache() : entries_(kEntries) {}

  /// True when known: its ids have been appended.
  bool lookup(std::string_view piece, std::vector<int32_t>& ids);
  /// Remembers ids[first..] for the piece asked for last, where they fit.
  void remember(std::string_view piece, const std::vector<int32_t>& ids, std::size_t first);

 private:
  static constexpr std::size_t kEntries = 8192;
  struct Entry {
    uint8_t num_bytes = 0;
    uint8_t num_ids = 0;
    char bytes[kMaxBytes];
    int32_t ids[kMaxIds];
  };
  static std::size_t slot_of(std::string_view piece);
  std::vector<Entry> entries_;
};

/// Hands caches to threads, so that concurrent encodes do not share one. At most 64 are kept.
class PieceCachePool {
 public:
  class Lease {
   public:
    explicit Lease(PieceCachePool& pool);
    ~Lease();
    Lease(const Lease&) = delete;
    Lease& operator=(const Lease&) = delete;
    PieceCache& operator*() { return *cache_; }

   private:
    PieceCachePool& pool_;
    std::unique_ptr<PieceCache> cache_;
  };

 private:
  std::mutex mutex_;
  std::vector<std::unique_ptr<PieceCache>> free_;
};

}  // namespace shardtune::data
