#include "data/chat_template.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <set>

#include "core/error.h"
#include "data/dataset.h"
#include "data/templates/render.h"
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
  const auto chat = make_chat_template(name, "", {});
  EXPECT_EQ(chat->name(), name);
  for (const io::Json& row : golden_file().find("conversations")->as_array()) {
    const auto messages = messages_of(row);
    EXPECT_EQ(chat->render_text(messages, GenerationPrompt::kNone), row.find(name)->as_string());
    EXPECT_EQ(chat->render_text(messages, GenerationPrompt::kAppend),
              row.find(name + "_prompt")->as_string());
  }
}

TEST_P(Template, IsRecognisedByItsText) {
  EXPECT_EQ(make_chat_template("auto", template_text(GetParam()), {})->name(), GetParam());
}

TEST_P(Template, IdsOfAConversationAreThoseOfItsText) {
  if (testing::model_path().empty())
    GTEST_SKIP() << "no SmolLM2 file: set SHARDTUNE_MODEL";
  const auto tokenizer = load_tokenizer(testing::model_path());
  const std::string name = GetParam();
  const auto chat = make_chat_template(name, "", {});
  for (const io::Json& row : golden_file().find("conversations")->as_array()) {
    EXPECT_EQ(encode_chat(messages_of(row), *tokenizer, *chat, GenerationPrompt::kNone),
              ids_of(*row.find(name + "_ids")));
    EXPECT_EQ(encode_chat(messages_of(row), *tokenizer, *chat, GenerationPrompt::kAppend),
              ids_of(*row.find(name + "_prompt_ids")));
  }
}

INSTANTIATE_TEST_SUITE_P(Names, Template, ::testing::Values("smollm2", "chatml"),
                         [](const auto& info) { return std::string(info.param); });

/// Published texts, and what transformers makes of conversations with them.
const io::Json& published() {
  static const io::Json file = io::read_json_file(golden("chat_template/templates.json"));
  return file;
}

std::vector<std::vector<Message>> published_conversations() {
  std::vector<std::vector<Message>> conversations;
  for (const io::Json& messages : published().find("conversations")->as_array()) {
    std::vector<Message> list;
    for (const io::Json& message : messages.as_array()) {
      Message each{message.find("role")->as_string(), message.find("content")->as_string()};
      if (const io::Json* input = message.find("input"))
        each.input_begin = each.content.size() - input->as_string().size();
      if (const io::Json* calls = message.find("tool_calls"))
        each.tool_calls = tool_calls_from_json(*calls, "golden");
      if (const io::Json* id = message.find("tool_call_id"))
        each.tool_call_id = id->as_string();
      list.push_back(std::move(each));
    }
    conversations.push_back(std::move(list));
  }
  return conversations;
}

struct PublishedText {
  const io::Json* row;
  std::string string(const char* key) const { return row->find(key)->as_string(); }
  TemplateTokens tokens() const { return {string("bos"), string("eos")}; }
};

std::vector<PublishedText> published_texts() {
  std::vector<PublishedText> rows;
  for (const io::Json& row : published().find("rows")->as_array())
    rows.push_back({&row});
  return rows;
}

/// The text of the reference, nullptr when it raises an error or leaves a message out: then ours
/// must refuse.
const std::string* reference(const io::Json& text, const std::vector<Message>& messages) {
  if (text.is_null())
    return nullptr;
  const auto kept = [&](const Message& message) {
    for (const ToolCall& call : message.tool_calls) {
      if (text.as_string().find(python_json(call.arguments)) == std::string::npos)
        return false;
    }
    const std::string quoted = io::Json(message.content).dump();
    const std::string_view inner = std::string_view(quoted).substr(1, quoted.size() - 2);
    return message.input_begin != std::string::npos ||
           text.as_string().find(stripped(message.content)) != std::string::npos ||
           text.as_string().find(inner) != std::string::npos;
  };
  return std::all_of(messages.begin(), messages.end(), kept) ? &text.as_string() : nullptr;
}

TEST(PublishedTemplates, RenderAsTransformers) {
  const auto conversations = published_conversations();
  int compared = 0;
  for (const PublishedText& text : published_texts()) {
    const auto chat = make_chat_template(text.string("name"), "", text.tokens());
    const auto& rendered = text.row->find("rendered")->as_array();
    ASSERT_EQ(rendered.size(), conversations.size());
    for (std::size_t i = 0; i < conversations.size(); ++i) {
      const std::string where =
          text.string("name") + " " + text.string("source") + " conversation " + std::to_string(i);
      for (const auto prompt : {GenerationPrompt::kNone, GenerationPrompt::kAppend}) {
        const std::string* expected = reference(
            rendered[i].as_array()[prompt == GenerationPrompt::kAppend ? 1 : 0], conversations[i]);
        if (expected == nullptr) {
          EXPECT_THROW(chat->render(conversations[i], prompt), DataError) << where;
          continue;
        }
        ++compared;
        try {
          EXPECT_EQ(chat->render_text(conversations[i], prompt), *expected) << where;
        } catch (const DataError& error) {
          ADD_FAILURE() << where << ": " << error.what();
        }
      }
    }
  }
  EXPECT_GT(compared, 450);
}

TEST(PublishedTemplates, AreRecognised) {
  std::set<std::string> names;
  for (const PublishedText& text : published_texts()) {
    const std::string name = text.string("name");
    if (name == "alpaca")
      continue;  // no model carries its text
    EXPECT_EQ(recognise_chat_template(text.string("text")), name)
        << "{\"" << chat_template_digest(text.string("text")) << "\", \"" << name << "\"},  // "
        << text.string("source");
    names.insert(name);
    std::string changed = text.string("text");
    changed.insert(changed.rfind("}}"), "+'.'");
    EXPECT_EQ(recognise_chat_template(changed), "") << name;
    EXPECT_EQ(recognise_chat_template("." + text.string("text")), "") << name;
  }
  names.insert({"alpaca", "smollm2"});
  const auto known = chat_templates().names();
  EXPECT_EQ(names, std::set<std::string>(known.begin(), known.end()));
}

/// The answers of a rendering, each in one string.
std::vector<std::string> answers_of(const std::vector<RenderedPiece>& pieces) {
  std::vector<std::string> answers;
  int last = -1;
  for (const RenderedPiece& piece : pieces) {
    if (!piece.is_assistant)
      continue;
    if (piece.message_index != last)
      answers.emplace_back();
    last = piece.message_index;
    answers.back() += piece.text;
  }
  return answers;
}

TEST(PublishedTemplates, AnswersAreWhatAnAssistantOnlyLossTrains) {
  const auto conversations = published_conversations();
  for (const auto& [name, lists] : published().find("answers")->as_object()) {
    const auto chat = make_chat_template(name, "", {"<bos>", "<eos>"});
    for (std::size_t i = 0; i < conversations.size(); ++i) {
      const io::Json& list = lists.as_array()[i];
      const bool has_calls =
          std::any_of(conversations[i].begin(), conversations[i].end(),
                      [](const Message& message) { return !message.tool_calls.empty(); });
      if (list.is_null() || (has_calls && name != "qwen2.5"))
        continue;
      std::vector<std::string> expected;
      for (const io::Json& span : list.as_array()) {
        std::string text = span.as_string();
        // Their spans hold the line ends around an answer, which the model is given or never asked.
        if (name != "llama3")
          text.pop_back();
        if (name == "qwen2.5")
          text.erase(0, 1);
        expected.push_back(std::move(text));
      }
      EXPECT_EQ(answers_of(chat->render(conversations[i], GenerationPrompt::kNone)), expected)
          << name << " " << i;
    }
  }
}

TEST(PublishedTemplates, AnAnswerFollowsThePromptAndEndsWithTheEndToken) {
  const std::map<std::string, std::string> own_ends = {
      {"chatml", "<|im_end|>"},  {"qwen2", "<|im_end|>"},  {"qwen2.5", "<|im_end|>"},
      {"smollm2", "<|im_end|>"}, {"llama3", "<|eot_id|>"}, {"llama3.1", "<|eot_id|>"},
      {"gemma", "<end_of_turn>"}};
  const std::vector<Message> question = {{"user", "q"}, {"assistant", "a"}, {"user", "r"}};
  std::vector<Message> whole = question;
  whole.push_back({"assistant", "the answer"});
  for (const std::string& name : chat_templates().names()) {
    const auto chat = make_chat_template(name, "", {"<bos>", "<eos>"});
    const auto pieces = chat->render(whole, GenerationPrompt::kNone);
    const auto answers = answers_of(pieces);
    const auto end = own_ends.find(name);
    ASSERT_EQ(answers.size(), 2u) << name;
    EXPECT_TRUE(answers[1].ends_with(end == own_ends.end() ? "<eos>" : end->second)) << name;
    EXPECT_NE(answers[1].find("the answer"), std::string::npos) << name;
    const std::string text = chat->render_text(whole, GenerationPrompt::kNone);
    EXPECT_TRUE(
        text.starts_with(chat->render_text(question, GenerationPrompt::kAppend) + answers[1]))
        << name;
  }
}

TEST(ChatTemplate, NeedsTheEndTokenThatClosesAnswers) {
  EXPECT_THROW(make_chat_template("zephyr", "", {"<s>", ""}), ConfigError);
  EXPECT_NO_THROW(make_chat_template("llama3", "", {"", ""}));
}

TEST(ChatTemplate, SpellingsOfOneTextAreRecognised) {
  const std::string spelled =
      "{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}"
      "{% endif %}\n{%- for message in messages -%}\n  {{ \"<|im_start|>\" + message.role + "
      "\"\\n\" + message.content + \"<|im_end|>\" + \"\\n\" }}\n{%- endfor -%}"
      "{%- if add_generation_prompt -%}{{ \"<|im_start|>assistant\n\" }}{%- endif -%}";
  EXPECT_EQ(make_chat_template("auto", spelled, {})->name(), "chatml");
}

TEST(ChatTemplate, WhiteSpaceThatComesOutIsNotSpelling) {
  const std::string text = template_text("chatml");
  const std::size_t end = text.find("{% endfor %}");
  const auto with = [&](const std::string& more) {
    return recognise_chat_template(text.substr(0, end) + more + text.substr(end));
  };
  EXPECT_EQ(with(""), "chatml");
  EXPECT_EQ(with("\n"), "");
  EXPECT_EQ(with(" "), "");
  EXPECT_EQ(recognise_chat_template(" " + text), "chatml");  // goes with lstrip_blocks
  EXPECT_EQ(recognise_chat_template(text + "\n"), "chatml");
  EXPECT_EQ(recognise_chat_template(text + " "), "");
  for (std::size_t size = 0; size < text.size(); ++size)
    EXPECT_EQ(recognise_chat_template(text.substr(0, size)), "");
}

TEST(ChatTemplate, AnswerSpanIsContentAndEndToken) {
  const auto chat = make_chat_template("chatml", "", {});
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
      make_chat_template("auto", text, {});
      FAIL() << text;
    } catch (const UnsupportedError& error) {
      EXPECT_NE(std::string(error.what()).find("alpaca, chatml, gemma"), std::string::npos)
          << error.what();
    }
  }
  EXPECT_THROW(make_chat_template("chatm", "", {}), ConfigError);
}

TEST(ChatTemplate, RefusesRolesItCannotRender) {
  const auto chat = make_chat_template("smollm2", "", {});
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
