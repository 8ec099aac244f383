// One page about a run, as a single HTML file that refers to nothing outside: curves, where the
// time of a step went, results, warnings, the resolved configuration.
#pragma once

#include <filesystem>
#include <string>

#include "trainer/run_records.h"

namespace shardtune::trainer {

/// The page. Everything that comes from the run's files is escaped.
std::string report_page(const RunRecords& run);

/// Reads a run directory and writes the page to `out`.
/// Errors  those of read_run; WriteError
void write_report(const std::filesystem::path& folder, const std::filesystem::path& out);

/// Writes report.html into the directory when it ends, however the run ends; a failure is a
/// warning. Of rank 0.
class ReportAtEnd {
 public:
  explicit ReportAtEnd(std::filesystem::path folder) : folder_(std::move(folder)) {}
  ~ReportAtEnd();
  ReportAtEnd(const ReportAtEnd&) = delete;
  ReportAtEnd& operator=(const ReportAtEnd&) = delete;

 private:
  std::filesystem::path folder_;
};

}  // namespace shardtune::trainer
