// report: one page about a run.
#include "core/error.h"
#include "core/log.h"
#include "launch/command_line.h"
#include "launch/verbs.h"
#include "trainer/report.h"

namespace shardtune::launch {

int run_report(Arguments arguments) {
  CommandLine line("report RUN_DIR --out FILE.html",
                   "Writes one self-contained page about a run: curves, where the time of a step "
                   "went, results, warnings, configuration. The run may be under way or killed.");
  line.positional("RUN_DIR", "the run's directory (checkpoint.output_dir)");
  line.value("out", "FILE.html", "where the page goes; an existing file is replaced");
  if (!line.parse(arguments))
    return 0;
  const std::string folder = line.required("RUN_DIR");
  const std::string out = line.required("out");
  if (out.empty())
    throw ConfigError(
        "--out: expected the name of a page, found an empty text. Write for example "
        "--out report.html.");
  trainer::write_report(folder, out);
  log_info("wrote " + out);
  return 0;
}

}  // namespace shardtune::launch
