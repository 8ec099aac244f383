// The fixed parts of the report's page: nothing in them comes from outside, and they refer to
// nothing outside.
#pragma once

#include <string_view>

namespace shardtune::trainer {

/// The style sheet, light and dark, wide and narrow.
extern const std::string_view kReportStyle;
/// Shows values under the pointer.
extern const std::string_view kReportScript;

}  // namespace shardtune::trainer
