// An explicit table of named factories, and the nearest-name hint of error messages. Tables are
// written out in each folder's registry.cpp: self-registering statics vanish from static libraries.
#pragma once

#include <initializer_list>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/error.h"

namespace shardtune {

/// The candidate with the smallest edit distance to `name`, or "" when none is near (more than a
/// third of the letters differ).
std::string nearest_name(std::string_view name, const std::vector<std::string>& candidates);

/// "; did you mean 'x'? Known: a, b, x." - the tail of every unknown-name message.
std::string known_names_hint(std::string_view name, const std::vector<std::string>& candidates);

/// Names to factories, in the order of the table.
template <typename Factory>
class Registry {
 public:
  /// `what` is the word of the error message, e.g. "adapter.method".
  Registry(std::string what, std::initializer_list<std::pair<std::string_view, Factory>> entries)
      : what_(std::move(what)) {
    for (const auto& [name, factory] : entries)
      entries_.emplace_back(std::string(name), factory);
  }

  bool contains(std::string_view name) const { return find(name) != nullptr; }

  /// ConfigError naming the known entries when there is no such name.
  const Factory& at(std::string_view name) const {
    if (const Factory* factory = find(name))
      return *factory;
    throw ConfigError(what_ + ": unknown '" + std::string(name) + "'" +
                      known_names_hint(name, names()));
  }

  std::vector<std::string> names() const {
    std::vector<std::string> result;
    for (const auto& entry : entries_)
      result.push_back(entry.first);
    return result;
  }

 private:
  const Factory* find(std::string_view name) const {
    for (const auto& entry : entries_) {
      if (entry.first == name)
        return &entry.second;
    }
    return nullptr;
  }

  std::string what_;
  std::vector<std::pair<std::string, Factory>> entries_;
};

}  // namespace shardtune
