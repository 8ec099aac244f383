#include "data/normalizer.h"

#include "data/text_split.h"

namespace shardtune::data {
namespace {

std::string replaced(std::string_view text, const NormalizeStep& step) {
  // Counted first: a string that grows is copied into new pages each time.
  std::size_t count = 0;
  for (std::size_t at = 0; (at = text.find(step.from, at)) != std::string_view::npos; ++count)
    at += step.from.size();
  std::string result;
  result.reserve(text.size() - count * step.from.size() + count * step.to.size());
  std::size_t done = 0;
  for (std::size_t at = 0; (at = text.find(step.from, done)) != std::string_view::npos;) {
    result.append(text.substr(done, at - done)).append(step.to);
    done = at + step.from.size();
  }
  return result.append(text.substr(done));
}

}  // namespace

std::string normalize(const std::vector<NormalizeStep>& steps, std::string_view text,
                      TextStart start) {
  std::string result(text);
  for (const NormalizeStep& step : steps) {
    switch (step.kind) {
      case NormalizeStep::Kind::kNfc:
        result = normalize_nfc(result);
        break;
      case NormalizeStep::Kind::kPrepend:
        if (!result.empty() && start != TextStart::kInside)
          result.insert(0, step.to);
        break;
      case NormalizeStep::Kind::kReplace:
        result = replaced(result, step);
        break;
    }
  }
  return result;
}

}  // namespace shardtune::data
