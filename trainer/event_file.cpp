#include "trainer/event_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <bit>
#include <cerrno>
#include <chrono>
#include <cstring>

#include "core/error.h"
#include "io/file.h"

namespace shardtune::trainer {
namespace {

/// Wire types of protobuf.
enum WireType : uint32_t { kVarint = 0, kFixed64 = 1, kBytes = 2, kFixed32 = 5 };

template <typename Integer>
void put_little_endian(std::string& out, Integer value) {
  for (size_t i = 0; i < sizeof(Integer); ++i)
    out += static_cast<char>(value >> (8 * i) & 0xFFu);
}

void put_varint(std::string& out, uint64_t value) {
  for (; value >= 0x80; value >>= 7)
    out += static_cast<char>((value & 0x7Fu) | 0x80u);
  out += static_cast<char>(value);
}

void put_key(std::string& out, uint32_t field, WireType type) {
  put_varint(out, field << 3 | type);
}

void put_bytes(std::string& out, uint32_t field, std::string_view bytes) {
  put_key(out, field, kBytes);
  put_varint(out, bytes.size());
  out += bytes;
}

std::string event(double wall_time, int64_t step) {
  std::string out;
  put_key(out, 1, kFixed64);
  put_little_endian(out, std::bit_cast<uint64_t>(wall_time));
  if (step != 0) {
    put_key(out, 2, kVarint);
    put_varint(out, static_cast<uint64_t>(step));
  }
  return out;
}

uint32_t masked_crc(std::string_view bytes) {
  const uint32_t crc = io::crc32c(io::as_bytes(bytes));
  return (crc >> 15 | crc << 17) + 0xA282EAD8u;
}

double now() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

std::string host_name() {
  char name[256] = {};
  return gethostname(name, sizeof name - 1) == 0 ? name : "host";
}

}  // namespace

std::string event_record(std::string_view payload) {
  std::string record;
  put_little_endian(record, static_cast<uint64_t>(payload.size()));
  put_little_endian(record, masked_crc(record));
  record += payload;
  put_little_endian(record, masked_crc(payload));
  return record;
}

std::string version_event(double wall_time) {
  std::string out = event(wall_time, 0);
  put_bytes(out, 3, "brain.Event:2");
  return out;
}

std::string restart_event(double wall_time, int64_t step) {
  std::string status;
  put_key(status, 1, kVarint);
  put_varint(status, 1);  // START
  std::string out = event(wall_time, step);
  put_bytes(out, 7, status);
  return out;
}

std::string scalars_event(double wall_time, int64_t step, const Scalars& scalars) {
  std::string summary;
  for (const auto& [tag, number] : scalars) {
    std::string value;
    put_bytes(value, 1, tag);
    put_key(value, 2, kFixed32);
    put_little_endian(value, std::bit_cast<uint32_t>(number));
    put_bytes(summary, 1, value);
  }
  std::string out = event(wall_time, step);
  put_bytes(out, 5, summary);
  return out;
}

EventFile::EventFile(const std::filesystem::path& folder, int64_t first_step) {
  io::create_folders(folder);
  const double time = now();
  const std::string name = "events.out.tfevents." + std::to_string(static_cast<int64_t>(time)) +
                           "." + host_name() + "." + std::to_string(getpid()) + ".";
  for (int number = 0; file_ < 0; ++number) {
    path_ = folder / (name + std::to_string(number));
    file_ = open(path_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_APPEND | O_CLOEXEC, 0644);
    if (file_ < 0 && errno != EEXIST)
      throw WriteError(path_.string() + ": cannot write: " + std::strerror(errno) + ".");
  }
  append(version_event(time));
  if (first_step > 0)
    append(restart_event(time, first_step + 1));
}

EventFile::~EventFile() {
  if (file_ >= 0)
    close(file_);
}

void EventFile::add(int64_t step, const Scalars& scalars) {
  append(scalars_event(now(), step, scalars));
}

void EventFile::append(const std::string& payload) {
  const std::string record = event_record(payload);
  const off_t before = lseek(file_, 0, SEEK_END);
  for (size_t done = 0; done < record.size();) {
    const ssize_t count = write(file_, record.data() + done, record.size() - done);
    if (count < 0 && errno == EINTR)
      continue;
    if (count <= 0) {
      const std::string why = std::strerror(errno);
      [[maybe_unused]] const int ignored = ftruncate(file_, before);  // readers stop at a torn one
      throw WriteError(path_.string() + ": cannot write: " + why + ".");
    }
    done += static_cast<size_t>(count);
  }
}

}  // namespace shardtune::trainer
