#include "launch/line_reader.h"

#include <sys/stat.h>

#include <cerrno>
#include <cstring>

#include "core/error.h"

namespace shardtune::launch {
namespace {

constexpr size_t kMaxLineBytes = size_t{1} << 30;

}  // namespace

LineReader::LineReader(const std::string& path) : name_(path == "-" ? "standard input" : path) {
  if (path == "-") {
    file_.reset(stdin);
    return;
  }
  struct stat info {};
  file_.reset(std::fopen(path.c_str(), "rbe"));
  if (!file_)
    throw MissingInputError(path + ": cannot read: " + std::strerror(errno) + ". Check the path.");
  if (fstat(fileno(file_.get()), &info) == 0 && S_ISDIR(info.st_mode))
    throw MissingInputError(path + ": expected a file, found a folder. Give a text file.");
}

bool LineReader::fill(size_t wanted) {
  const size_t before = buffer_.size();
  buffer_.resize(before + wanted);
  const size_t got = std::fread(buffer_.data() + before, 1, wanted, file_.get());
  buffer_.resize(before + got);
  if (got < wanted && std::ferror(file_.get()) != 0)
    throw MissingInputError(name_ + ": cannot read: " + std::strerror(errno) + ".");
  return got > 0;
}

std::vector<std::string_view> LineReader::next_block(size_t block_bytes) {
  buffer_.erase(0, used_);
  used_ = 0;
  size_t last = std::string::npos;
  bool is_end = false;
  while (last == std::string::npos && !is_end) {
    is_end = !fill(block_bytes);
    last = buffer_.rfind('\n');
    if (last == std::string::npos && buffer_.size() > kMaxLineBytes)
      throw DataError(name_ + ": a line is longer than 1 GiB. Split it.");
  }
  std::vector<std::string_view> lines;
  used_ = last != std::string::npos ? last + 1 : buffer_.size();
  const std::string_view text = std::string_view(buffer_).substr(0, used_);
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    lines.push_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  return lines;
}

}  // namespace shardtune::launch
