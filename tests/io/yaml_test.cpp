#include <gtest/gtest.h>

#include <chrono>
#include <limits>
#include <random>

#include "core/error.h"
#include "io/yaml_node.h"
#include "tests/io/temp_folder.h"

namespace shardtune::io {
namespace {

constexpr double kInf = std::numeric_limits<double>::infinity();
constexpr NumberRange kAny{-kInf, kInf};
constexpr NumberRange kPositive{1, kInf};

// A parsed text and the errors about it.
struct Parsed {
  explicit Parsed(std::string_view text) : node(YamlNode::parse(text, "c.yaml", errors)) {}
  std::string joined() const {
    std::string all;
    for (const std::string& message : errors.messages())
      all += message + "\n";
    return all;
  }
  ConfigErrors errors;
  YamlNode node;
};

std::string error_of(std::string_view text) {
  const Parsed parsed(text);
  EXPECT_FALSE(parsed.errors.messages().empty()) << text;
  return parsed.joined();
}

std::string integer_error(const std::string& value) {
  Parsed parsed("adapter:\n  lora_rank: " + value + "\n");
  EXPECT_EQ(parsed.node.section("adapter").integer_or("lora_rank", 16, kPositive), 16) << value;
  EXPECT_EQ(parsed.errors.messages().size(), 1u) << parsed.joined();
  return parsed.joined();
}

std::string number_error(const std::string& value) {
  Parsed parsed("x: " + value + "\n");
  EXPECT_EQ(parsed.node.number_or("x", 0.25, {0, 1, true, false}), 0.25) << value;
  EXPECT_EQ(parsed.errors.messages().size(), 1u) << parsed.joined();
  return parsed.joined();
}

TEST(Yaml, ReadsEveryKindOfValue) {
  Parsed parsed(R"(# a comment
name: run 1
quoted: "2e-4"
adapter:
  lora_rank: 16
  rate: 2e-4   # comment
  on: true
  targets: [q_proj, v_proj]
  one: all
list:
- path: a
- path: b
text: |
  two
  lines
nothing: ~
)");
  const YamlNode& root = parsed.node;
  EXPECT_EQ(root.string_or("name", ""), "run 1");
  EXPECT_EQ(root.string("quoted"), "2e-4");
  const YamlNode adapter = root.section("adapter");
  EXPECT_EQ(adapter.where(), "c.yaml:5: adapter");
  EXPECT_EQ(adapter.integer_or("lora_rank", 8, kPositive), 16);
  EXPECT_EQ(adapter.number_or("rate", 1, kAny), 2e-4);
  EXPECT_TRUE(adapter.boolean_or("on", false));
  EXPECT_EQ(adapter.strings_or("targets", {}), (std::vector<std::string>{"q_proj", "v_proj"}));
  EXPECT_EQ(adapter.strings_or("one", {}), (std::vector<std::string>{"all"}));
  EXPECT_EQ(adapter.strings_or("absent", {"d"}), (std::vector<std::string>{"d"}));
  const auto list = root.elements("list");
  ASSERT_EQ(list.size(), 2u);
  EXPECT_EQ(list[1].string_or("path", ""), "b");
  EXPECT_EQ(root.string_or("text", ""), "two\nlines\n");
  EXPECT_FALSE(root.has("nothing"));
  EXPECT_EQ(root.integer("nothing", kAny), std::nullopt);
  EXPECT_FALSE(root.section("absent").present());
  EXPECT_EQ(root.section("absent").integer_or("x", 3, kAny), 3);
  root.section("absent").finish();
  root.finish();
  adapter.finish();
  EXPECT_TRUE(parsed.errors.messages().empty()) << parsed.joined();
}

TEST(Yaml, NumbersAreStrictDecimal) {
  Parsed parsed("a: [2e-4, 1E5, -3, .5, 5., +1.5, 0, 0.0, 1e-300, 123456789012345678]\n");
  EXPECT_EQ(parsed.node.numbers_or("a", {}, kAny),
            (std::vector<double>{2e-4, 1e5, -3, .5, 5., 1.5, 0, 0.0, 1e-300, 123456789012345678.}));
  Parsed integers("a: 9223372036854775807\nb: -9223372036854775808\nc: +7\nd: 0\n");
  EXPECT_EQ(integers.node.integer("a", kAny), INT64_MAX);
  EXPECT_EQ(integers.node.integer("b", kAny), INT64_MIN);
  EXPECT_EQ(integers.node.integer("c", kAny), 7);
  EXPECT_EQ(integers.node.integer("d", kAny), 0);
  EXPECT_TRUE(parsed.joined().empty() && integers.joined().empty());
}

TEST(Yaml, IntegerErrorsTellLineKeyAndWhatToWrite) {
  EXPECT_EQ(integer_error("sixteen"),
            "c.yaml:2: adapter.lora_rank: expected an integer >= 1, found \"sixteen\". Write for "
            "example 'lora_rank: 16'.\n");
  EXPECT_EQ(integer_error("0"),
            "c.yaml:2: adapter.lora_rank: expected an integer >= 1, found 0. Write for example "
            "'lora_rank: 16'.\n");
  EXPECT_HAS(integer_error("010"), "A leading zero means octal");
  EXPECT_HAS(integer_error("010"), "Write 'lora_rank: 10'.");
  EXPECT_HAS(integer_error("0x1F"), "Write 'lora_rank: 31'.");
  EXPECT_HAS(integer_error("1_000"), "Write 'lora_rank: 1000'.");
  EXPECT_HAS(integer_error("1e3"), "found 1e3. Write 'lora_rank: 1000'.");
  EXPECT_HAS(integer_error("16.0"), "Write 'lora_rank: 16'.");
  EXPECT_HAS(integer_error("\"16\""), "found the string \"16\". Remove the quotes.");
  EXPECT_HAS(integer_error("9223372036854775808"), "expected an integer >= 1");
  for (const char* value : {"-1", "true", "[16]", "{a: 1}", "", "''", "--1", "1-", "0b1", "0o7",
                            "１６", "16x", "1e", ".", "+", "nan"}) {
    EXPECT_HAS(integer_error(value), "c.yaml:2: adapter.lora_rank: expected an integer >= 1");
  }
}

TEST(Yaml, NumberErrorsPrintTheRange) {
  EXPECT_HAS(number_error("1.5"), "c.yaml:1: x: expected a number > 0 and <= 1, found 1.5");
  EXPECT_HAS(number_error("0"), "found 0. Write for example 'x: 0.25'.");
  for (const char* value : {".inf", "-.inf", ".nan", "inf", "nan", "1e999", "0x1p3", "1,5", "01.5",
                            "1_0.5", "'0.5'", "half", "true", "[0.5]", "1e-999"})
    EXPECT_HAS(number_error(value), "x: expected a number > 0 and <= 1, found ");
}

TEST(Yaml, BooleansAreTrueOrFalse) {
  for (const char* value :
       {"yes", "no", "on", "off", "True", "FALSE", "1", "0", "\"true\"", "~x"}) {
    Parsed parsed(std::string("x: ") + value + "\n");
    EXPECT_TRUE(parsed.node.boolean_or("x", true));
    EXPECT_HAS(parsed.joined(), "c.yaml:1: x: expected true or false, found ");
  }
  Parsed yes("x: yes\ny: off\n");
  yes.node.boolean_or("x", false);
  yes.node.boolean_or("y", true);
  EXPECT_HAS(yes.joined(), "Write 'x: true'.");
  EXPECT_HAS(yes.joined(), "Write 'y: false'.");
}

TEST(Yaml, UnknownKeysNameTheNearest) {
  Parsed parsed("adapter:\n  lora_alhpa: 16\n  r: 8\n  zzz: 1\nmodle: x\n");
  const YamlNode adapter = parsed.node.section("adapter");
  adapter.integer_or("lora_rank", 8, kPositive);
  adapter.number_or("lora_alpha", 16, kAny);
  adapter.alias_hint("r", "lora_rank");
  adapter.finish();
  parsed.node.section("model");
  parsed.node.finish();
  const auto& messages = parsed.errors.messages();
  ASSERT_EQ(messages.size(), 4u) << parsed.joined();
  EXPECT_EQ(messages[0],
            "c.yaml:2: adapter: unknown key 'lora_alhpa'; did you mean 'lora_alpha'? Known: "
            "lora_rank, lora_alpha.");
  EXPECT_EQ(messages[1], "c.yaml:3: adapter: unknown key 'r'. Write 'lora_rank' instead.");
  EXPECT_EQ(messages[2], "c.yaml:4: adapter: unknown key 'zzz'. Known: lora_rank, lora_alpha.");
  EXPECT_EQ(messages[3],
            "c.yaml:5: unknown key 'modle'; did you mean 'model'? Known: adapter, model.");
  EXPECT_HAS(message_of<ConfigError>([&] { parsed.errors.throw_if_any(); }),
             messages[0] + "\n" + messages[1]);
}

TEST(Yaml, ChoicesNameTheNearest) {
  Parsed parsed("a: stf\nb: 17\nc: [sft]\n");
  for (const char* key : {"a", "b", "c"})
    EXPECT_EQ(parsed.node.choice_or(key, "sft", {"sft", "pretrain"}), "sft");
  EXPECT_HAS(parsed.joined(),
             "c.yaml:1: a: expected one of sft, pretrain, found \"stf\". Did you mean 'sft'? ");
  EXPECT_HAS(parsed.joined(), "c.yaml:2: b: expected one of sft, pretrain, found 17. Write for");
  EXPECT_HAS(parsed.joined(), "c.yaml:3: c: expected one of sft, pretrain, found a list.");
}

TEST(Yaml, AWrongKindOfSectionIsAnError) {
  Parsed parsed("adapter: 5\nmodel:\ndata: [a]\nname: {a: 1}\n");
  EXPECT_EQ(parsed.node.section("adapter").integer_or("lora_rank", 8, kPositive), 8);
  parsed.node.section("adapter").finish();
  EXPECT_EQ(parsed.node.section("model").integer_or("x", 2, kPositive), 2);
  parsed.node.section("model").finish();
  parsed.node.section("data").finish();
  parsed.node.string_or("name", "n");
  const auto& messages = parsed.errors.messages();
  EXPECT_HAS(parsed.joined(), "c.yaml:1: adapter: expected a section with keys, found 5.");
  EXPECT_HAS(parsed.joined(), "c.yaml:3: data: expected a section with keys, found a list.");
  EXPECT_HAS(parsed.joined(), "c.yaml:4: name: expected text, found a mapping.");
  EXPECT_LE(messages.size(), 4u) << parsed.joined();
}

TEST(Yaml, StructureErrorsNameTheLine) {
  EXPECT_HAS(error_of("a: 1\nb: 2\na: 3\n"), "c.yaml:3: duplicate key \"a\", first in line 1");
  EXPECT_HAS(error_of("s:\n  a: 1\n  \"a\": 3\n"), "c.yaml:3: duplicate key \"a\"");
  EXPECT_HAS(error_of("{a: 1, a: 2}"), "duplicate key");
  EXPECT_HAS(error_of("a: 1\n" + std::string(2000, 'k') + "\n"),
             "c.yaml:2: expected a key of at most 256 bytes, found 2000");
  EXPECT_HAS(error_of("a: &x 1\nb: *x\n"), "c.yaml:1: anchors (&name) are not read");
  EXPECT_HAS(error_of("a: &x 1\nb: *x\n"), "c.yaml:2: aliases (*name) are not read");
  EXPECT_HAS(error_of("a: &x [*x]\n"), "aliases");
  EXPECT_HAS(error_of("b: &b {x: 1}\na:\n  <<: *b\n"), "c.yaml:3: merge keys");
  EXPECT_HAS(error_of("a: !!str 5\n"), "c.yaml:1: tags (");
  EXPECT_HAS(error_of("a: !python/object:os.system x\n"), "tags");
  EXPECT_HAS(error_of("a: 1\n---\nb: 2\n"), "c.yaml:2: a second document");
  EXPECT_HAS(error_of("a: 1\n...\nb: 2\n"), "a second document");
  EXPECT_HAS(error_of("? [a, b]\n: 1\n"), "c.yaml:1: expected a plain key");
  EXPECT_HAS(error_of("a: [1, 2\n"), "not valid YAML");
  EXPECT_HAS(error_of("a: 1\n\tb: 2\n"), "c.yaml:2: found a tab at the start");
  EXPECT_HAS(error_of("\xc3\xbc: \xc3\xbc\r\na: 'x\n"), "c.yaml:2: not valid YAML: the quote");
  EXPECT_HAS(error_of("a: \"x\\\"\n"), "not valid YAML: the quote");
  EXPECT_HAS(error_of("a: 'x''\n"), "not valid YAML");
  EXPECT_HAS(error_of("a: 1\nb: \xff\n"), "c.yaml:2: expected UTF-8");
  EXPECT_HAS(error_of(std::string_view("a: 1\nb: \0\n", 10)), "c.yaml:2: expected text, found");
  EXPECT_HAS(error_of("a: 1\n\x04\nb: 2\n"), "c.yaml:2: expected text, found the control");
  Parsed scalar("just text");
  scalar.node.finish();
  EXPECT_HAS(scalar.joined(), "c.yaml:1: expected a section with keys");
}

TEST(Yaml, EmptyTextAndCommentsAreAnEmptyMapping) {
  for (const char* text : {"", "\n", "# only a comment\n", "---\n", "\xef\xbb\xbf", "{}"}) {
    Parsed parsed(text);
    EXPECT_EQ(parsed.node.integer_or("x", 3, kAny), 3);
    parsed.node.finish();
    EXPECT_TRUE(parsed.joined().empty()) << text << parsed.joined();
  }
}

// RELIABILITY R5: each is refused quickly. The bound is loose for sanitizers and busy machines.
TEST(Yaml, BombsAreRefusedQuickly) {
  std::vector<std::string> bombs;
  for (const size_t depth : {65ul, 100ul, 10'000ul, 500'000ul}) {
    bombs.push_back(std::string(depth, '['));
    bombs.push_back(std::string(depth, '{'));
    std::string text;
    for (size_t i = 0; i < depth; ++i)
      text += "- ";
    bombs.push_back(text.substr(0, 1 << 20) + "a");
    for (const char* unit : {"? ", "[a: ", "{a: ", "!t [", "&a [", "[{"}) {
      text.clear();
      while (text.size() < 4 * depth && text.size() < (1 << 20))
        text += unit;
      bombs.push_back(text.substr(0, 1 << 20));
    }
  }
  std::string block;
  for (size_t depth = 0; depth < 1000; ++depth)
    block += std::string(depth, ' ') + "a:\n";
  bombs.push_back(block);
  std::string fan = "a0: &a0 [x, x, x]\n";
  for (int i = 1; i < 30; ++i) {
    const std::string below = "*a" + std::to_string(i - 1);
    fan +=
        "a" + std::to_string(i) + ": &a" + std::to_string(i) + " [" + below + ", " + below + "]\n";
  }
  bombs.push_back(fan);
  std::string many = "a: [";
  while (many.size() < (1 << 20) - 4)
    many += "1,";
  bombs.push_back(many + "1]");
  std::string lines;
  while (lines.size() < (1 << 20) - 16)
    lines += "k" + std::to_string(lines.size()) + ":\n";
  bombs.push_back(lines);
  bombs.push_back("a: " + std::string(100'000'000, 'x'));
  for (const std::string& bomb : bombs) {
    const auto start = std::chrono::steady_clock::now();
    EXPECT_LT(error_of(bomb).size(), 20'000u);
    EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(3))
        << bomb.substr(0, 40);
  }
}

TEST(Yaml, RandomDamageNeverCrashes) {
  const std::string base =
      "a: {b: [1, 'x', \"y\"], c: ~}\nd:\n  - e: 2e-4\n  - |\n   t\n? k\n: v\n";
  const std::string_view alphabet = "[]{}:,-?&*!|>'\"%@`# \n\tab0~<.";
  std::mt19937 random(5);
  for (int round = 0; round < 20'000; ++round) {
    std::string text = base;
    for (int i = 0; i < 1 + round % 8; ++i) {
      const size_t at = random() % text.size();
      const char c = alphabet[random() % alphabet.size()];
      if (random() % 3 == 0)
        text.erase(at, 1);
      else if (random() % 2 == 0)
        text.insert(at, 1, c);
      else
        text[at] = c;
    }
    Parsed parsed(text);
    parsed.node.section("a").integer_or("b", 1, kAny);
    parsed.node.finish();
    if (!parsed.errors.messages().empty() || parsed.node.dump().empty())
      continue;
    Parsed again(parsed.node.dump());
    EXPECT_EQ(again.node.dump(), parsed.node.dump()) << text;
  }
}

TEST(Yaml, OverridesReplaceAndCreate) {
  Parsed parsed("adapter:\n  lora_rank: 8\n  targets: [a]\nempty:\n");
  parsed.node.set_override("adapter.lora_rank=32");
  parsed.node.set_override("adapter.targets=[q, v]");
  parsed.node.set_override("training.schedule.warmup=0.5");
  parsed.node.set_override("empty.x=a=b");
  parsed.node.set_override("name=\"007\"");
  const YamlNode& root = parsed.node;
  EXPECT_EQ(root.section("adapter").integer_or("lora_rank", 1, kPositive), 32);
  EXPECT_EQ(root.section("adapter").strings_or("targets", {}),
            (std::vector<std::string>{"q", "v"}));
  EXPECT_EQ(root.section("training").section("schedule").number_or("warmup", 0, kAny), 0.5);
  EXPECT_EQ(root.section("empty").string_or("x", ""), "a=b");
  EXPECT_EQ(root.string_or("name", ""), "007");
  EXPECT_TRUE(parsed.joined().empty()) << parsed.joined();
}

TEST(Yaml, OverrideErrorsNameTheOption) {
  Parsed parsed("adapter:\n  lora_rank: 8\n");
  parsed.node.set_override("adapter.lora_rank=big");
  parsed.node.set_override("adapter.typo=1");
  for (const char* bad : {"x", "=1", ".a=1", "a.=1", "a..b=1", "a b=1"})
    parsed.node.set_override(bad);
  parsed.node.set_override("adapter.lora_rank.deep=1");
  parsed.node.set_override("adapter.list=[1");
  parsed.node.section("adapter").integer_or("lora_rank", 1, kPositive);
  parsed.node.section("adapter").finish();
  EXPECT_HAS(parsed.joined(), "--set adapter.lora_rank: expected an integer >= 1, found \"big\"");
  EXPECT_HAS(parsed.joined(), "--set adapter.typo: adapter: unknown key 'typo'");
  EXPECT_HAS(parsed.joined(), "--set \"a..b=1\": expected section.key=value");
  EXPECT_HAS(parsed.joined(), "--set adapter.lora_rank.deep: a part of this path");
  EXPECT_HAS(parsed.joined(), "--set adapter.list: ");
  EXPECT_EQ(parsed.errors.messages().size(), 10u) << parsed.joined();
}

TEST(Yaml, DumpReadsBackControlCharacters) {
  Parsed parsed("a: \"\\x85x\\x80y\\x9f\\x01 \\xa0\"\n");
  const auto value = parsed.node.string("a");
  EXPECT_EQ(value, "\xc2\x85x\xc2\x80y\xc2\x9f\x01 \xc2\xa0");
  Parsed again(parsed.node.dump());
  EXPECT_TRUE(again.joined().empty()) << again.joined();
  EXPECT_EQ(again.node.string("a"), value);
  EXPECT_HAS(error_of("a: 1\nb: \"x\\N\"\n"), "c.yaml:2: the escapes \"\\N\" and \"\\_\"");
  EXPECT_HAS(error_of("\"\\_\": 1\n"), "c.yaml:1: the escapes");
}

TEST(Yaml, DumpReadsBackTheSame) {
  Parsed parsed(
      "a: 'quoted: 1'\nb: plain text\nc: \"tab\\t nl\\n \\x01 \xc3\xbc \\\" \\\\\"\nd: 2e-4\n"
      "e: \"2e-4\"\nf: []\ng: {}\nh:\n- 1\n- x: 1\n  y: [[1, 2], []]\n- - a\n  - b\n"
      "i: |\n  two\n  lines\nj: ~\nk:\n\"key: odd\": 1\nl: folded\n  text\n'': 1\n'-': 2\n");
  ASSERT_TRUE(parsed.joined().empty()) << parsed.joined();
  parsed.node.set_override("new.section.key=[1, 'x']");
  const std::string text = parsed.node.dump();
  Parsed again(text);
  ASSERT_TRUE(again.joined().empty()) << again.joined() << text;
  EXPECT_EQ(again.node.dump(), text);
  EXPECT_EQ(again.node.string("c"), "tab\t nl\n \x01 \xc3\xbc \" \\");
  EXPECT_EQ(again.node.number("d", kAny), 2e-4);
  EXPECT_EQ(again.node.string("i"), "two\nlines\n");
  EXPECT_EQ(again.node.elements("h").size(), 3u);
  EXPECT_FALSE(again.node.has("j"));
  EXPECT_EQ(again.node.section("new").section("section").strings_or("key", {}),
            (std::vector<std::string>{"1", "x"}));
  EXPECT_EQ(again.node.number("e", kAny), std::nullopt);
  EXPECT_HAS(again.joined(), "Remove the quotes");
}

}  // namespace
}  // namespace shardtune::io
