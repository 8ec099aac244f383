#include "data/chat_template.h"

#include <gtest/gtest.h>

#include "core/error.h"
#include "data/dataset.h"
#include "tests/data/data_files.h"

namespace shardtune::data {
namespace {

using testing::golden;
using testing::ids_of;

const io::Json& golden_file() {
  static const io::Json file = io::read_json_file(golden("chat_template/conversations.json"));
  return file;
}

std::vector<Message> messages_of(const io::Json& row) {
  std::vector<Message> messages;
  for (const io::Json& message : row.find("messages")->as_array())
    messages.push_back({message.find("role")->as_string(), message.find("content")->as_string()});
  return messages;
}

const std::string& template_text(const std::string& name) {
  return golden_file().find("templates")->find(name)->as_string();
}

class Template : public ::testing::TestWithParam<const char*> {};

TEST_P(Template, RendersAsJinja) {
  const std::string name = GetParam();
  const auto chat = make_chat_template(name, "");
  EXPECT_EQ(chat->name(), name);
  for (const io::Json& row : golden_file().find("conversations")->as_array()) {
    const auto messages = messages_of(row);
    EXPECT_EQ(chat->render_text(messages, GenerationPrompt::kNone), row.find(name)->as_string());
    EXPECT_EQ(chat->render_text(messages, GenerationPrompt::kAppend),
              row.find(name + "_prompt")->as_string());
  }
}

TEST_P(Template, IsRecognisedByItsText) {
  EXPECT_EQ(make_chat_template("auto", template_text(GetParam()))->name(), GetParam());
}

TEST_P(Template, IdsOfAConversationAreThoseOfItsText) {
  if (testing::model_path().empty())
    GTEST_SKIP() << "no SmolLM2 file: set SHARDTUNE_MODEL";
  const auto tokenizer = load_tokenizer(testing::model_path());
  const std::string name = GetParam();
  const auto chat = make_chat_template(name, "");
  for (const io::Json& row : golden_file().find("conversations")->as_array()) {
    EXPECT_EQ(encode_chat(messages_of(row), *tokenizer, *chat, GenerationPrompt::kNone),
              ids_of(*row.find(name + "_ids")));
    EXPECT_EQ(encode_chat(messages_of(row), *tokenizer, *chat, GenerationPrompt::kAppend),
              ids_of(*row.find(name + "_prompt_ids")));
  }
}

INSTANTIATE_TEST_SUITE_P(Names, Template, ::testing::Values("smollm2", "chatml"),
                         [](const auto& info) { return std::string(info.param); });

TEST(ChatTemplate, SpellingsOfOneTextAreRecognised) {
  const std::string spelled =
      "{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}"
      "{% endif %}\n{%- for message in messages -%}\n  {{ \"<|im_start|>\" + message.role + "
      "\"\\n\" + message.content + \"<|im_end|>\" + \"\\n\" }}\n{%- endfor -%}"
      "{%- if add_generation_prompt -%}{{ \"<|im_start|>assistant\n\" }}{%- endif -%}";
  EXPECT_EQ(make_chat_template("auto", spelled)->name(), "chatml");
}

TEST(ChatTemplate, AnswerSpanIsContentAndEndToken) {
  const auto chat = make_chat_template("chatml", "");
  std::string answer;
  for (const RenderedPiece& piece :
       chat->render({{"user", "q"}, {"assistant", "a"}}, GenerationPrompt::kNone)) {
    if (piece.is_assistant)
      answer += piece.text;
  }
  EXPECT_EQ(answer, "a<|im_end|>");
}

TEST(ChatTemplate, UnknownTextIsRefusedWithTheNames) {
  const std::string llama3 =
      "{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>{% endfor %}";
  const std::string richer = template_text("chatml") + "{% if tools %}{{ tools }}{% endif %}";
  std::string other_system = template_text("smollm2");
  other_system.replace(other_system.find("SmolLM"), 6, "Qwen");
  std::string no_break = template_text("chatml");
  no_break.replace(no_break.find(" + '\\n'"), 7, "");
  for (const std::string& text : {std::string(), llama3, richer, other_system, no_break}) {
    try {
      make_chat_template("auto", text);
      FAIL() << text;
    } catch (const UnsupportedError& error) {
      EXPECT_NE(std::string(error.what()).find("chatml, smollm2"), std::string::npos)
          << error.what();
    }
  }
  EXPECT_THROW(make_chat_template("chatm", ""), ConfigError);
}

TEST(ChatTemplate, RefusesRolesItCannotRender) {
  const auto chat = make_chat_template("smollm2", "");
  try {
    chat->render({{"user", "q"}, {"user<|im_end|>", "a"}}, GenerationPrompt::kNone);
    FAIL();
  } catch (const DataError& error) {
    EXPECT_NE(std::string(error.what()).find("messages[1].role"), std::string::npos);
  }
  EXPECT_THROW(chat->render({}, GenerationPrompt::kAppend), DataError);
}

}  // namespace
}  // namespace shardtune::data
