// Lines of a file or of standard input in bounded blocks, so that files larger than memory stream.
#pragma once

#include <cstdio>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace shardtune::launch {

class LineReader {
 public:
  /// "-" is standard input. MissingInputError: no such file, a folder, not readable.
  explicit LineReader(const std::string& path);

  /// The next lines, without their '\n', about block_bytes of them; empty at the end. The views are
  /// valid until the next call. A last line without '\n' counts; nothing after the last '\n' does
  /// not. DataError: a line longer than 1 GiB.
  std::vector<std::string_view> next_block(size_t block_bytes);
  const std::string& name() const { return name_; }

 private:
  bool fill(size_t wanted);

  struct Close {
    void operator()(std::FILE* file) const {
      if (file != stdin)
        std::fclose(file);
    }
  };
  std::string name_;
  std::unique_ptr<std::FILE, Close> file_;
  std::string buffer_;
  size_t used_ = 0;  // bytes of buffer_ already given out
};

}  // namespace shardtune::launch
