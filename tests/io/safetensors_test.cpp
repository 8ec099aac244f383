#include "io/safetensors.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <cmath>
#include <cstring>

#include "core/error.h"
#include "io/json.h"
#include "io/safetensors_parse.h"
#include "tests/io/temp_folder.h"

namespace shardtune::io {
namespace {

const fs::path kGolden = fs::path(SHARDTUNE_SOURCE_DIR) / "tests/golden/model_formats";

std::string file_of(const std::string& header, size_t data_bytes) {
  const uint64_t length = header.size();
  std::string bytes(reinterpret_cast<const char*>(&length), 8);
  return bytes + header + std::string(data_bytes, '\1');
}

std::string error_of(const std::string& bytes) {
  return message_of<DataError>([&] { parse_safetensors("m.safetensors", as_bytes(bytes)); });
}

// {"w":{"dtype":...,"shape":...,"data_offsets":...}}
std::string entry(const char* dtype, const char* shape, const char* offsets) {
  return std::string("{\"w\":{\"dtype\":") + dtype + ",\"shape\":" + shape +
         ",\"data_offsets\":" + offsets + "}}";
}

std::string two(const char* first, const char* second) {
  return std::string(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":)") + first +
         R"(},"b":{"dtype":"U8","shape":[4],"data_offsets":)" + second + "}}";
}

struct Seed {
  const char* name;
  std::string bytes;
  const char* part;
};

std::vector<Seed> layout_seeds() {
  std::string huge(16, '\xff');
  return {
      {"empty", "", "m.safetensors: byte 0: header length: expected 8 bytes, found 0"},
      {"seven bytes", "1234567", "byte 0: header length"},
      {"length 2^64-1", huge, "byte 0: header length: expected at most 100000000"},
      {"length 100000001", std::string("\x01\xe1\xf5\x05\0\0\0\0{}", 10), "byte 0: header length"},
      {"length beyond file", std::string("\x03\0\0\0\0\0\0\0{}", 10), "byte 8: header: expected 3"},
      {"length 0", std::string(8, '\0'), "byte 8: header: line 1, column"},
      {"not UTF-8", file_of("{\"\xff\":1}", 0), "byte 10: header: expected UTF-8"},
      {"no object", file_of("[]", 0), "byte 8: header: expected an object"},
      {"truncated JSON", file_of("{\"w\":", 0), "byte 8: header: line 1, column"},
      {"trailing text", file_of("{} {}", 0), "byte 8: header: line 1, column"},
      {"deep", file_of(std::string(100000, '['), 0), "nested deeper than 64"},
      {"hole at the start", file_of(entry("\"U8\"", "[4]", "[1,5]"), 5),
       "\"w\": expected no gap before its data"},
      {"gap", file_of(two("[0,4]", "[5,9]"), 9), "\"b\": expected no gap"},
      {"overlap", file_of(two("[0,4]", "[3,7]"), 7), "\"b\": its data overlaps"},
      {"same range", file_of(two("[0,4]", "[0,4]"), 4), "\"b\": its data overlaps"},
      {"data longer", file_of(entry("\"U8\"", "[4]", "[0,4]"), 5),
       "byte 65: expected the file to end at byte 65"},
      {"data shorter", file_of(entry("\"U8\"", "[4]", "[0,4]"), 3),
       "byte 64: expected the file to"},
      {"data without tensor", file_of("{}", 1), "byte 10: expected the file to end at byte 10"},
      {"shape beyond the data", file_of(entry("\"F32\"", "[1000000]", "[0,4000000]"), 4),
       "expected the file to end at byte"},
  };
}

std::vector<Seed> entry_seeds() {
  const auto seed = [](const char* dtype, const char* shape, const char* offsets) {
    return file_of(entry(dtype, shape, offsets), 4);
  };
  return {
      {"unknown dtype", seed("\"F99\"", "[4]", "[0,4]"), "byte 9: \"w\": dtype: expected a known"},
      {"dtype number", seed("1", "[4]", "[0,4]"), "byte 9: \"w\": dtype"},
      {"no dtype", file_of(R"({"w":{"shape":[4],"data_offsets":[0,4]}})", 4), "\"w\": dtype"},
      {"no shape", file_of(R"({"w":{"dtype":"U8","data_offsets":[0,4]}})", 4),
       "\"w\": shape: expected an array of integers, found nothing"},
      {"no offsets", file_of(R"({"w":{"dtype":"U8","shape":[4]}})", 4), "\"w\": data_offsets"},
      {"negative shape", seed("\"U8\"", "[-4]", "[0,4]"), "\"w\": shape: expected integers from 0"},
      {"float shape", seed("\"U8\"", "[4.0]", "[0,4]"), "\"w\": shape: expected integers"},
      {"string shape", seed("\"U8\"", "[\"4\"]", "[0,4]"), "\"w\": shape: expected integers"},
      {"shape no array", seed("\"U8\"", "4", "[0,4]"), "\"w\": shape: expected an array"},
      {"shape wraps", seed("\"F32\"", "[4611686018427387905,4]", "[0,4]"), "does not fit 63 bits"},
      {"bytes wrap", seed("\"F32\"", "[4611686018427387905]", "[0,4]"), "does not fit 63 bits"},
      {"shape 2^64", seed("\"U8\"", "[18446744073709551620]", "[0,4]"), "\"w\": shape"},
      {"size mismatch", seed("\"F32\"", "[2]", "[0,4]"), "\"w\": data_offsets: expected 8 bytes"},
      {"begin after end", seed("\"U8\"", "[4]", "[4,0]"),
       "expected [begin, end) with begin <= end"},
      {"one offset", seed("\"U8\"", "[4]", "[0]"), "expected [begin, end)"},
      {"three offsets", seed("\"U8\"", "[4]", "[0,4,4]"), "expected [begin, end)"},
      {"negative offset", seed("\"U8\"", "[4]", "[-4,0]"), "data_offsets: expected integers"},
      {"huge offsets", seed("\"U8\"", "[4]", "[9223372036854775803,9223372036854775807]"),
       "data_offsets: past the end"},
      {"entry no object", file_of(R"({"w":[1]})", 0), "byte 9: \"w\": expected an object"},
      {"half a byte", seed("\"F4\"", "[7]", "[0,4]"), "\"w\": data_offsets: expected 3 bytes"},
      {"metadata number", file_of(R"({"__metadata__":{"n":1}})", 0), "\"n\": expected a string"},
      {"metadata array", file_of(R"({"__metadata__":[]})", 0), "\"__metadata__\": expected an obj"},
      {"duplicate name",
       file_of(R"({"w":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},)"
               R"("w":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}})",
               4),
       "duplicate key \"w\""},
      {"duplicate field",
       file_of(R"({"w":{"dtype":"U8","dtype":"I8","shape":[4],"data_offsets":[0,4]}})", 4),
       "duplicate key \"dtype\""},
  };
}

TEST(Safetensors, RefusesEveryDamagedLayout) {
  for (const Seed& seed : layout_seeds()) {
    SCOPED_TRACE(seed.name);
    EXPECT_HAS(error_of(seed.bytes), seed.part);
  }
}

TEST(Safetensors, RefusesEveryDamagedEntry) {
  for (const Seed& seed : entry_seeds()) {
    SCOPED_TRACE(seed.name);
    EXPECT_HAS(error_of(seed.bytes), seed.part);
    EXPECT_HAS(error_of(seed.bytes), "m.safetensors: byte ");
  }
}

TEST(Safetensors, AcceptsWhatTheReferenceReaderAccepts) {
  const std::string good[] = {
      file_of("{}", 0),
      file_of("  {}\n ", 0),
      file_of(R"({"__metadata__":{"format":"pt"}})", 0),
      file_of(entry("\"U8\"", "[]", "[0,1]"), 1),
      file_of(entry("\"F32\"", "[3,0]", "[0,0]"), 0),
      file_of(entry("\"F4\"", "[8]", "[0,4]"), 4),
      file_of(entry("\"F8_E5M2FNUZ\"", "[2,2]", "[0,4]"), 4),
      file_of(two("[4,8]", "[0,4]"), 8),
      file_of(R"({"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"more":{}}})", 1),
  };
  for (const std::string& bytes : good)
    EXPECT_NO_THROW(parse_safetensors("m", as_bytes(bytes))) << bytes;
}

TEST(Safetensors, EveryTruncationIsAnError) {
  const std::string bytes = read_bytes(kGolden / "tiny.safetensors");
  ASSERT_NO_THROW(parse_safetensors("m", as_bytes(bytes)));
  for (size_t n = 0; n < bytes.size(); ++n)
    error_of(bytes.substr(0, n));
}

TEST(Safetensors, NoMutationOfOneByteEscapesTheBounds) {
  const std::string golden = read_bytes(kGolden / "tiny.safetensors");
  for (size_t at = 0; at < golden.size(); ++at) {
    for (const int flip : {1, 2, 0x10, 0x80, 0xff}) {
      std::string bytes = golden;
      bytes[at] = static_cast<char>(bytes[at] ^ flip);
      try {
        for (const SafetensorsEntry& entry : parse_safetensors("m", as_bytes(bytes))) {
          ASSERT_GE(entry.offset, 8);
          ASSERT_LE(entry.offset + entry.info.num_bytes, static_cast<int64_t>(bytes.size()));
        }
      } catch (const DataError&) {
      }
    }
  }
}

std::vector<float> values_of(const TensorSource& source, std::string_view name) {
  const TensorInfo* tensor = source.find(name);
  EXPECT_NE(tensor, nullptr) << name;
  std::vector<float> values(static_cast<size_t>(*try_numel(tensor->shape)));
  source.read_float32(*tensor, 0, static_cast<int64_t>(values.size()), values.data());
  return values;
}

TEST(Safetensors, ReadsAFileOfTheReferenceWriter) {
  const auto source = open_safetensors(kGolden / "tiny.safetensors");
  EXPECT_EQ(source->tensors().size(), 8u);
  EXPECT_EQ(source->find("b.weight")->shape, (std::vector<int64_t>{2, 3}));
  EXPECT_EQ(values_of(*source, "b.weight"),
            (std::vector<float>{1.5f, -2.0f, 3.25f, 0.0f, -0.0f, 1e-8f}));
  EXPECT_EQ(values_of(*source, "a.half"), (std::vector<float>{1.0f, 65504.0f, 0x1p-24f, INFINITY}));
  EXPECT_EQ(values_of(*source, "c.codes"), (std::vector<float>{0, 127, 255}));
  EXPECT_EQ(values_of(*source, "c.signed"), (std::vector<float>{-128, 127}));
  EXPECT_EQ(values_of(*source, "d.ids"), (std::vector<float>{1, -0x1p40f}));
  EXPECT_EQ(values_of(*source, "e.scalar"), (std::vector<float>{2.5f}));
  EXPECT_TRUE(values_of(*source, "f.empty").empty());
  EXPECT_EQ(source->find("absent"), nullptr);
  EXPECT_HAS(source->describe(*source->find("a.half")), "tiny.safetensors: a.half");
  float value = 0;
  source->read_float32(*source->find("b.weight"), 2, 3, &value);
  EXPECT_EQ(value, 3.25f);
}

TensorToWrite tensor_of(const std::string& name, const std::string& dtype,
                        std::vector<int64_t> shape, std::string bytes) {
  return {name, dtype, std::move(shape), [bytes = std::move(bytes)](const auto& sink) {
            // In two parts, as streaming writers do.
            sink(as_bytes(std::string_view(bytes).substr(0, bytes.size() / 2)));
            sink(as_bytes(std::string_view(bytes).substr(bytes.size() / 2)));
          }};
}

// The tensors of the golden file, handed over in another order, give its very bytes.
TEST(Safetensors, WriterGivesTheBytesOfTheReferenceWriter) {
  const auto source = open_safetensors(kGolden / "tiny.safetensors");
  std::vector<TensorToWrite> tensors;
  for (const TensorInfo& tensor : source->tensors()) {
    const auto bytes = source->bytes(tensor);
    tensors.insert(tensors.begin(),
                   tensor_of(tensor.name, tensor.dtype, tensor.shape,
                             {reinterpret_cast<const char*>(bytes.data()), bytes.size()}));
  }
  const TempFolder folder;
  const auto path = folder.path() / "out.safetensors";
  write_safetensors(path, std::move(tensors));
  EXPECT_EQ(read_bytes(path), read_bytes(kGolden / "tiny.safetensors"));
  EXPECT_FALSE(fs::exists(folder.path() / "out.safetensors.partial"));
}

TEST(Safetensors, WriterChecksNamesAndByteCounts) {
  const TempFolder folder;
  const auto path = folder.path() / "out.safetensors";
  const auto write = [&](std::vector<TensorToWrite> tensors) {
    return message_of<ArgumentError>([&] { write_safetensors(path, std::move(tensors)); });
  };
  EXPECT_HAS(write({tensor_of("w", "F32", {2}, "1234")}), "w: expected 8 bytes from its writer");
  EXPECT_HAS(write({tensor_of("w", "F32", {1}, "123456")}), "w: more than its 4 bytes");
  EXPECT_HAS(write({tensor_of("w", "U8", {1}, "1"), tensor_of("w", "U8", {1}, "1")}), "\"w\"");
  EXPECT_HAS(write({tensor_of("__metadata__", "U8", {1}, "1")}), "__metadata__");
  EXPECT_HAS(write({tensor_of("w", "F99", {1}, "1")}), "unknown dtype");
  EXPECT_TRUE(fs::is_empty(folder.path()));
}

TEST(Safetensors, WriterKeepsMetadata) {
  const TempFolder folder;
  const auto path = folder.path() / "out.safetensors";
  write_safetensors(path, {tensor_of("w", "U8", {1}, "1")}, {{"step", "7\n\""}});
  const std::string bytes = read_bytes(path);
  EXPECT_EQ(static_cast<unsigned char>(bytes[0]) % 8, 0);
  EXPECT_HAS(bytes, R"({"__metadata__":{"format":"pt","step":"7\n\""},"w":{"dtype":"U8")");
  EXPECT_EQ(values_of(*open_safetensors(path), "w"), (std::vector<float>{'1'}));
}

// A folder of two shards and an index with the given weight_map.
class ShardedFolder : public TempFolder {
 public:
  explicit ShardedFolder(const std::string& weight_map) {
    write_safetensors(path() / "model-00001-of-00002.safetensors",
                      {tensor_of("a", "U8", {1}, "1")});
    write_safetensors(path() / "model-00002-of-00002.safetensors",
                      {tensor_of("b", "U8", {1}, "2"), tensor_of("extra", "U8", {1}, "3")});
    write("model.safetensors.index.json", "{\"metadata\":{},\"weight_map\":" + weight_map + "}");
  }
};

TEST(ShardedSafetensors, OpensAllShardsOfTheIndex) {
  const ShardedFolder folder(R"({"a":"model-00001-of-00002.safetensors",)"
                             R"("b":"model-00002-of-00002.safetensors"})");
  const auto source = open_safetensors(folder.path());
  EXPECT_EQ(values_of(*source, "a"), (std::vector<float>{'1'}));
  EXPECT_EQ(values_of(*source, "b"), (std::vector<float>{'2'}));
  EXPECT_EQ(values_of(*source, "extra"), (std::vector<float>{'3'}));
  EXPECT_HAS(source->describe(*source->find("b")), "model-00002-of-00002.safetensors: b");
}

TEST(ShardedSafetensors, RefusesAnIndexThatDoesNotFit) {
  const auto error = [](const std::string& weight_map) {
    const ShardedFolder folder(weight_map);
    return message_of<DataError>([&] { open_safetensors(folder.path()); });
  };
  EXPECT_HAS(error(R"({"c":"model-00001-of-00002.safetensors"})"),
             "model.safetensors.index.json: weight_map: \"c\": expected it in model-00001");
  EXPECT_HAS(
      error(R"({"a":"model-00001-of-00002.safetensors","b":"model-00001-of-00002.safetensors"})"),
      "found it in no shard");
  EXPECT_HAS(
      error(R"({"a":"model-00002-of-00002.safetensors","b":"model-00001-of-00002.safetensors"})"),
      "found it in model-00001-of-00002.safetensors");
  EXPECT_HAS(error("{}"), "weight_map: expected an object");
  EXPECT_HAS(error("[]"), "weight_map: expected an object");
  EXPECT_HAS(error(R"({"a":1})"), "\"a\": expected a file name");
  EXPECT_HAS(error(R"({"a":"model-00001-of-00002.safetensors","a":"x"})"), "duplicate key \"a\"");
}

TEST(ShardedSafetensors, RefusesNamesThatLeaveTheFolder) {
  for (const char* name : {"../model.safetensors", "/etc/passwd", "..", "sub/a.safetensors",
                           "C:\\\\a", "..\\\\a", "a\\u0000b", ""}) {
    const ShardedFolder folder(std::string("{\"a\":\"") + name + "\"}");
    EXPECT_HAS(message_of<DataError>([&] { open_safetensors(folder.path()); }),
               "expected the name of a file in the same folder");
  }
  const ShardedFolder folder(R"({"a":"link.safetensors"})");
  fs::create_symlink("/etc/passwd", folder.path() / "link.safetensors");
  EXPECT_HAS(message_of<DataError>([&] { open_safetensors(folder.path()); }), "symbolic link");
}

TEST(ShardedSafetensors, RefusesMissingShardsFifosAndSharedNames) {
  const ShardedFolder missing(R"({"a":"model-00003.safetensors"})");
  EXPECT_HAS(message_of<MissingInputError>([&] { open_safetensors(missing.path()); }),
             "model-00003.safetensors: this shard of model.safetensors.index.json is not there");
  const ShardedFolder fifo(R"({"a":"fifo.safetensors"})");
  ASSERT_EQ(::mkfifo((fifo.path() / "fifo.safetensors").c_str(), 0600), 0);
  EXPECT_HAS(message_of<MissingInputError>([&] { open_safetensors(fifo.path()); }), "a FIFO");
  const ShardedFolder twice(R"({"a":"model-00001-of-00002.safetensors","b":"copy.safetensors"})");
  fs::copy_file(twice.path() / "model-00001-of-00002.safetensors",
                twice.path() / "copy.safetensors");
  EXPECT_HAS(message_of<DataError>([&] { open_safetensors(twice.path()); }),
             "a tensor of this name is also in");
}

TEST(ShardedSafetensors, OneFileBesideAnIndexIsTheModel) {
  const ShardedFolder folder(R"({"a":"model-00003.safetensors"})");  // a shard that is not there
  fs::copy_file(folder.path() / "model-00001-of-00002.safetensors",
                folder.path() / "model.safetensors");
  EXPECT_NE(open_safetensors(folder.path())->find("a"), nullptr);
}

TEST(Safetensors, FoldersWithoutAModelSayWhatIsThere) {
  const TempFolder folder;
  folder.write("readme.txt", "x");
  EXPECT_HAS(message_of<MissingInputError>([&] { open_safetensors(folder.path()); }),
             "expected model.safetensors or model.safetensors.index.json, found \"readme.txt\"");
  EXPECT_THROW(open_safetensors(folder.path() / "absent"), MissingInputError);
}

TEST(Safetensors, PicklesAreRefusedWithAdvice) {
  const TempFolder folder;
  const auto refused = [&](const fs::path& path) {
    EXPECT_HAS(message_of<UnsupportedError>([&] { open_safetensors(path); }),
               "safe_serialization=True");
  };
  refused(folder.write("model.bin", "x"));
  refused(folder.write("model.pt", "x"));
  refused(folder.write("disguised.safetensors", "PK\x03\x04 and more"));
  folder.write("pytorch_model.bin", "x");
  refused(folder.path());
  EXPECT_HAS(message_of<DataError>(
                 [&] { open_safetensors(folder.write("named.safetensors", "GGUF\x03")); }),
             "found a GGUF file");
}

TEST(Safetensors, DtypesWithoutDecoderOpenButDoNotDecode) {
  const TempFolder folder;
  const auto path = folder.write("m.safetensors", file_of(entry("\"C64\"", "[1]", "[0,8]"), 8));
  const auto source = open_safetensors(path);
  float value = 0;
  const std::string message =
      message_of<UnsupportedError>([&] { source->read_float32(*source->find("w"), 0, 1, &value); });
  EXPECT_HAS(message, "m.safetensors: w: ");
  EXPECT_HAS(message, "found C64");
  EXPECT_HAS(message, "docs/status.md");
}

}  // namespace
}  // namespace shardtune::io
