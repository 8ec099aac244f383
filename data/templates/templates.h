// The chat templates, one function each, and recognising one from the Jinja text of a model. What
// they write equals what transformers renders from the published texts
// (tests/golden/chat_template), with one rule of our own: a message that the published text would
// leave out is an error.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "data/chat_template.h"

namespace shardtune::data {

using TemplatePtr = std::unique_ptr<ChatTemplate>;

/// <|im_start|>role\ncontent<|im_end|>\n, no BOS.
TemplatePtr make_chatml(const TemplateTokens& tokens);
/// ChatML with the model's own system message where the conversation brings none.
TemplatePtr make_smollm2(const TemplateTokens& tokens);
TemplatePtr make_qwen2(const TemplateTokens& tokens);
/// As qwen2 with another system message; results of tools are turns of the user.
TemplatePtr make_qwen2_5(const TemplateTokens& tokens);

/// [INST] <<SYS>> ... [/INST] answer </s>, BOS before each question; contents stripped.
TemplatePtr make_llama2(const TemplateTokens& tokens);
/// <|start_header_id|>role<|end_header_id|>\n\ncontent<|eot_id|>; contents stripped.
TemplatePtr make_llama3(const TemplateTokens& tokens);
/// Llama 3.1 to 3.3: a system block with dates always stands first. The date of today is the
/// constant of 3.1 (3.2 and 3.3 take the clock's, so that a run would change from day to day).
TemplatePtr make_llama3_1(const TemplateTokens& tokens);

/// The first of Mistral's: no system message, no space before the answer.
TemplatePtr make_mistral_v0(const TemplateTokens& tokens);
TemplatePtr make_mistral_v1(const TemplateTokens& tokens);
/// v2 and v3: the system message stands in the last question, if nothing follows that.
TemplatePtr make_mistral_v3(const TemplateTokens& tokens);
TemplatePtr make_mistral_v3_tekken(const TemplateTokens& tokens);

/// <|role|>\ncontent</s>\n; TinyLlama's too.
TemplatePtr make_zephyr(const TemplateTokens& tokens);
/// <start_of_turn>user|model; no system message; contents stripped.
TemplatePtr make_gemma(const TemplateTokens& tokens);
/// As Stanford's alpaca was trained, "### Response:" without a line end; turns apart by "\n\n".
TemplatePtr make_alpaca(const TemplateTokens& tokens);
/// Vicuna 1.1.
TemplatePtr make_vicuna(const TemplateTokens& tokens);

/// Name of the template whose text this is, "" when none of ours renders the same.
std::string_view recognise_chat_template(std::string_view template_text);
/// 16 hexadecimal digits of the text in one spelling: what the table of texts holds.
std::string chat_template_digest(std::string_view template_text);

}  // namespace shardtune::data
