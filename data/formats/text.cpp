// {"text": ...}, or a .txt file: one document, cut into samples of max_length tokens.
#include "core/error.h"
#include "data/formats/formats.h"

namespace shardtune::data {

std::vector<Record> read_text(const DatasetFile& file, const std::string& text) {
  check_columns(file, {"text"});
  std::vector<Record> records;
  if (io::fs::path(file.path).extension() == ".txt") {
    Record record;
    record.file = file.path;
    record.line = 1;
    record.text = text;
    record.cut_into_samples = true;
    if (!text.empty())
      records.push_back(std::move(record));
    return records;
  }
  for_each_row(file, text, 0, [&](const Row& row) {
    Record record = row.record();
    record.text = row.text("text");
    if (record.text.empty())
      row.fail(row.key("text"), "a text", "an empty string", "Remove the record or fill it in.");
    records.push_back(std::move(record));
  });
  return records;
}

}  // namespace shardtune::data
