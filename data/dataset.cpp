#include "data/dataset.h"

#include <algorithm>

#include "core/error.h"
#include "core/parallel_for.h"
#include "data/formats/formats.h"
#include "io/file.h"

namespace shardtune::data {
namespace {

/// Formats that have a name but no reader yet.
constexpr std::string_view kComingFormats[] = {"preference"};

[[noreturn]] void refuse_format(const std::string& where, std::string_view format) {
  throw UnsupportedError(where + ": format '" + std::string(format) + "' is not there yet; see " +
                         "docs/status.md. Write the records in another format.");
}

std::string format_of_row(const DatasetFile& file, const Row& row) {
  if (row.find("messages") != nullptr)
    return "messages";
  if (row.find("prompt") != nullptr && row.find("completion") != nullptr)
    return "completion";
  if (row.find("chosen") != nullptr)
    refuse_format(file.path, "preference");
  if (row.find("conversations") != nullptr)
    return "sharegpt";
  if (row.find("instruction") != nullptr)
    return "alpaca";
  if (row.find("text") != nullptr)
    return "text";
  row.fail("format", "prompt and completion, messages, conversations, instruction, or text",
           "none of these keys", "Name the format, and the file's keys under 'columns'.");
}

/// Files that are tables or packed, told by their names.
void refuse_other_files(const std::string& path) {
  const std::string extension = io::fs::path(path).extension().string();
  for (const std::string_view other :
       {".csv", ".tsv", ".parquet", ".arrow", ".xlsx", ".gz", ".zst", ".zip"}) {
    if (extension == other)
      throw UnsupportedError(path + ": expected a JSON array, JSON lines or .txt, found " +
                             extension +
                             " by its name. Convert or unpack it first, for example "
                             "with datasets' to_json.");
  }
}

/// The format that the first record's keys tell; a .txt file is text.
std::string detect_format(const DatasetFile& file, const std::string& text) {
  if (io::fs::path(file.path).extension() == ".txt")
    return "text";
  std::string format;
  for_each_row(file, text, 1, [&](const Row& row) { format = format_of_row(file, row); });
  if (format.empty())
    throw DataError(file.path + ": expected records, found none. Fill the file.");
  return format;
}

/// A record's place in messages: "file.jsonl:17".
std::string place(const Record& record) { return record.file + ":" + std::to_string(record.line); }

/// Appends ids to a sample, all trained or none; the first token of a sample is never a target.
void append(Sample& sample, const std::vector<int32_t>& ids, bool trained) {
  for (const int32_t id : ids) {
    sample.trained.push_back(trained && !sample.ids.empty() ? 1 : 0);
    sample.ids.push_back(id);
  }
}

/// What the tokenizer puts before and after a text of its own accord.
struct Ends {
  std::vector<int32_t> before;
  std::vector<int32_t> after;
};

Ends ends_of(const Tokenizer& tokenizer) {
  Ends ends;
  const auto around = tokenizer.encode("", {});
  // A tokenizer without text gives its ends only; the EOS goes behind, everything else before.
  for (const int32_t id : around) {
    const bool is_end = tokenizer.eos_id() == id && tokenizer.bos_id() != id;
    (is_end ? ends.after : ends.before).push_back(id);
  }
  if (ends.after.empty() && tokenizer.eos_id())
    ends.after.push_back(*tokenizer.eos_id());
  return ends;
}

std::vector<int32_t> encode_plain(const Tokenizer& tokenizer, std::string_view text) {
  return tokenizer.encode(text, {SpecialTokens::kPlain, AddedEnds::kNone});
}

/// Where a text stands that follows these ids: in the middle of a text no prefix of words is added.
TextStart start_after(const std::vector<int32_t>& ids, const Tokenizer& tokenizer) {
  if (ids.empty())
    return TextStart::kOfInput;
  return tokenizer.is_special(ids.back()) ? TextStart::kAfterToken : TextStart::kInside;
}

Sample tokenize_text(const Record& record, const Tokenizer& tokenizer) {
  const Ends ends = ends_of(tokenizer);
  Sample sample;
  append(sample, ends.before, true);
  append(sample, encode_plain(tokenizer, record.text), true);
  append(sample, ends.after, true);
  return sample;
}

void require_raw(const Record& record) {
  if (!record.raw || record.messages.size() != 2)
    throw DataError(place(record) + ": data.chat_template: expected a template for messages, " +
                    "found none. Set data.chat_template, or give prompt and completion as text.");
}

Sample tokenize_raw(const Record& record, const Tokenizer& tokenizer, TrainOn train_on) {
  require_raw(record);
  const Ends ends = ends_of(tokenizer);
  Sample sample;
  append(sample, ends.before, train_on == TrainOn::kAll);
  append(sample, encode_plain(tokenizer, record.messages[0].content), train_on == TrainOn::kAll);
  // The answer continues the prompt, whose ids do not depend on it.
  const TextStart start =
      record.messages[0].content.empty() ? TextStart::kOfInput : TextStart::kInside;
  append(sample,
         tokenizer.encode_parts({{record.messages[1].content, SpecialTokens::kPlain}}, start),
         true);
  append(sample, ends.after, true);
  return sample;
}

/// A stretch of rendered text that is encoded on its own.
struct Stretch {
  std::vector<EncodePart> parts;
  int assistant_message = -1;  // index of the answered message, or -1 between answers
};

/// Cuts where an answer begins and after its end token, and nowhere else: so prompt ids do not
/// depend on the answer, and all else merges as in the reference.
std::vector<Stretch> cut_into_stretches(const std::vector<RenderedPiece>& pieces) {
  std::vector<Stretch> stretches;
  for (const RenderedPiece& piece : pieces) {
    const int assistant = piece.is_assistant ? piece.message_index : -1;
    if (stretches.empty() || stretches.back().assistant_message != assistant)
      stretches.push_back({{}, assistant});
    stretches.back().parts.push_back(
        {piece.text, piece.is_template ? SpecialTokens::kParse : SpecialTokens::kPlain});
  }
  return stretches;
}

std::vector<RenderedPiece> render_record(const Record& record, const ChatTemplate& chat) {
  try {
    return chat.render(record.messages, GenerationPrompt::kNone);
  } catch (const DataError& error) {
    throw DataError(place(record) + ": " + error.what());
  }
}

Sample tokenize_chat(const Record& record, const Tokenizer& tokenizer, const ChatTemplate& chat,
                     TrainOn train_on) {
  const std::vector<RenderedPiece> pieces = render_record(record, chat);
  const std::vector<Stretch> stretches = cut_into_stretches(pieces);
  int last_answer = -1;
  for (const Stretch& stretch : stretches)
    last_answer = std::max(last_answer, stretch.assistant_message);
  Sample sample;
  for (const Stretch& stretch : stretches) {
    const bool answer = stretch.assistant_message >= 0;
    const bool trained =
        train_on == TrainOn::kAll ||
        (answer && (train_on == TrainOn::kAssistant || stretch.assistant_message == last_answer));
    append(sample, tokenizer.encode_parts(stretch.parts, start_after(sample.ids, tokenizer)),
           trained);
  }
  return sample;
}

/// Key of the message about a record: what the user has to look at.
std::string answer_key(const Record& record) {
  if (record.messages.empty())
    return "text";
  return record.raw ? "completion" : "messages";
}

/// The end of the last answer must be a token that stops generation, or a model trained on it
/// never learns to stop.
void require_end_token(const Record& record, const Sample& sample, const Tokenizer& tokenizer) {
  if (record.messages.empty())
    return;
  const std::vector<int32_t> stops = tokenizer.stop_ids();
  for (std::size_t i = 0; i < sample.ids.size(); ++i) {
    if (sample.trained[i] && std::binary_search(stops.begin(), stops.end(), sample.ids[i]))
      return;
  }
  throw DataError(place(record) + ": " + answer_key(record) +
                  ": expected an answer closed by a token that ends generation, found that the "
                  "tokenizer has none for it. Choose the chat template of this model.");
}

/// Samples of one record under max_length: cut at the end, or a document cut into pieces.
std::vector<Sample> fit(const Record& record, Sample whole, const DatasetOptions& options) {
  const auto limit = static_cast<std::size_t>(options.max_length);
  std::vector<Sample> samples;
  if (whole.ids.size() <= limit) {
    samples.push_back(std::move(whole));
  } else if (record.cut_into_samples) {
    for (std::size_t begin = 0; begin < whole.ids.size(); begin += limit) {
      const std::size_t end = std::min(begin + limit, whole.ids.size());
      if (end - begin < 2)
        break;  // a last token alone trains nothing
      Sample piece;
      piece.ids.assign(whole.ids.begin() + static_cast<long>(begin),
                       whole.ids.begin() + static_cast<long>(end));
      piece.trained.assign(end - begin, 1);
      piece.trained[0] = 0;
      samples.push_back(std::move(piece));
    }
  } else {
    const auto rest = whole.trained.begin() + static_cast<long>(limit);
    whole.cut = std::find(rest, whole.trained.end(), 1) != whole.trained.end() ? Cut::kAnswer
                                                                               : Cut::kUntrained;
    whole.ids.resize(limit);
    whole.trained.resize(limit);
    samples.push_back(std::move(whole));
  }
  return samples;
}

void require_trained(const Record& record, const Sample& sample, const DatasetOptions& options) {
  if (std::find(sample.trained.begin(), sample.trained.end(), 1) != sample.trained.end())
    return;
  throw DataError(place(record) + ": " + answer_key(record) +
                  ": expected a trained token within data.max_length " +
                  std::to_string(options.max_length) +
                  ", found none. Raise data.max_length or remove the record.");
}

/// What the template makes of the answer `index`, without its end token.
std::string answer_text(const Record& record, const ChatTemplate& chat, int64_t index) {
  std::string text;
  std::string end;
  for (const RenderedPiece& piece : render_record(record, chat)) {
    if (!piece.is_assistant || piece.message_index != index)
      continue;
    text += end;
    end = piece.text;
  }
  return text;
}

}  // namespace

std::vector<Record> read_records(const DatasetFile& file) {
  for (const std::string_view coming : kComingFormats) {
    if (file.format == coming)
      refuse_format(file.path, file.format);
  }
  if (file.format != "auto")
    dataset_formats().at(file.format);  // a wrong name is told before the file is read
  std::string text = io::read_text_file(file.path, kMaxDataFileBytes);
  if (file.format != "text")
    refuse_other_files(file.path);
  const std::string format = file.format == "auto" ? detect_format(file, text) : file.format;
  std::vector<Record> records = dataset_formats().at(format)(file, text);
  if (records.empty())
    throw DataError(file.path + ": expected records, found none. Fill the file.");
  return records;
}

Sample tokenize_record(const Record& record, const Tokenizer& tokenizer, const ChatTemplate* chat,
                       TrainOn train_on) {
  if (record.messages.empty())
    return tokenize_text(record, tokenizer);
  return chat != nullptr ? tokenize_chat(record, tokenizer, *chat, train_on)
                         : tokenize_raw(record, tokenizer, train_on);
}

Dataset load_dataset(const DatasetOptions& options, const Tokenizer& tokenizer,
                     const ChatTemplate* chat) {
  if (options.max_length < 2)
    throw ArgumentError("data.max_length: expected at least 2, found " +
                        std::to_string(options.max_length) + ".");
  Dataset dataset;
  for (const DatasetFile& file : options.files) {
    std::vector<Record> records = read_records(file);
    for (Record& record : records)
      record.task_id = file.task_id;
    std::move(records.begin(), records.end(), std::back_inserter(dataset.records));
  }
  if (dataset.records.empty())
    throw DataError("data: expected at least one record, found none. Name a data file.");
  std::vector<Sample> whole(dataset.records.size());
  parallel_for(static_cast<int64_t>(whole.size()), 16, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const auto at = static_cast<std::size_t>(i);
      whole[at] = tokenize_record(dataset.records[at], tokenizer, chat, options.train_on);
    }
  });
  RecordErrors errors;
  for (std::size_t i = 0; i < whole.size(); ++i) {
    const Record& record = dataset.records[i];
    try {
      require_end_token(record, whole[i], tokenizer);
      for (Sample& sample : fit(record, std::move(whole[i]), options)) {
        require_trained(record, sample, options);
        sample.id = dataset.samples.size();
        sample.record = static_cast<int64_t>(i);
        sample.task_id = record.task_id;
        dataset.samples.push_back(std::move(sample));
      }
    } catch (const DataError& error) {
      errors.add(error);
    }
  }
  errors.throw_if_any();
  dataset.stats = stats_of(dataset.samples);
  return dataset;
}

std::vector<int32_t> encode_chat(const std::vector<Message>& messages, const Tokenizer& tokenizer,
                                 const ChatTemplate& chat, GenerationPrompt prompt) {
  const std::vector<RenderedPiece> pieces = chat.render(messages, prompt);
  std::vector<int32_t> ids;
  for (const Stretch& stretch : cut_into_stretches(pieces)) {
    const std::vector<int32_t> part =
        tokenizer.encode_parts(stretch.parts, start_after(ids, tokenizer));
    ids.insert(ids.end(), part.begin(), part.end());
  }
  return ids;
}

PromptAndAnswer prompt_of_record(const Record& record, const Tokenizer& tokenizer,
                                 const ChatTemplate* chat) {
  if (record.messages.empty())
    throw DataError(place(record) + ": text: expected a prompt and an answer, found a text. Use " +
                    "records with prompt and completion, or messages.");
  const auto last = std::find_if(record.messages.rbegin(), record.messages.rend(),
                                 [](const Message& m) { return m.role == "assistant"; });
  if (last == record.messages.rend() || last + 1 == record.messages.rend())
    throw DataError(place(record) + ": messages: expected a prompt and an answer, found only one " +
                    "of them. Add the other.");
  PromptAndAnswer result;
  result.answer = last->content;
  if (chat != nullptr && !last->tool_calls.empty())
    result.answer = answer_text(record, *chat, record.messages.rend() - last - 1);
  if (chat != nullptr) {
    const std::vector<Message> before(record.messages.begin(), last.base() - 1);
    result.prompt_ids = encode_chat(before, tokenizer, *chat, GenerationPrompt::kAppend);
    return result;
  }
  require_raw(record);
  result.prompt_ids = ends_of(tokenizer).before;
  const auto ids = encode_plain(tokenizer, record.messages[0].content);
  result.prompt_ids.insert(result.prompt_ids.end(), ids.begin(), ids.end());
  return result;
}

}  // namespace shardtune::data
