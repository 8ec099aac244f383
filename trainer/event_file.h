// TensorBoard's event file: records framed as in TFRecord, each an Event protobuf. Of the format
// only what scalars need is written (the fields of Event: wall_time 1, step 2, file_version 3,
// summary 5, session_log 7).
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace shardtune::trainer {

using Scalars = std::vector<std::pair<std::string, float>>;  // tag, value

/// u64 length, masked CRC-32C of it, payload, masked CRC-32C of the payload; little endian.
std::string event_record(std::string_view payload);
/// The first event of a file.
std::string version_event(double wall_time);
/// Tells readers to drop what earlier files of the folder hold from `step` on.
std::string restart_event(double wall_time, int64_t step);
std::string scalars_event(double wall_time, int64_t step, const Scalars& scalars);

/// Appends events to a new file of a folder, which it makes. WriteError on failure; a record that
/// could not be written whole is taken back.
class EventFile {
 public:
  /// `first_step` steps are done already: readers then take the later steps from here.
  EventFile(const std::filesystem::path& folder, int64_t first_step);
  ~EventFile();
  EventFile(const EventFile&) = delete;
  EventFile& operator=(const EventFile&) = delete;

  void add(int64_t step, const Scalars& scalars);

 private:
  void append(const std::string& payload);

  std::filesystem::path path_;
  int file_ = -1;
};

}  // namespace shardtune::trainer
