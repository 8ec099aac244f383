// Data files to tokenised samples with a loss mask. Every format yields the same Sample; a record
// that cannot be trained on is an error naming file, line and key.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/registry.h"
#include "data/chat_template.h"
#include "data/tokenizer.h"

namespace shardtune::data {

/// Which tokens carry loss. kCompletion: the last answer (completion, or the last assistant turn);
/// kAssistant: every assistant turn; kAll: every token but the first.
enum class TrainOn { kCompletion, kAssistant, kAll };

/// A record before tokenising: either a plain text, or messages (completion records are user +
/// assistant messages, or raw prompt + completion strings when no template is used).
struct Record {
  std::string file;
  int64_t line = 0;               // 1-based
  std::vector<Message> messages;  // empty for text records
  std::string text;               // text records
  bool raw = false;               // prompt and completion are strings: usable without template
  int32_t task_id = -1;           // of its file
  bool cut_into_samples = false;  // a whole document: cut every max_length tokens, not truncated
};

/// What max_length took from a sample: kAnswer when trained tokens are gone.
enum class Cut : uint8_t { kNone, kUntrained, kAnswer };

/// One tokenised sample. trained[i] says that token i is a target (trained[0] is always false).
struct Sample {
  std::vector<int32_t> ids;
  std::vector<uint8_t> trained;
  Cut cut = Cut::kNone;
  uint64_t id = 0;       // stable: index of the sample over all files, in order
  int64_t record = 0;    // index into the records (for messages)
  int32_t task_id = -1;  // of its file; -1: none
};

struct DatasetFile {
  std::string path;
  std::string format = "auto";
  std::vector<std::pair<std::string, std::string>> columns;  // our word -> the file's key
  int32_t task_id = -1;                                      // of multitask prompt tuning; -1: none
};

struct DatasetOptions {
  std::vector<DatasetFile> files;
  TrainOn train_on = TrainOn::kCompletion;
  int64_t max_length = 1024;
};

struct DatasetStats {
  int64_t num_samples = 0;
  int64_t num_tokens = 0;
  int64_t num_trained_tokens = 0;
  int64_t num_truncated = 0;          // cut at max_length
  int64_t num_truncated_answers = 0;  // of those, the trained end token was cut off
  int64_t max_sample_tokens = 0;
};

DatasetStats stats_of(const std::vector<Sample>& samples);

struct Dataset {
  std::vector<Sample> samples;
  std::vector<Record> records;
  DatasetStats stats;
};

/// Reader of one format: bytes of the file to records.
/// Errors  DataError "file:line: key: ..." for a line that does not parse or lacks a key
using FormatReader = std::vector<Record> (*)(const DatasetFile& file, const std::string& text);
const Registry<FormatReader>& dataset_formats();

std::vector<Record> read_records(const DatasetFile& file);

/// Tokenises one record. Prompt and answer meet where the template puts a boundary, so that prompt
/// ids never depend on the answer. `chat` may be nullptr for text and raw records.
Sample tokenize_record(const Record& record, const Tokenizer& tokenizer, const ChatTemplate* chat,
                       TrainOn train_on);

/// Takes an evaluation set out of a dataset: a share (below 1) or a count of its samples, at least
/// one, chosen by counter-based random numbers of (seed, sample id): the same on every rank and
/// resume. Samples keep their ids and order. ConfigError: nothing would be left to train on.
Dataset split_off(Dataset& dataset, double share_or_count, uint64_t seed);

/// Reads and tokenises all files, in parallel over records, in record order. Samples longer than
/// max_length are cut at the end and counted. DataError: no samples; samples without a trained
/// token (naming file, line and key) or with an answer whose end token would never be trained, the
/// first ten of them together.
Dataset load_dataset(const DatasetOptions& options, const Tokenizer& tokenizer,
                     const ChatTemplate* chat);

/// Ids of a conversation up to where the assistant answers, as training sees them: assistant turns
/// are encoded on their own, the text between them as one, and content never yields special tokens.
std::vector<int32_t> encode_chat(const std::vector<Message>& messages, const Tokenizer& tokenizer,
                                 const ChatTemplate& chat, GenerationPrompt prompt);

/// The prompt of a record as ids with the generation prompt appended, and the expected answer text
/// (last assistant turn or completion): what exact_match compares.
struct PromptAndAnswer {
  std::vector<int32_t> prompt_ids;
  std::string answer;
};
PromptAndAnswer prompt_of_record(const Record& record, const Tokenizer& tokenizer,
                                 const ChatTemplate* chat);

}  // namespace shardtune::data
