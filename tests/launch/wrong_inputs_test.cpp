// Ten wrong inputs and more of every verb: what a confused and what a hostile user gives. Each
// message says where, what is expected against what was found, and what to do.
#include "tests/launch/wrong_inputs.h"

namespace shardtune::launch {
namespace {

using testing::expect_wrong;

TEST(WrongInputs, OfTrain) {
  expect_wrong(
      "train",
      {
          {"", 64, {"expected CONFIG.yaml", "found none", "Usage: shardtune train"}},
          {"none.yaml", 66, {"none.yaml", "No such file", "Check the path"}},
          {"model", 66, {"model:", "expected a file, found a folder", "Check the path"}},
          {"empty.yaml", 64, {"empty.yaml", "found nothing", "Write for example 'output_dir"}},
          {"latin.yaml", 64, {"latin.yaml:1", "expected UTF-8 text, found the byte", "\\xe9"}},
          {"tab.yaml", 64, {"tab.yaml:2", "found a tab", "Indent with spaces"}},
          {"two_errors.yaml",
           64,
           {"two_errors.yaml:3", "lora_rnk", "did you mean 'lora_rank'", "two_errors.yaml:8",
            "max_steps: expected an integer from 1", "found -3"}},
          {"run.yaml --set training.max_steps=99999999999999999999",
           64,
           {"training.max_steps", "from 1 to 1000000000000, found 99999999999999999999.",
            "Write for example"}},
          {"run.yaml --set training.learning_rate=fast",
           64,
           {"learning_rate", "expected a number", "found \"fast\"", "Write for example"}},
          {"run.yaml --set quantization.method=nf5",
           64,
           {"quantization.method", "found \"nf5\"", "Did you mean 'nf4'?"}},
          {"run.yaml --set adapter.target_modules=q_prj --resume never",
           64,
           {"target_modules", "q_prj", "did you mean 'q_proj'"}},
          {"run.yaml --set model=3",
           64,
           {"--set model: expected a section with keys, found 3", "Write for example",
            "model_name_or_path"}},
          {"run.yaml --set training.global_batch_size=4",
           64,
           {"global_batch_size: expected 2 (as in run/checkpoint-3), found 4", "--resume never",
            "another checkpoint.output_dir"}},
          {"run.yaml --set checkpoint.output_dir=model",
           64,
           {"output_dir", "a folder of the run's own, found the model's", "Write for example"}},
          {"run.yaml --set checkpoint.output_dir=empty/run",
           73,
           {"empty/run", "Not a directory", "choose another output name"}},
          {"run.yaml --resume run/checkpoint-9",
           66,
           {"run/checkpoint-9", "expected a checkpoint folder, found none", "Give a path"}},
          {"run.yaml --set checkpoint.output_dir=flipped_adapter.safetensors",
           65,
           {"checkpoint-3/adapter.safetensors: block 0", "expected CRC-32C", "Use --resume never"}},
          {"run.yaml --dryrun", 64, {"--dryrun", "did you mean 'dry-run'", "--help"}},
      });
}

TEST(WrongInputs, OfModels) {
  const auto with = [](const char* model) {
    return std::string("--set checkpoint.output_dir=o --set model.model_name_or_path=") + model;
  };
  static const std::string none = with("none"), bare = with("bare"), empty = with("empty"),
                           family = with("family"), layers = with("layers"),
                           many = with("many_layers"), heads = with("heads"), width = with("width"),
                           vocabulary = with("vocabulary"), config = with("cut_config"),
                           no_tokenizer = with("no_tokenizer"), tokenizer = with("cut_tokenizer"),
                           cut = with("cut"), weights = with("no_weights"), pickle = with("pickle"),
                           length = with("header_length"), integers = with("integers"),
                           dtype = with("dtype"), magic = with("magic.gguf"),
                           count = with("count.gguf");
  expect_wrong(
      "plan run.yaml",
      {
          {none.c_str(), 66, {"none", "no such model", "Give a folder with config.json"}},
          {bare.c_str(), 66, {"bare", "no config.json", "Give a folder"}},
          {empty.c_str(), 64, {"empty", "expected a folder or a .gguf file", "give the folder"}},
          {family.c_str(), 64, {"family/config.json", "'falcon'", "known: llama", "status.md"}},
          {layers.c_str(), 65, {"num_hidden_layers", "expected an integer in [1,", "found -2"}},
          {many.c_str(), 65, {"many_layers", "model.layers.2", "is missing"}},
          {heads.c_str(), 65, {"hidden_size: expected a multiple", "found 64", "as its author"}},
          {width.c_str(), 65, {"hidden_size", "expected an integer, found string \"64\"", "Use"}},
          {vocabulary.c_str(),
           65,
           {"embed_tokens", "expected [300, 64]", "found [260, 64]", "of one model"}},
          {config.c_str(), 65, {"cut_config/config.json: line 1", "expected JSON", "Correct it"}},
          {no_tokenizer.c_str(), 66, {"no_tokenizer/tokenizer.json", "no such file", "Copy"}},
          {tokenizer.c_str(), 65, {"cut_tokenizer/tokenizer.json: line", "expected JSON", "fetch"}},
          {cut.c_str(), 65, {"cut/model.safetensors: byte", "expected the file to end", "found"}},
          {weights.c_str(), 65, {"no_weights/model.safetensors", "expected 8 bytes", "fetch it"}},
          {pickle.c_str(), 64, {"pytorch_model.bin", "found a pickle", "Convert it"}},
          {length.c_str(), 65, {"header length: expected at most", "found", "fetch it again"}},
          {integers.c_str(), 65, {"expected floating-point weights", "found I32", "Fetch"}},
          {dtype.c_str(), 65, {"dtype: expected a known dtype", "found \"F99\"", "Fetch"}},
          {magic.c_str(), 65, {"magic.gguf: byte 0", "expected the magic \"GGUF\"", "fetch"}},
          {count.c_str(), 65, {"count.gguf: byte 8", "tensor count: expected at most", "fetch"}},
      });
}

TEST(WrongInputs, OfData) {
  const auto with = [](const char* file) { return std::string("--set data.train=") + file; };
  static const std::string none = with("none.jsonl"), folder = with("model"), empty = with("empty"),
                           latin = with("latin.jsonl"), keys = with("keys.jsonl"),
                           type = with("type.jsonl"), cut = with("cut.jsonl"),
                           role = with("role.jsonl"), question = with("question.jsonl"),
                           answer = with("no_answer.jsonl"), table = with("table.csv");
  expect_wrong(
      "audit run.yaml",
      {
          {none.c_str(), 66, {"none.jsonl", "No such file", "Check the path"}},
          {folder.c_str(), 66, {"model", "expected a file, found a folder", "Check the path"}},
          {empty.c_str(), 65, {"empty", "expected records, found none", "Fill the file"}},
          {latin.c_str(), 65, {"latin.jsonl:1", "column 17", "UTF-8", "Correct it there"}},
          {keys.c_str(), 65, {"keys.jsonl:1", "expected prompt and completion", "'columns'"}},
          {type.c_str(), 65, {"type.jsonl:2: prompt", "expected a string, found integer", "Write"}},
          {cut.c_str(), 65, {"cut.jsonl:2", "expected JSON", "Correct it there, or fetch"}},
          {role.c_str(), 65, {"role.jsonl:1", "expected system", "found 'robot'", "Rename"}},
          {question.c_str(), 65, {"question.jsonl:1", "of the assistant, found none", "Add"}},
          {answer.c_str(), 65, {"no_answer.jsonl:1", "found an empty string", "fill it in"}},
          {table.c_str(), 64, {"table.csv", "expected a JSON array", "found .csv", "Convert"}},
          {"--set 'data.train=[{path: train.jsonl, format: completion, columns: {prompt: "
           "question}}]'",
           65,
           {"train.jsonl:1", "question", "(keys: prompt, completion)", "'columns'"}},
      });
}

TEST(WrongInputs, OfPlan) {
  expect_wrong(
      "plan",
      {
          {"", 64, {"expected CONFIG.yaml", "found none", "Usage: shardtune plan"}},
          {"none.yaml", 66, {"none.yaml", "No such file", "Check the path"}},
          {"latin.yaml", 64, {"latin.yaml:1", "expected UTF-8 text", "found the byte"}},
          {"run.yaml --ranks 0", 64, {"--ranks", "from 1 to 4096, found '0'", "for example"}},
          {"run.yaml --ranks two", 64, {"--ranks", "an integer", "found 'two'", "for example"}},
          {"run.yaml --ranks 2 --hosts 3", 64, {"--hosts", "from 1 to 2, found '3'", "Write"}},
          {"run.yaml --gpus 2", 64, {"--gpus", "Known: help, ranks", "--help"}},
          {"run.yaml --set training.mico_batch_size=2",
           64,
           {"mico_batch_size", "did you mean 'micro_batch_size'", "Known:"}},
          {"run.yaml --set training.micro_batch_size=1000000000",
           64,
           {"micro_batch_size", "from 1 to 1048576, found 1000000000", "for example"}},
          {"run.yaml --set parallel.zero_optimization.stage=4",
           64,
           {"stage", "an integer from 0 to 3, found 4", "for example"}},
          {"run.yaml --set data.max_length=4096",
           64,
           {"data.max_length", "expected at most 512", "found 4096", "Write"}},
          {"run.yaml --set nonsense",
           64,
           {"--set \"nonsense\"", "expected section.key=value", "Write for example"}},
      });
}

TEST(WrongInputs, OfAudit) {
  expect_wrong(
      "audit",
      {
          {"", 64, {"expected CONFIG.yaml", "found none", "Usage: shardtune audit"}},
          {"train.jsonl",
           64,
           {"train.jsonl:2", "a second document", "begins with a key such as 'model:'"}},
          {"run.yaml --samples -1", 64, {"--samples", "an integer from 0", "found '-1'"}},
          {"run.yaml --samples many", 64, {"--samples", "an integer", "found 'many'"}},
          {"run.yaml --set data.chat_template=gema",
           64,
           {"chat_template", "found \"gema\"", "Did you mean 'gemma'?"}},
          {"run.yaml --set data.chat_template=auto",
           64,
           {"chat_template", "found a model without template", "--chat-template NAME"}},
          {"run.yaml --set data.train_on=answers",
           64,
           {"train_on", "expected one of completion, assistant, all", "found \"answers\""}},
          {"run.yaml --set data.max_length=4",
           65,
           {"train.jsonl:1", "within data.max_length 4, found none", "Raise data.max_length",
            "more records with errors"}},
          {"run.yaml --set data.eval_split=1.5",
           64,
           {"eval_split", "expected a share below 1", "found 1.5", "Write"}},
          {"run.yaml --set data.eval_split=1000",
           64,
           {"eval_split", "expected fewer samples than data.train has (24)", "Lower it"}},
          {"run.yaml --set 'data.train=[{path: train.jsonl, formt: completion}]'",
           64,
           {"formt", "did you mean 'format'", "Known: path"}},
          {"run.yaml extra", 64, {"expected one CONFIG.yaml", "an argument too many", "--help"}},
      });
}

TEST(WrongInputs, OfEval) {
  const std::string base = "eval --chat-template chatml ";
  expect_wrong(
      base.substr(0, base.size() - 1),
      {
          {"--data eval.jsonl", 64, {"expected --model", "found none", "Usage: shardtune eval"}},
          {"--model model", 64, {"expected --data", "found none", "Usage: shardtune eval"}},
          {"--model none --data eval.jsonl", 66, {"none", "no such model", "Give a folder"}},
          {"--model nan --data eval.jsonl",
           76,
           {"model.norm.weight", "expected finite values, found nan", "another copy"}},
          {"--model model --data latin.jsonl", 65, {"latin.jsonl:1", "UTF-8", "Correct it there"}},
          {"--model model --data eval.jsonl --adapter run",
           66,
           {"run: expected an adapter folder", "found a folder without it", "run/adapter?"}},
          {"--model model --data eval.jsonl --adapter empty",
           66,
           {"empty: expected an adapter folder", "found a file", "Give for example"}},
          {"--model model --data eval.jsonl --adapter no_values",
           66,
           {"no_values/adapter_model.safetensors", "No such file", "Check"}},
          {"--model model --data eval.jsonl --adapter cut_adapter",
           65,
           {"cut_adapter/adapter_model.safetensors", "expected the file to end", "truncated"}},
          {"--model model --data eval.jsonl --adapter rank_adapter",
           65,
           {"rank_adapter/adapter_model.safetensors", "expected [8,", "found [4,", "of another"}},
          {"--model model --data eval.jsonl --adapter nan_adapter",
           76,
           {"nan_adapter/adapter_model.safetensors", "expected finite values", "found nan"}},
          {"--model other --data eval.jsonl --adapter run/adapter",
           65,
           {"run/adapter: expected the base", "'model'", "found 'other'", "Give the same base"}},
          {"--model gpt2 --data eval.jsonl --adapter run/adapter",
           65,
           {"run/adapter: expected the base", "found 'gpt2'", "Give the same base"}},
          {"--model model --data eval.jsonl --max-length 100000",
           64,
           {"--max-length", "expected at most 512", "found 100000", "Leave it out"}},
          {"--model model --data eval.jsonl --batch-size 0",
           64,
           {"--batch-size", "from 1 to 1024, found '0'", "Write"}},
          {"--model model --data choices.jsonl --metric choice",
           65,
           {"choices.jsonl:1", "gold", "found 2"}},
      });
}

TEST(WrongInputs, OfTokenize) {
  expect_wrong(
      "tokenize",
      {
          {"--text x", 64, {"expected --model", "found none", "Usage: shardtune tokenize"}},
          {"--model none --text x", 66, {"none", "no such model", "Give a folder"}},
          {"--model empty --text x", 64, {"empty", "expected a model folder", "found another"}},
          {"--model no_tokenizer --text x", 66, {"tokenizer.json", "no such file", "Copy"}},
          {"--model cut_tokenizer --text x",
           65,
           {"tokenizer.json: line", "expected JSON", "fetch"}},
          {"--model wordpiece --text x",
           64,
           {"wordpiece/tokenizer.json", "WordPiece", "status.md"}},
          {"--model version.gguf --text x", 65, {"version.gguf", "expected 2 or 3", "found 9"}},
          {"--model model --file none", 66, {"none", "No such file", "Check the path"}},
          {"--model model --file bare", 66, {"bare", "found a folder", "Give a text file"}},
          {"--model model --text x --file train.jsonl", 64, {"expected one of", "several", "Give"}},
          {"--model model --decode --text hello", 65, {"--text: line 1", "expected JSON", "'h'"}},
          {"--model model --decode --file ids.json",
           65,
           {"ids.json:1: element 1", "expected a token id, found -1", "Write lines like"}},
          {"--model model --decode --text '[99999]'",
           65,
           {"token id", "expected 0 to 258, found 99999", "Use ids of this"}},
          {"--model model --chat nul.json --chat-template chatml",
           65,
           {"nul.json: line 1", "expected JSON, found a NUL byte", "right file"}},
          {"--model model --chat ids.json --chat-template chatml",
           65,
           {"ids.json: messages[0]", "expected a string, found", "Write for example"}},
          {"--model model --text x --chat-template chatml",
           64,
           {"--chat-template", "belongs to --chat", "Leave it out"}},
      });
}

TEST(WrongInputs, OfExport) {
  expect_wrong(
      "export --model",
      {
          {"model --to hf", 64, {"expected --out", "found none", "Usage: shardtune export"}},
          {"model --to onnx --out o", 64, {"--to", "unknown 'onnx'", "Known: hf, peft"}},
          {"model --to peft --out o", 64, {"expected --adapter A", "found none", "Give"}},
          {"model --to hf --out full", 64, {"full", "found files in it", "Choose another"}},
          {"model --to hf --out full --overwrite", 64, {"full", "did not write", "another folder"}},
          {"model --to hf --out empty/o", 73, {"empty", "Not a directory", "choose another"}},
          {"model --to hf --out empty", 64, {"empty", "found a file", "Choose another --out"}},
          {"model --to hf --out o --dtype int4", 64, {"--dtype", "unknown 'int4'", "Known:"}},
          {"model --to hf --out o --max-shard-size 5XB",
           64,
           {"--max-shard-size", "expected a size, found '5XB'", "5GB"}},
          {"other --adapter run/adapter --to hf --out o",
           65,
           {"run/adapter: expected the base", "found 'other'", "Give the same base"}},
          {"model --adapter method_adapter --to hf --out o",
           64,
           {"peft_type: expected one of LORA", "found 'XLORA'", "status.md"}},
          {"no_tokenizer --to gguf --out o",
           64,
           {"no_tokenizer/tokenizer.json", "found none", "use --to hf"}},
          {"nan --to hf --out o",
           76,
           {"model.norm.weight", "expected finite values, found nan", "another copy"}},
          {"cut --to hf --out o", 65, {"cut/model.safetensors", "expected the file", "fetch it"}},
          {"model --adapter run/adapter --combine run/adapter --weight 1 --to peft --out o",
           64,
           {"expected at least two and a weight for each", "found 2 and 1", "Give --weight"}},
          {"model --adapter run/adapter --combine none --to peft --out o",
           66,
           {"none: expected an adapter folder", "found nothing", "Give for example"}},
      });
}

TEST(WrongInputs, OfInspect) {
  expect_wrong(
      "inspect",
      {
          {"", 64, {"expected PATH", "found none", "Usage: shardtune inspect"}},
          {"none", 66, {"none", "no such file or folder", "Give a model"}},
          {"empty", 64, {"empty", "expected .gguf or .safetensors", "found another file"}},
          {"pickle.bin", 64, {"pickle.bin", "expected .gguf", "never opened"}},
          {"bare", 66, {"bare", "expected a folder with config.json", "Give the folder"}},
          {"empty.gguf", 65, {"empty.gguf: byte 0", "expected 4 bytes", "fetch it again"}},
          {"version.gguf", 65, {"version.gguf: byte 4", "expected 2 or 3, found 9", "Convert"}},
          {"cut", 65, {"cut/model.safetensors", "expected the file to end", "fetch it again"}},
          {"cut_config", 65, {"cut_config/config.json: line 1", "expected JSON", "Correct it"}},
          {"list_adapter", 65, {"adapter_config.json", "a JSON object, found array", "Use"}},
          {"flipped_adapter.safetensors/checkpoint-3",
           65,
           {"adapter.safetensors: block 0", "expected CRC-32C", "use an earlier one"}},
          {"incomplete/checkpoint-3", 65, {"optimizer.safetensors", "expected", "found"}},
          {"model model", 64, {"expected one PATH", "an argument too many", "--help"}},
      });
}

TEST(WrongInputs, OfReport) {
  expect_wrong(
      "report",
      {
          {"", 64, {"expected RUN_DIR", "found none", "Usage: shardtune report"}},
          {"run", 64, {"expected --out", "found none", "Usage: shardtune report"}},
          {"none --out page.html", 66, {"none", "found nothing", "metrics.jsonl"}},
          {"empty --out page.html", 66, {"empty", "found a file", "metrics.jsonl"}},
          {"no_records --out page.html", 66, {"metrics.jsonl", "found no such file", "Give"}},
          {"other_records --out page.html", 65, {"metrics.jsonl", "found 2 other lines", "Give"}},
          {"latin_records --out page.html", 65, {"metrics.jsonl", "found 1 other lines", "Give"}},
          {"run --out bare", 73, {"bare", "Is a directory", "choose another output name"}},
          {"run --out none/page.html", 73, {"none/page.html", "No such file", "Make the folder"}},
          {"run --out empty/page.html", 73, {"empty/page.html", "Not a directory", "choose"}},
          {"run --out ''", 64, {"--out", "found an empty text", "Write for example"}},
          {"run --out page.html --format pdf", 64, {"--format", "Known: help, out", "--help"}},
          {"run run --out page.html", 64, {"expected one RUN_DIR", "too many", "--help"}},
      });
}

TEST(WrongInputs, OfGenerate) {
  expect_wrong(
      "generate --model model",
      {
          {"", 64, {"expected one of --prompt", "found neither", "--prompts FILE.jsonl"}},
          {"--prompt x", 64, {"chat_template", "found a model without template", "NAME"}},
          {"--prompt x --chat-template chatlm", 64, {"chatlm", "did you mean 'chatml'", "Known"}},
          {"--prompt x --raw --temperature hot", 64, {"--temperature", "found 'hot'", "example 0"}},
          {"--prompt x --raw --top-p 1.5", 64, {"--top-p", "found '1.5'", "Write for example 1"}},
          {"--prompt x --raw --seed -1", 64, {"--seed", "from 0", "found '-1'"}},
          {"--prompt '' --raw", 65, {"prompt 1", "expected at least one token", "not empty"}},
          {"--prompt \"$(printf 'a\\377')\" --raw", 64, {"--prompt", "UTF-8", "at position 1"}},
          {"--prompts none --raw", 66, {"none", "No such file", "Check the path"}},
          {"--prompts prompts.jsonl --raw", 65, {"prompts.jsonl:2", "expected a string", "Write"}},
          {"--prompt \"$(head -c 3000 /dev/zero | tr '\\0' a)\" --raw",
           65,
           {"prompt 1", "expected at most 512 tokens", "found 3000", "Shorten"}},
          {"--prompt x --raw --adapter none", 66, {"none", "expected an adapter folder", "Give"}},
      });
}

TEST(WrongInputs, OfChat) {
  expect_wrong(
      "chat",
      {
          {"", 64, {"expected --model", "found none", "Usage: shardtune chat"}},
          {"--model none", 66, {"none", "no such model", "Give a folder"}},
          {"--model model", 64, {"chat_template", "found a model without template", "NAME"}},
          {"--model model --chat-template none", 64, {"none", "needs a template", "Name one"}},
          {"--model model --chat-template gema", 64, {"gema", "did you mean 'gemma'", "Known"}},
          {"--model model --chat-template gemma --system x",
           65,
           {"messages[0].role", "found 'system'", "choose a template"}},
          {"--model model --chat-template chatml --system \"$(printf '\\377')\"",
           64,
           {"--system", "expected UTF-8 text", "iconv"}},
          {"--model model --chat-template chatml --max-new-tokens 0",
           64,
           {"--max-new-tokens", "found '0'", "Write"}},
          {"--model nan --chat-template chatml",
           76,
           {"model.norm.weight", "expected finite values, found nan", "another copy"}},
          {"--model model --chat-template chatml --adapter list_adapter",
           65,
           {"list_adapter/adapter_config.json", "expected a JSON object", "found array"}},
          {"--model model --chat-template chatml --prompt x", 64, {"--prompt", "Known:", "--help"}},
      });
}

}  // namespace
}  // namespace shardtune::launch
