// Prompt tuning: n trained embeddings stand before the tokens of every sample. They start N(0,1),
// or at the embeddings of a text's tokens (repeated or cut to n) or of random tokens. Source Lester
// et al. 2021, The Power of Scale for Parameter-Efficient Prompt Tuning,
//         arXiv:2104.08691
#include "adapters/methods.h"
#include "adapters/prompt_adapter.h"
#include "adapters/prompt_start.h"

namespace shardtune::adapters {

namespace {

struct PromptTuningOptions {
  int64_t num_virtual_tokens = 0;
  PromptStart start;

  std::vector<std::pair<std::string, std::string>> keys() const {
    auto keys = start.keys();
    keys.emplace_back("num_virtual_tokens", std::to_string(num_virtual_tokens));
    return keys;
  }
  FrontTokens front_tokens() const { return {num_virtual_tokens, num_virtual_tokens}; }
};

class PromptTuning : public PromptAdapter {
 public:
  static constexpr std::string_view kName = "prompt_tuning";

  PromptTuning(const PromptTuningOptions& options, models::Model& model)
      : PromptAdapter(options.num_virtual_tokens, model), options_(options) {
    declare_prompt("prompt_embeddings", {num_virtual_tokens(), width()}, started_embeddings());
  }

  std::string_view method() const override { return kName; }
  void initialize(const InitContext& context) override {
    initialize_from(options_.start.embeddings(model(), context, tensors()[0]), context);
  }
  autograd::Variable virtual_tokens(autograd::Tape& tape, const models::PassContext&) override {
    return parameter(tape, 0);
  }
  io::Json peft_config(const std::string& base_model) const override {
    auto own = prompt_config();
    options_.start.add_peft_keys(base_model, own);
    return peft_config_json("PROMPT_TUNING", base_model, std::move(own));
  }

 private:
  PromptTuningOptions options_;
};

}  // namespace

std::unique_ptr<AdapterOptions> read_prompt_tuning(const OptionReader& reader) {
  PromptTuningOptions options;
  options.num_virtual_tokens = read_num_virtual_tokens(reader);
  options.start = read_prompt_start(reader, {"RANDOM", "TEXT", "SAMPLE_VOCAB"});
  return std::make_unique<MethodOptions<PromptTuning, PromptTuningOptions>>(std::move(options));
}

}  // namespace shardtune::adapters
