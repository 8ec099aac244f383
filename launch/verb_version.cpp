// version: what this binary is and what it found.
#include "core/parallel_for.h"
#include "core/topology.h"
#include "launch/build_info.h"
#include "launch/command_line.h"
#include "launch/output.h"
#include "launch/verbs.h"
#include "trainer/config.h"

namespace shardtune::launch {
namespace {

io::Json version_json() {
  io::Json json = io::Json::object();
  json.set("version", program_version());
  json.set("git", git_describe());
  json.set("build_type", build_type());
  json.set("compiler", compiler());
  json.set("cuda", false);
  json.set("nccl", false);
  io::Json cpu = io::Json::object();
  cpu.set("device", "cpu");
  cpu.set("model", cpu_model());
  cpu.set("features", cpu_features());
  cpu.set("cores", num_usable_cores());
  cpu.set("threads", num_threads());
  cpu.set("memory_bytes", static_cast<int64_t>(usable_memory_bytes()));
  cpu.set("compute_dtype", name_of(trainer::resolve_compute_dtype("auto")));
  io::Json devices = io::Json::array();
  devices.push_back(std::move(cpu));
  json.set("devices", std::move(devices));
  io::Json list = io::Json::object();
  for (const auto& [name, version] : libraries())
    list.set(name, version);
  json.set("libraries", std::move(list));
  return json;
}

std::string version_text() {
  std::string text = std::string("shardtune ") + program_version() + " (" + git_describe() + ")\n";
  text += std::string("build      ") + build_type() + ", " + compiler() + ", CUDA off, NCCL off\n";
  text += "cpu        " + cpu_model() + ", " + std::to_string(num_usable_cores()) + " cores, " +
          std::to_string(usable_memory_bytes() >> 20) + " MiB\n";
  text += "features   " + cpu_features() +
          "; compute_dtype auto = " + std::string(name_of(trainer::resolve_compute_dtype("auto"))) +
          "\n";
  text += "libraries ";
  for (const auto& [name, version] : libraries())
    text += " " + name + " " + version + ";";
  text.back() = '\n';
  return text;
}

}  // namespace

int run_version(Arguments arguments) {
  CommandLine line("version [--json]", "Version, build options, devices, CPU features, libraries.");
  line.flag("json", "print one JSON document");
  line.threads_option();
  if (!line.parse(arguments))
    return 0;
  line.apply_threads();
  if (line.has("json"))
    print_json(version_json());
  else
    print(version_text());
  return 0;
}

}  // namespace shardtune::launch
