#include "io/gguf.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <numeric>

#include "core/error.h"
#include "io/float_decode.h"
#include "io/float_encode.h"
#include "io/gguf_encode.h"
#include "io/gguf_parse.h"
#include "io/gguf_write.h"
#include "tests/io/temp_folder.h"

namespace shardtune::io {
namespace {

const fs::path kGolden = fs::path(SHARDTUNE_SOURCE_DIR) / "tests/golden/model_formats";

// Byte string of a GGUF file, written field by field.
class GgufBytes {
 public:
  GgufBytes& text(std::string_view value) {
    bytes += value;
    return *this;
  }
  GgufBytes& u8(uint8_t value) { return number(value); }
  GgufBytes& u32(uint32_t value) { return number(value); }
  GgufBytes& u64(uint64_t value) { return number(value); }
  GgufBytes& string(std::string_view value) { return u64(value.size()).text(value); }
  GgufBytes& header(uint64_t num_tensors, uint64_t num_keys, uint32_t version = 3) {
    return text("GGUF").u32(version).u64(num_tensors).u64(num_keys);
  }
  GgufBytes& tensor(std::string_view name, const std::vector<uint64_t>& dims, uint32_t type,
                    uint64_t offset) {
    string(name).u32(static_cast<uint32_t>(dims.size()));
    for (const uint64_t dim : dims)
      u64(dim);
    return u32(type).u64(offset);
  }
  GgufBytes& data(size_t num_bytes, size_t alignment = 32) {
    bytes.resize((bytes.size() + alignment - 1) / alignment * alignment + num_bytes);
    return *this;
  }

  std::string bytes;

 private:
  template <typename T>
  GgufBytes& number(T value) {
    bytes.append(reinterpret_cast<const char*>(&value), sizeof(value));
    return *this;
  }
};

GgufContents parse(const std::string& bytes) { return parse_gguf("m.gguf", as_bytes(bytes)); }

// A file of one metadata pair and one tensor, all of it needed.
std::string small_file() {
  return GgufBytes()
      .header(1, 2)
      .string("general.architecture")
      .u32(8)
      .string("llama")
      .string("list")
      .u32(9)
      .u32(4)
      .u64(2)
      .u32(1)
      .u32(2)
      .tensor("w", {32, 2}, 3, 0)
      .data(40)
      .bytes;
}

struct Seed {
  const char* name;
  std::string bytes;
  const char* part;  // of the message, with the byte offset
};

GgufBytes pair(uint32_t type) { return GgufBytes().header(0, 1).string("k").u32(type); }
// The value of pair() starts at 24 + 9 + 4.

std::vector<Seed> header_seeds() {
  const uint64_t huge = uint64_t{1} << 63;
  return {
      {"empty", "", "m.gguf: byte 0: GGUF magic: expected 4 bytes, found 0"},
      {"magic", GgufBytes().text("GGML").u32(3).u64(0).u64(0).bytes, "byte 0: expected the magic"},
      {"version 1", GgufBytes().header(0, 0, 1).bytes, "byte 4: GGUF version: expected 2 or 3"},
      {"version 4", GgufBytes().header(0, 0, 4).bytes, "byte 4: GGUF version"},
      {"big endian", GgufBytes().header(0, 0, 0x03000000).bytes, "a big-endian file"},
      {"tensor count", GgufBytes().header(UINT64_MAX, 0).bytes, "byte 8: tensor count"},
      {"tensor count by one", GgufBytes().header(2, 0).data(24).bytes, "byte 8: tensor count"},
      {"key count", GgufBytes().header(0, huge).bytes, "byte 16: metadata count"},
      {"key length", GgufBytes().header(0, 1).u64(huge).data(64).bytes, "byte 24: metadata key"},
      {"key too long", GgufBytes().header(0, 1).u64(65536).data(70000).bytes,
       "byte 24: metadata key: expected a length of at most 65535"},
      {"empty key", GgufBytes().header(0, 1).string("").u32(4).u32(1).data(8).bytes,
       "byte 24: metadata key: expected printable ASCII"},
      {"key not ASCII", GgufBytes().header(0, 1).string("k\xc3\xbc").u32(4).u32(1).bytes,
       "byte 24: metadata key"},
      {"key with NUL", GgufBytes().header(0, 1).string(std::string("k\0", 2)).u32(4).u32(1).bytes,
       "byte 24: metadata key"},
      {"value type", pair(13).data(64).bytes, "byte 33: k: expected a metadata value type"},
      {"value type huge", pair(UINT32_MAX).data(64).bytes, "byte 33: k"},
      {"duplicate key",
       GgufBytes().header(0, 2).string("k").u32(4).u32(1).string("k").u32(4).u32(1).bytes,
       "byte 41: duplicate metadata key \"k\""},
      {"string length", pair(8).u64(huge).data(64).bytes, "byte 45: k: expected 9223372036854"},
      {"bool", pair(7).u8(2).data(64).bytes, "byte 37: k: expected a boolean of 0 or 1, found 2"},
      {"u64 too large", pair(10).u64(huge).bytes, "byte 37: k: expected an integer below 2^63"},
      {"array type", pair(9).u32(13).u64(0).data(64).bytes, "byte 37: k: expected a metadata"},
      {"array of arrays", pair(9).u32(9).u64(1).data(64).bytes, "byte 37: k: expected an array of"},
      {"array count", pair(9).u32(4).u64(uint64_t{1} << 62).data(64).bytes, "byte 41: k: array"},
      {"string array count", pair(9).u32(8).u64(11).data(64).bytes, "byte 41: k: array length"},
      {"array bool", pair(9).u32(7).u64(2).u8(1).u8(7).data(64).bytes,
       "byte 50: k: expected a bool"},
  };
}

// A file of one F32 tensor "w" with these fields; name at 24, dims at 33.
std::string one(const std::vector<uint64_t>& dims, uint32_t type, uint64_t offset,
                size_t num_bytes = 64) {
  return GgufBytes().header(1, 0).tensor("w", dims, type, offset).data(num_bytes).bytes;
}

std::vector<Seed> tensor_seeds() {
  const uint64_t huge = uint64_t{1} << 63;
  const auto alignment = [](uint32_t value) {
    return GgufBytes().header(0, 1).string("general.alignment").u32(4).u32(value).data(64).bytes;
  };
  return {
      {"five dimensions", one({1, 1, 1, 1, 1}, 0, 0), "byte 33: \"w\": expected at most 4 dim"},
      {"dimensions huge", GgufBytes().header(1, 0).string("w").u32(UINT32_MAX).data(64).bytes,
       "byte 33: \"w\""},
      {"zero extent", one({4, 0}, 0, 0), "byte 45: \"w\": expected a dimension from 1"},
      {"negative extent", one({UINT64_MAX}, 0, 0), "byte 37: \"w\": expected a dimension"},
      {"extents wrap", one({uint64_t{1} << 42, uint64_t{1} << 42}, 0, 0),
       "byte 33: \"w\": the num"},
      {"extents wrap to small", one({(uint64_t{1} << 62) + 1, 4}, 0, 0), "byte 33: \"w\""},
      {"bytes wrap", one({uint64_t{1} << 62}, 0, 0), "byte 45: \"w\": the size in bytes"},
      {"type", one({4}, 4, 0), "byte 45: \"w\": expected a known tensor type, found 4"},
      {"type huge", one({4}, 999, 0), "byte 45: \"w\": expected a known tensor type"},
      {"row of broken blocks", one({31}, 8, 0), "byte 45: \"w\": expected rows of whole Q8_0"},
      {"rows of half blocks", one({16, 2}, 8, 0), "byte 53: \"w\": expected rows of whole Q8_0"},
      {"offset unaligned", one({4}, 0, 4), "byte 49: \"w\": expected an offset inside the file"},
      {"offset huge", one({4}, 0, huge), "byte 49: \"w\": expected an offset"},
      {"offset past the end", one({4}, 0, 64),
       "byte 49: \"w\": expected 16 bytes from data offset 64"},
      {"larger than the file", one({17}, 0, 0), "byte 49: \"w\": expected 68 bytes"},
      {"much larger", one({uint64_t{1} << 40}, 0, 0),
       "byte 49: \"w\": expected 4398046511104 bytes"},
      {"row of half a super-block", one({384}, 12, 0, 288),
       "byte 45: \"w\": expected rows of whole Q4_K blocks of 256 elements, found rows of 384"},
      {"rows of half super-blocks", one({128, 2}, 14, 0, 210),
       "byte 53: \"w\": expected rows of whole Q6_K blocks of 256"},
      {"Q6_K by one block", one({256}, 14, 0, 209), "byte 49: \"w\": expected 210 bytes"},
      {"no data at all", GgufBytes().header(1, 0).tensor("w", {4}, 0, 0).bytes, "byte 49: \"w\""},
      {"name length", GgufBytes().header(1, 0).u64(65).data(128).bytes, "byte 24: tensor name"},
      {"empty name", GgufBytes().header(1, 0).tensor("", {4}, 0, 0).data(64).bytes,
       "byte 24: tensor name: expected UTF-8"},
      {"name not UTF-8", GgufBytes().header(1, 0).tensor("\xff", {4}, 0, 0).data(64).bytes,
       "byte 24: tensor name: expected UTF-8"},
      {"same name",
       GgufBytes().header(2, 0).tensor("w", {4}, 0, 0).tensor("w", {4}, 0, 32).data(64).bytes,
       "byte 82: two tensors have the name \"w\""},
      {"overlap",
       GgufBytes().header(2, 0).tensor("v", {16}, 0, 0).tensor("w", {4}, 0, 32).data(64).bytes,
       "byte 82: \"w\": its bytes overlap those of \"v\""},
      {"same bytes",
       GgufBytes().header(2, 0).tensor("v", {4}, 0, 0).tensor("w", {4}, 0, 0).data(64).bytes,
       "byte 82: \"w\": its bytes overlap"},
      {"alignment 0", alignment(0), "general.alignment: expected a power of two"},
      {"alignment 3", alignment(3), "general.alignment: expected a power of two"},
      {"alignment huge", alignment(0x80000000u), "general.alignment: expected a power of two"},
      {"alignment of another type",
       GgufBytes().header(0, 1).string("general.alignment").u32(8).string("32").bytes,
       "general.alignment: expected a power of two"},
  };
}

TEST(Gguf, RefusesDamagedHeadersAndMetadata) {
  for (const Seed& seed : header_seeds()) {
    SCOPED_TRACE(seed.name);
    EXPECT_HAS(message_of<DataError>([&] { parse(seed.bytes); }), seed.part);
  }
}

TEST(Gguf, RefusesDamagedTensorTables) {
  for (const Seed& seed : tensor_seeds()) {
    SCOPED_TRACE(seed.name);
    EXPECT_HAS(message_of<DataError>([&] { parse(seed.bytes); }), seed.part);
  }
}

TEST(Gguf, EveryTruncationIsAnError) {
  const std::string bytes = small_file();
  ASSERT_NO_THROW(parse(bytes));
  for (size_t n = 0; n < bytes.size(); ++n)
    EXPECT_THROW(parse(bytes.substr(0, n)), DataError) << n;
  const std::string golden = read_bytes(kGolden / "tiny.gguf");
  ASSERT_NO_THROW(parse(golden));
  for (size_t n = 0; n + 32 < golden.size(); ++n)  // the last 32 bytes may be padding
    EXPECT_THROW(parse(golden.substr(0, n)), DataError) << n;
}

TEST(Gguf, NoMutationOfOneByteEscapesTheBounds) {
  const std::string golden = read_bytes(kGolden / "tiny.gguf");
  for (size_t at = 0; at < golden.size(); ++at) {
    for (const int flip : {1, 0x80, 0xff}) {
      std::string bytes = golden;
      bytes[at] = static_cast<char>(bytes[at] ^ flip);
      try {
        const GgufContents contents = parse(bytes);
        for (const TensorInfo& tensor : contents.tensors.infos()) {
          const int64_t begin = contents.tensors.place(tensor).offset;
          ASSERT_GE(begin, 0);
          ASSERT_LE(begin + tensor.num_bytes, static_cast<int64_t>(bytes.size()));
        }
      } catch (const DataError&) {
      }
    }
  }
}

TEST(Gguf, AcceptsVersion2AlignmentAndScalars) {
  const std::string bytes = GgufBytes()
                                .header(2, 1, 2)
                                .string("general.alignment")
                                .u32(4)
                                .u32(64)
                                .tensor("s", {}, 0, 64)
                                .tensor("v", {1, 2, 3, 4}, 1, 0)
                                .data(68, 64)
                                .bytes;
  const GgufContents contents = parse(bytes);
  EXPECT_TRUE(contents.tensors.find("s")->shape.empty());
  EXPECT_EQ(contents.tensors.find("s")->num_bytes, 4);
  EXPECT_EQ(contents.tensors.find("v")->shape, (std::vector<int64_t>{4, 3, 2, 1}));
  EXPECT_EQ(contents.tensors.place(*contents.tensors.find("v")).offset % 64, 0);
}

TEST(Gguf, ReadsMetadataWrittenByTheReferencePackage) {
  const auto file = open_gguf(kGolden / "tiny.gguf");
  EXPECT_EQ(file->string("general.architecture"), "llama");
  EXPECT_EQ(file->integer("llama.block_count"), 2);
  EXPECT_EQ(file->integer("llama.context_length"), 8192);
  EXPECT_EQ(file->number("llama.attention.layer_norm_rms_epsilon"), static_cast<double>(1e-5f));
  EXPECT_EQ(file->number("llama.block_count"), 2.0);
  EXPECT_FALSE(file->boolean_or("tokenizer.ggml.add_bos_token", true));
  EXPECT_EQ(file->integer("test.minus"), -3);
  EXPECT_EQ(file->number("test.f64"), 0.1);
  EXPECT_EQ(*file->strings("tokenizer.ggml.tokens"),
            (std::vector<std::string>{"a", "\xc3\xa9", ""}));
  EXPECT_EQ(*file->integers("tokenizer.ggml.token_type"), (std::vector<int64_t>{1, 3, 1}));
  EXPECT_EQ(*file->numbers("tokenizer.ggml.scores"), (std::vector<double>{0.5, -1.25}));
  EXPECT_EQ(file->strings("absent"), nullptr);
  EXPECT_EQ(file->integer_or("absent", 5), 5);
  EXPECT_HAS(message_of<DataError>([&] { file->integer("absent"); }),
             "tiny.gguf: absent: expected an integer, found no such key");
  EXPECT_HAS(message_of<DataError>([&] { file->integer_or("general.architecture", 1); }),
             "expected an integer, found the string \"llama\"");
  EXPECT_HAS(message_of<DataError>([&] { file->strings("tokenizer.ggml.scores"); }),
             "expected an array of strings, found an array of numbers");
}

// Whole tensors against gguf 0.19.0's dequantize, bit for bit (make_gguf.py).
TEST(Gguf, DecodersGiveTheBitsOfTheReferencePackage) {
  const auto file = open_gguf(kGolden / "tiny.gguf");
  const std::string golden = read_bytes(kGolden / "tiny.gguf.f32");
  size_t at = 0;
  for (const char* name : {"f32", "f16", "bf16", "q8_0", "q4_1", "q4_0", "q5_0", "q5_1", "q2_k",
                           "q3_k", "q4_k", "q5_k", "q6_k", "iq4_nl"}) {
    SCOPED_TRACE(name);
    const TensorInfo* tensor = file->find(name);
    ASSERT_NE(tensor, nullptr);
    const int64_t numel = *try_numel(tensor->shape);
    std::vector<float> values(static_cast<size_t>(numel));
    file->read_float32(*tensor, 0, numel, values.data());
    ASSERT_LE(at + 4 * values.size(), golden.size());
    EXPECT_EQ(std::memcmp(values.data(), golden.data() + at, 4 * values.size()), 0);
    at += 4 * values.size();
  }
  EXPECT_EQ(at, golden.size());
  EXPECT_EQ(file->find("q4_1")->shape, (std::vector<int64_t>{2, 3, 96}));
}

TEST(Gguf, PartsOfATensorAreTheTensor) {
  const auto file = open_gguf(kGolden / "tiny.gguf");
  const TensorInfo& tensor = *file->find("q4_1");
  std::vector<float> whole(576);
  std::vector<float> part(64);
  file->read_float32(tensor, 0, 576, whole.data());
  file->read_float32(tensor, 96, 160, part.data());
  EXPECT_TRUE(std::equal(part.begin(), part.end(), whole.begin() + 96));
  file->drop(tensor);
  file->read_float32(tensor, 96, 160, part.data());
  EXPECT_TRUE(std::equal(part.begin(), part.end(), whole.begin() + 96));
  EXPECT_THROW(file->read_float32(tensor, 1, 32, part.data()), ArgumentError);
  EXPECT_THROW(file->read_float32(tensor, 0, 608, part.data()), ArgumentError);
  EXPECT_THROW(file->read_float32(tensor, 64, 32, part.data()), ArgumentError);
}

TEST(Gguf, TypesWithoutDecoderOpenButDoNotDecode) {
  const auto file = open_gguf(kGolden / "tiny.gguf");
  float value = 0;
  const std::string message = message_of<UnsupportedError>(
      [&] { file->read_float32(*file->find("tq1_0"), 0, 256, &value); });
  EXPECT_HAS(message, "tiny.gguf: tq1_0: expected one of F32, F16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, ");
  EXPECT_HAS(message, "found TQ1_0");
  EXPECT_HAS(message, "docs/status.md");
  EXPECT_EQ(file->bytes(*file->find("tq1_0")).size(), 2u * 54);
}

TEST(Gguf, AFileChangedDuringTheRunIsAnError) {
  const TempFolder folder;
  const auto path = folder.write("m.gguf", small_file());
  const auto file = open_gguf(path);
  fs::resize_file(path, 10);
  float values[64];
  EXPECT_HAS(
      message_of<DataError>([&] { file->read_float32(file->tensors().front(), 0, 64, values); }),
      "Do not change input files");
}

TEST(Gguf, HalvesAreRoundedToNearestEven) {
  for (uint32_t bits = 0; bits < 0x7c00; ++bits) {
    const auto half = static_cast<uint16_t>(bits);
    const float value = decode_half(half);
    const float next = decode_half(static_cast<uint16_t>(bits + 1));
    ASSERT_EQ(encode_half(value), half);
    ASSERT_EQ(encode_half(-value), half | 0x8000);
    if (bits + 1 == 0x7c00)
      break;
    const float middle = value + (next - value) / 2;
    ASSERT_EQ(encode_half(middle), half + half % 2) << bits;
    ASSERT_EQ(encode_half(std::nextafter(middle, 0.0f)), half) << bits;
    ASSERT_EQ(encode_half(std::nextafter(middle, 1e9f)), half + 1) << bits;
  }
  EXPECT_EQ(encode_half(65519.0f), 0x7bff);
  EXPECT_EQ(encode_half(65520.0f), 0x7c00);
  EXPECT_EQ(encode_half(-INFINITY), 0xfc00);
  EXPECT_TRUE(std::isnan(decode_half(encode_half(NAN))));
}

TEST(Gguf, WrittenFilesReadBack) {
  const TempFolder folder;
  const fs::path path = folder.path() / "m.gguf";
  const std::string codes(3 * 144, '\x11');
  const std::string values(5 * 4, '\x3f');
  const auto write = [](const std::string& bytes) {
    return [bytes](const auto& sink) { sink(as_bytes(bytes)); };
  };
  const std::vector<std::string> words = {"a", "", "\xc3\xa9"};
  const std::vector<GgufPair> metadata = {gguf_string("general.architecture", "llama"),
                                          gguf_uint32("u", 7),
                                          gguf_bool("b", true),
                                          gguf_float32("f", 0.5f),
                                          gguf_strings("words", words),
                                          gguf_int32s("kinds", std::vector<int32_t>{-1, 3}),
                                          gguf_float32s("scores", std::vector<float>{0.25f})};
  write_gguf(path, metadata,
             std::vector<TensorToWrite>{{"w", "Q4_K", {3, 256}, write(codes)},
                                        {"n", "F32", {5}, write(values)}});
  const auto file = open_gguf(path);
  EXPECT_EQ(file->string("general.architecture"), "llama");
  EXPECT_EQ(file->integer("u"), 7);
  EXPECT_TRUE(file->boolean_or("b", false));
  EXPECT_EQ(file->number("f"), 0.5);
  EXPECT_EQ(*file->strings("words"), words);
  EXPECT_EQ(*file->integers("kinds"), (std::vector<int64_t>{-1, 3}));
  EXPECT_EQ(*file->numbers("scores"), (std::vector<double>{0.25}));
  EXPECT_EQ(file->find("w")->shape, (std::vector<int64_t>{3, 256}));
  EXPECT_TRUE(std::ranges::equal(file->bytes(*file->find("w")), as_bytes(codes)));
  EXPECT_TRUE(std::ranges::equal(file->bytes(*file->find("n")), as_bytes(values)));
  const auto refused = [&](const TensorToWrite& tensor) {
    EXPECT_THROW(write_gguf(path, {}, std::vector<TensorToWrite>{tensor}), ArgumentError);
  };
  refused({"w", "Q4_K", {3, 128}, write(codes)});
  refused({"w", "Q9_K", {3, 256}, write(codes)});
  refused({"w", "Q4_K", {4, 256}, write(codes)});
  refused({"w", "Q4_K", {2, 256}, write(codes)});
  refused({std::string(65, 'n'), "Q4_K", {3, 256}, write(codes)});
}

fs::path smollm2() {
  if (const char* path = std::getenv("SHARDTUNE_MODEL"))
    return path;
  const char* home = std::getenv("HOME");
  return fs::path(home == nullptr ? "" : home) / ".cache/shardtune/SmolLM2-135M-Instruct.Q4_1.gguf";
}

// FORMATS section 6.6.
TEST(Gguf, SmolLm2HasItsKnownNumbers) {
  if (!fs::exists(smollm2()))
    GTEST_SKIP() << "no SmolLM2 file; set SHARDTUNE_MODEL";
  const auto file = open_gguf(smollm2());
  EXPECT_EQ(file->metadata().size(), 33u);
  EXPECT_EQ(file->tensors().size(), 272u);
  EXPECT_EQ(file->integer("llama.attention.head_count_kv"), 3);
  EXPECT_EQ(file->strings("tokenizer.ggml.merges")->size(), 48'900u);
  const auto read = [&](const char* name) {
    const TensorInfo& tensor = *file->find(name);
    std::vector<float> values(static_cast<size_t>(*try_numel(tensor.shape)));
    file->read_float32(tensor, 0, static_cast<int64_t>(values.size()), values.data());
    return values;
  };
  const auto sum = [](const std::vector<float>& v) {
    return std::accumulate(v.begin(), v.end(), 0.0);
  };
  // The printed values have 8 decimals; the sums as many digits as are printed there.
  const std::vector<float> embedding = read("token_embd.weight");
  const double first[] = {-0.10654449, 0.03297806, 0.04819870, -0.02283096};
  for (size_t i = 0; i < 4; ++i)
    EXPECT_NEAR(embedding[i], first[i], 5.1e-9);
  EXPECT_NEAR(sum(embedding), -15353.0445, 5.1e-5);
  const std::vector<float> query = read("blk.0.attn_q.weight");
  const double first_query[] = {-0.09631348, 0.15734863, -0.09631348, -0.73046875};
  for (size_t i = 0; i < 4; ++i)
    EXPECT_NEAR(query[i], first_query[i], 5.1e-9);
  EXPECT_NEAR(sum(query), 59.223221, 5.1e-7);
  EXPECT_NEAR(sum(read("blk.0.ffn_down.weight")), 150.635773, 5.1e-7);
}

TEST(GgufEncode, BytesAreThoseOfTheGgufPackage) {
  const std::string golden = read_bytes(kGolden / "encoded.bin");
  std::vector<float> values(1024);
  std::memcpy(values.data(), golden.data(), 4096);
  size_t at = 4096;
  for (const auto& [type, size] : {std::pair("F16", 2048), {"BF16", 2048}, {"Q8_0", 1088}}) {
    std::vector<std::byte> bytes(static_cast<size_t>(size));
    encode_gguf(type, values, bytes);
    ASSERT_LE(at + bytes.size(), golden.size());
    EXPECT_EQ(std::memcmp(bytes.data(), golden.data() + at, bytes.size()), 0) << type;
    at += bytes.size();
  }
  EXPECT_EQ(at, golden.size());
}

TEST(GgufEncode, RefusesOtherTypesAndSizes) {
  std::vector<float> values(64);
  std::vector<std::byte> bytes(68);
  EXPECT_NO_THROW(encode_gguf("Q8_0", values, bytes));
  EXPECT_THROW(encode_gguf("Q4_0", values, bytes), ArgumentError);
  EXPECT_THROW(encode_gguf("F16", values, bytes), ArgumentError);
  EXPECT_THROW(encode_gguf("Q8_0", std::span(values).first(63), bytes), ArgumentError);
}

}  // namespace
}  // namespace shardtune::io
