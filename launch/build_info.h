// What this binary is: filled in by CMake (build_info.cpp.in).
#pragma once

#include <string>
#include <utility>
#include <vector>

namespace shardtune::launch {

const char* program_version();
const char* git_describe();
const char* build_type();
const char* compiler();
/// Library and version it was built with, in one fixed order.
const std::vector<std::pair<std::string, std::string>>& libraries();
/// Version, build, instruction set and libraries in one line: equal on all ranks of a run.
std::string build_identity();

}  // namespace shardtune::launch
