// Exception classes, one per exit code of the program. A message has four parts: where, what,
// expected against found, what to do. Libraries throw these and never print or exit; only launch/
// turns one into an exit code.
#pragma once

#include <stdexcept>
#include <string>

namespace shardtune {

/// Exit codes of the program (docs/exit_codes.md). Scripts and schedulers rely on them.
enum class ExitCode : int {
  kOk = 0,
  kUsage = 64,         // command line, configuration, unsupported combination, ranks disagree
  kDamagedInput = 65,  // an input file is there but wrong
  kMissingInput = 66,  // an input file is missing or unreadable
  kPeerLost = 70,      // a rank died or stopped answering
  kInternal = 71,      // our own bug, or a device failed
  kCannotWrite = 73,   // an output could not be written
  kCorruptBlock = 74,  // a block written by us came back different
  kPreempted = 75,     // stopped by a signal; run again to go on
  kNonFinite = 76,     // NaN or infinity in loss, gradient or weight
  kOutOfMemory = 77,   // predicted not to fit
};

/// Base of every error the program reports; carries the exit code.
class Error : public std::runtime_error {
 public:
  Error(ExitCode code, const std::string& message) : std::runtime_error(message), code_(code) {}
  ExitCode exit_code() const { return code_; }

 private:
  ExitCode code_;
};

#define SHARDTUNE_DEFINE_ERROR(Name, Code)                                        \
  class Name : public Error {                                                     \
   public:                                                                        \
    explicit Name(const std::string& message) : Error(ExitCode::Code, message) {} \
  }

SHARDTUNE_DEFINE_ERROR(ConfigError, kUsage);        // command line or YAML
SHARDTUNE_DEFINE_ERROR(UnsupportedError, kUsage);   // a combination we do not have
SHARDTUNE_DEFINE_ERROR(RankMismatchError, kUsage);  // ranks started with different inputs
SHARDTUNE_DEFINE_ERROR(DataError, kDamagedInput);   // a damaged or malformed input file
SHARDTUNE_DEFINE_ERROR(MissingInputError, kMissingInput);
SHARDTUNE_DEFINE_ERROR(WriteError, kCannotWrite);
SHARDTUNE_DEFINE_ERROR(CorruptBlockError, kCorruptBlock);
SHARDTUNE_DEFINE_ERROR(CommError, kPeerLost);
SHARDTUNE_DEFINE_ERROR(DeviceError, kInternal);
SHARDTUNE_DEFINE_ERROR(ArgumentError, kInternal);  // a caller broke a function's contract
SHARDTUNE_DEFINE_ERROR(NonFiniteError, kNonFinite);
SHARDTUNE_DEFINE_ERROR(OutOfMemoryError, kOutOfMemory);
SHARDTUNE_DEFINE_ERROR(PreemptedError, kPreempted);

#undef SHARDTUNE_DEFINE_ERROR

namespace detail {
[[noreturn]] void assertion_failed(const char* expression, const char* file, int line);
}  // namespace detail

}  // namespace shardtune

/// For our own bugs only; always on; the expression must have no side effects.
#define SHARDTUNE_ASSERT(expression) \
  ((expression) ? void(0) : ::shardtune::detail::assertion_failed(#expression, __FILE__, __LINE__))
