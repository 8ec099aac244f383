#include "io/json.h"

#include <gtest/gtest.h>

#include <chrono>
#include <cmath>
#include <limits>

#include "tests/io/temp_folder.h"

namespace shardtune::io {
namespace {

std::string error_of(std::string_view text, const JsonLimits& limits = {}) {
  return message_of<DataError>([&] { parse_json(text, "a.json", limits); });
}

TEST(Json, ReadsEveryKindOfValueInFileOrder) {
  const Json json = parse_json(
      R"({"z": 1, "a": [true, false, null, -2.5, "x\u00fc\n"], "o": {"k": 9223372036854775807}})",
      "a.json");
  ASSERT_TRUE(json.is_object());
  EXPECT_EQ(json.as_object()[0].first, "z");
  EXPECT_EQ(json.find("z")->as_integer(), 1);
  const Json::Array& array = json.find("a")->as_array();
  ASSERT_EQ(array.size(), 5u);
  EXPECT_TRUE(array[0].as_bool());
  EXPECT_FALSE(array[1].as_bool());
  EXPECT_TRUE(array[2].is_null());
  EXPECT_EQ(array[3].as_number(), -2.5);
  EXPECT_EQ(array[4].as_string(), "x\xc3\xbc\n");
  EXPECT_EQ(json.find("o")->find("k")->as_integer(), INT64_MAX);
}

TEST(Json, IntegersBeyondInt64BecomeDoubles) {
  const Json json = parse_json("[18446744073709551616, 9223372036854775808, 1e308, 1.0]", "a");
  for (const Json& value : json.as_array()) {
    EXPECT_FALSE(value.is_integer());
    EXPECT_TRUE(value.is_number());
  }
  EXPECT_EQ(json.as_array()[0].as_number(), 0x1p64);
}

TEST(Json, SyntaxErrorsNameLineAndColumn) {
  EXPECT_HAS(error_of("{\n  \"a\": 1,\n  \"b\": }"), "a.json: line 3, column 8: ");
  EXPECT_HAS(error_of(""), "a.json: line 1, column ");
  EXPECT_HAS(error_of("[1] x"), "line 1, column 5");
  EXPECT_HAS(error_of("[1,]"), "line 1, column 4");
  EXPECT_HAS(error_of("{\"a\":1 /* no */}"), "line 1");
}

TEST(Json, RefusesWhatIsNotJson) {
  for (const char* text :
       {"nul",    "NaN",         "[Infinity]", "01",     "+1",      "1.",       ".5",       "'a'",
        "\"\t\"", "\"\\x\"",     "[",          "{",      "{\"a\"}", "{\"a\":}", "{a:1}",    "\"abc",
        "[1 2]",  "\"\\ud800\"", "1e999",      "-1e999", "{,}",     "]",        "{\"a\":1]"})
    error_of(text);
}

TEST(Json, RefusesByteOrderMarksAndNulBytes) {
  EXPECT_HAS(error_of("\xef\xbb\xbf{}"), "byte order mark");
  EXPECT_HAS(error_of(std::string_view("{}\0", 3)), "line 1, column 2: expected JSON, found a NUL");
  EXPECT_HAS(error_of(std::string_view("{}\n\0[", 5)), "line 2, column 0");
  error_of(std::string_view("[\0]", 3));
}

TEST(Json, RefusesNumbersThatOverflow) {
  EXPECT_HAS(error_of("[1, 1e999]"),
             "line 1, column 9: expected JSON, found what is none: number overflow");
}

TEST(Json, RefusesInvalidUtf8) {
  for (const char* bytes : {"\"\xff\"", "\"\xc0\x80\"", "\"\xed\xa0\x80\"", "\"\xf4\x90\x80\x80\"",
                            "\"\xe2\x82\"", "\xff\xfe"})
    EXPECT_HAS(error_of(bytes), "line 1, column");
}

TEST(Json, RefusesDuplicateKeysInSmallAndLargeObjects) {
  EXPECT_HAS(error_of("{\"k\": 1,\n \"k\": 2}"), "line 2, column 4: duplicate key \"k\"");
  EXPECT_HAS(error_of("{\"k\": 1, \"\\u006b\": 2}"), "duplicate key");
  for (const int n : {15, 16, 17, 31, 32, 33, 64, 1000}) {
    std::string text = "{";
    for (int i = 0; i < n; ++i)
      text += "\"key" + std::to_string(i) + "\":0,";
    EXPECT_NO_THROW(parse_json(text + "\"other\":0}", "a"));
    EXPECT_HAS(error_of(text + "\"key" + std::to_string(n / 2) + "\":0}"), "duplicate key");
  }
  EXPECT_NO_THROW(parse_json(R"({"a":{"k":1},"b":{"k":1}})", "a"));
}

TEST(Json, RefusesDeepNestingWithoutDeepRecursion) {
  for (const int depth : {65, 1000, 1'000'000}) {
    EXPECT_HAS(error_of(std::string(depth, '[')), "nested deeper than 64 levels");
    std::string objects;
    for (int i = 0; i < depth; ++i)
      objects += "{\"a\":";
    EXPECT_HAS(error_of(objects), "nested deeper than 64 levels");
  }
  EXPECT_NO_THROW(parse_json(std::string(64, '[') + std::string(64, ']'), "a"));
}

TEST(Json, RefusesTooManyValuesAndBytes) {
  std::string text = "[0";
  for (int i = 0; i < 1000; ++i)
    text += ",0";
  text += "]";
  EXPECT_HAS(error_of(text, {.max_nodes = 1000}), "more than 1000 values");
  EXPECT_HAS(error_of(text, {.max_bytes = 100}), "at most 100 bytes");
  EXPECT_NO_THROW(parse_json(text, "a", {.max_nodes = 1002}));
}

TEST(Json, ManyKeysAreReadQuicklyAndCapped) {
  std::string text = "{";
  for (int i = 0; i < 300'000; ++i)
    text += "\"k" + std::to_string(i) + "\":" + std::to_string(i) + ",";
  text += "\"end\":0}";
  const auto start = std::chrono::steady_clock::now();
  EXPECT_EQ(parse_json(text, "a").as_object().size(), 300'001u);
  // Quadratic key checks would take minutes; the bound is loose for sanitizers and busy machines.
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(5));
}

TEST(Json, LongTokensDoNotFloodTheMessage) {
  EXPECT_LT(error_of("\"" + std::string(1'000'000, 'x')).size(), 1000u);
  EXPECT_LT(error_of("{\"" + std::string(1'000'000, 'x') + "\":1,\"" + std::string(1'000'000, 'x') +
                     "\":1}")
                .size(),
            1000u);
}

TEST(Json, EveryTruncationIsAnError) {
  const std::string text = R"({"a": [1, 2.5e3, "t\u00e9xt", true, null], "b": {"c": {}}})";
  ASSERT_NO_THROW(parse_json(text, "a"));
  for (size_t n = 0; n < text.size(); ++n)
    error_of(text.substr(0, n));
}

TEST(Json, DumpReadsBackEqual) {
  Json::Object object;
  object.emplace_back("text", "q\" b\\ n\n c\x01 \xc3\xbc");
  object.emplace_back("tenth", 0.1);
  object.emplace_back("single", 0.1f);
  object.emplace_back("one", 1.0);
  object.emplace_back("minus_zero", -0.0);
  object.emplace_back("small", std::numeric_limits<double>::denorm_min());
  object.emplace_back("large", 1e300);
  object.emplace_back("integer", INT64_MIN);
  object.emplace_back("list", Json::Array{Json(), Json(true), Json::array(), Json::object()});
  const Json json(object);
  for (const int indent : {-1, 0, 2}) {
    const Json again = parse_json(json.dump(indent), "a");
    EXPECT_EQ(again.dump(), json.dump());
    EXPECT_TRUE(std::signbit(again.find("minus_zero")->as_number()));
    EXPECT_FALSE(again.find("one")->is_integer());
    EXPECT_EQ(again.find("tenth")->as_number(), 0.1);
    EXPECT_EQ(again.find("single")->as_number(), static_cast<double>(0.1f));
    EXPECT_EQ(again.find("integer")->as_integer(), INT64_MIN);
    EXPECT_EQ(again.find("text")->as_string(), json.find("text")->as_string());
  }
  EXPECT_EQ(Json(Json::Array{Json(1), Json("a")}).dump(), "[1,\"a\"]");
  EXPECT_EQ(Json(Json::Array{Json(1)}).dump(2), "[\n  1\n]");
  EXPECT_THROW(Json(std::nan("")).dump(), ArgumentError);
}

TEST(JsonReader, NamesFileKeyAndWhatWasFound) {
  const Json json = parse_json(R"({"n": "8", "s": 3, "z": null, "f": 1.5})", "config.json");
  const JsonReader reader(json, "config.json");
  EXPECT_HAS(message_of<DataError>([&] { reader.integer("n"); }),
             "config.json: n: expected an integer, found string \"8\"");
  EXPECT_HAS(message_of<DataError>([&] { reader.integer("absent"); }), "found nothing");
  EXPECT_HAS(message_of<DataError>([&] { reader.string("s"); }),
             "expected a string, found integer 3");
  EXPECT_HAS(message_of<DataError>([&] { reader.integer_or("f", 1); }), "found number 1.5");
  EXPECT_HAS(message_of<DataError>([&] { reader.boolean_or("s", true); }), "true or false");
  EXPECT_EQ(reader.integer_or("z", 7), 7);
  EXPECT_EQ(reader.number("s"), 3.0);
  EXPECT_FALSE(reader.has("z"));
  EXPECT_HAS(message_of<DataError>([&] { JsonReader(Json(3), "x.json"); }), "x.json: expected");
}

TEST(JsonFile, RefusesALargeFileBeforeReadingIt) {
  const TempFolder folder;
  const auto path = folder.write("a.json", std::string(2000, ' '));
  EXPECT_HAS(message_of<DataError>([&] { read_json_file(path.string(), {.max_bytes = 1000}); }),
             "expected at most 1000 bytes, found 2000");
  EXPECT_HAS(message_of<MissingInputError>([&] { read_json_file("/nonexistent/a.json"); }),
             "/nonexistent/a.json: cannot read: No such file");
}

}  // namespace
}  // namespace shardtune::io
