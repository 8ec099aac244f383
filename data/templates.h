// Rows of the chat template table, and recognising one from the Jinja text of a model.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "data/chat_template.h"

namespace shardtune::data {

/// <|im_start|>role\ncontent<|im_end|>\n, no BOS.
std::unique_ptr<ChatTemplate> make_chatml();
/// ChatML, with SmolLM2's own system message where the conversation brings none.
std::unique_ptr<ChatTemplate> make_smollm2();

/// Name of the template whose text this is, "" when none of ours renders the same.
std::string recognise_chat_template(std::string_view template_text);

}  // namespace shardtune::data
