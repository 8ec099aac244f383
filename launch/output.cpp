#include "launch/output.h"

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <string>

#include "core/error.h"

namespace shardtune::launch {
namespace {

[[noreturn]] void fail() {
  throw WriteError(std::string("standard output: cannot write: ") + std::strerror(errno) +
                   ". Free space or choose another output.");
}

}  // namespace

void print(std::string_view text) {
  if (std::fwrite(text.data(), 1, text.size(), stdout) != text.size())
    fail();
}

void print_json(const io::Json& document) {
  print(document.dump(2) + "\n");
  flush_output();
}

void flush_output() {
  if (std::fflush(stdout) != 0)
    fail();
}

}  // namespace shardtune::launch
