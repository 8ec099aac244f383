// The readers of data formats, and what they share: records of a JSON array or of JSON lines with
// their line numbers, column mapping, and messages that name file, line and key.
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "core/error.h"
#include "data/dataset.h"
#include "io/json.h"

namespace shardtune::data {

/// Caps of hostile or mistaken files.
inline constexpr int64_t kMaxDataFileBytes = 4ll << 30;
inline constexpr int64_t kMaxDataRecordBytes = 64ll << 20;

std::vector<Record> read_alpaca(const DatasetFile& file, const std::string& text);
std::vector<Record> read_completion(const DatasetFile& file, const std::string& text);
std::vector<Record> read_messages(const DatasetFile& file, const std::string& text);
std::vector<Record> read_sharegpt(const DatasetFile& file, const std::string& text);
std::vector<Record> read_text(const DatasetFile& file, const std::string& text);

/// One object of a data file. Keys are our words; the column mapping turns them into the file's.
class Row {
 public:
  Row(const DatasetFile& file, int64_t line, const io::Json& object)
      : file_(file), line_(line), object_(object) {}

  /// The file's name for our word.
  std::string key(std::string_view word) const;
  /// nullptr when absent or null.
  const io::Json* find(std::string_view word) const;
  /// DataError when absent or no string.
  const std::string& text(std::string_view word) const;
  /// A list of messages, checked. Roles of other tools (human, gpt, function_call, observation,
  /// ...) become system, user, assistant and tool. `names` are our words for a message's two keys.
  struct MessageNames {
    std::string_view role = "role";
    std::string_view content = "content";
  };
  std::vector<Message> messages(std::string_view word) const { return messages(word, {}); }
  std::vector<Message> messages(std::string_view word, const MessageNames& names) const;
  /// Puts the record's "system" and the tools that it lists into the system message; `list` is the
  /// key of the messages. DataError: "system" beside a message of the system.
  void add_system(std::string_view list, std::vector<Message>& messages) const;
  /// DataError where no message is the assistant's.
  void require_answer(std::string_view word, const std::vector<Message>& messages) const;

  /// "file.jsonl:17: key: expected E, found F. advice"
  [[noreturn]] void fail(const std::string& key, const std::string& expected,
                         const std::string& found, const std::string& advice) const;
  Record record() const;

 private:
  const DatasetFile& file_;
  int64_t line_;
  const io::Json& object_;
};

inline constexpr int kMaxShownErrors = 10;

/// What is wrong with records: all of it is told at once, up to a limit.
class RecordErrors {
 public:
  void add(const DataError& error);
  void throw_if_any() const;

 private:
  int64_t count_ = 0;
  std::string text_;
};

/// Calls `use` for every object of the file, in order. `limit` stops after that many (0 = all).
/// DataError: what is wrong with the records, the first kMaxShownErrors of them together.
void for_each_row(const DatasetFile& file, const std::string& text, int64_t limit,
                  const std::function<void(const Row& row)>& use);

/// ConfigError when a column is given for a word that the format does not have.
void check_columns(const DatasetFile& file, const std::vector<std::string>& words);

}  // namespace shardtune::data
