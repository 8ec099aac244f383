// Sums in a tree whose shape depends on the number of terms alone (DESIGN section 8.2). Terms are
// pushed in order of the global micro-batch, as one counts in binary: slot i holds the sum of 2^i
// consecutive terms. An absent term keeps its place and adds nothing, so the bits do not depend on
// which rank computed a term or on how many ranks there are.
#pragma once

#include <cstddef>
#include <optional>
#include <utility>
#include <vector>

namespace shardtune::parallel {

/// Node: movable. Combine: Node(Node earlier, Node later), called in this order of arguments.
template <typename Node, typename Combine>
class BinaryCounter {
 public:
  explicit BinaryCounter(Combine combine = Combine{}) : combine_(std::move(combine)) {}

  /// Next term; nullopt when it is absent.
  void push(std::optional<Node> term) {
    size_t level = 0;
    for (size_t bits = count_; (bits & 1u) != 0; bits >>= 1, ++level)
      term = merge(std::exchange(slots_[level], std::nullopt), std::move(term));
    if (level == slots_.size())
      slots_.emplace_back();
    slots_[level] = std::move(term);
    ++count_;
  }

  /// Sum of all terms, added from the low end; empties the counter. nullopt when all are absent.
  std::optional<Node> fold() {
    std::optional<Node> sum;
    for (auto& slot : slots_)
      sum = merge(std::exchange(slot, std::nullopt), std::move(sum));
    clear();
    return sum;
  }

  void clear() {
    slots_.clear();
    count_ = 0;
  }
  size_t count() const { return count_; }

 private:
  std::optional<Node> merge(std::optional<Node> earlier, std::optional<Node> later) {
    if (!earlier)
      return later;
    if (!later)
      return earlier;
    return combine_(std::move(*earlier), std::move(*later));
  }

  std::vector<std::optional<Node>> slots_;
  size_t count_ = 0;
  Combine combine_;
};

}  // namespace shardtune::parallel
