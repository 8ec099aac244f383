// The way from a configuration to a merged model, by the program alone, with a tiny model.
#include <gtest/gtest.h>

#include <cmath>
#include <sstream>

#include "io/json.h"
#include "tests/launch/program.h"

namespace shardtune::launch {
namespace {

using testing::Outcome;
using testing::ProgramFolder;
using testing::read_text;

io::Json json_of(const Outcome& outcome) {
  EXPECT_EQ(outcome.code, 0) << outcome.err;
  return io::parse_json(outcome.out, "stdout");
}

double loss_of(const ProgramFolder& folder, const std::string& arguments) {
  const io::Json json =
      json_of(folder.run("eval --data train.jsonl --chat-template chatml --json "
                         "--compute-dtype float32 " +
                         arguments));
  EXPECT_NEAR(json.find("perplexity")->as_number(), std::exp(json.find("loss")->as_number()), 1e-6);
  EXPECT_EQ(json.find("num_samples")->as_integer(), 24);
  return json.find("loss")->as_number();
}

TEST(WholeWay, TrainEvalExportGenerate) {
  const ProgramFolder folder;
  const io::Json trained = json_of(folder.run("train run.yaml --set training.max_steps=20 --json"));
  EXPECT_TRUE(trained.find("finished")->as_bool());
  EXPECT_EQ(trained.find("steps")->as_integer(), 20);

  // The adapter's shardtune.json makes eval use NF4; the merged model holds that base.
  const double base = loss_of(folder, "--model model");
  const double adapted = loss_of(folder, "--model model --adapter run/adapter");
  EXPECT_LT(adapted, base - 0.5);
  const std::string merge = "export --model model --adapter run/adapter --to hf --dtype float32 ";
  json_of(folder.run(merge + "--out merged --json"));
  EXPECT_NEAR(loss_of(folder, "--model merged"), adapted, 1e-4);
  json_of(folder.run(merge + "--out original --merge-base original --json"));
  EXPECT_GT(std::abs(loss_of(folder, "--model original") - adapted), 1e-4);

  const std::string prompt =
      "--prompt 'say 3 red' --chat-template chatml --max-new-tokens 20 "
      "--compute-dtype float32 ";
  const std::string text = folder.run("generate --model merged " + prompt).out;
  EXPECT_EQ(text, folder.run("generate --model model --adapter run/adapter " + prompt).out);
  const io::Json generated = json_of(folder.run("generate --model merged --json " + prompt));
  EXPECT_EQ(generated.find("generations")->as_array()[0].find("text")->as_string() + "\n", text);

  const std::string to_gguf = "export --model model --adapter run/adapter --to gguf";
  json_of(folder.run(to_gguf + " --dtype float32 --out gguf --json"));
  EXPECT_NEAR(loss_of(folder, "--model gguf/model.gguf"), adapted, 1e-4);
  EXPECT_EQ(text, folder.run("generate --model gguf/model.gguf " + prompt).out);
  json_of(folder.run(to_gguf + " --dtype q8_0 --out gguf --overwrite --json"));
  EXPECT_NEAR(loss_of(folder, "--model gguf/model.gguf"), adapted, 0.05);
  EXPECT_EQ(folder.run(to_gguf + "-lora --out lora").code, 0);
  EXPECT_TRUE(std::filesystem::exists(folder.path("lora/adapter.gguf")));

  ASSERT_EQ(folder.run("export --model model --adapter run/adapter --to peft --out copy").code, 0);
  for (const char* name : {"adapter_model.safetensors", "adapter_config.json", "shardtune.json"})
    EXPECT_EQ(read_text(folder.path("copy") / name), read_text(folder.path("run/adapter") / name));
}

TEST(WholeWay, AMergeAwareAdapterLosesNothingInLowBits) {
  const ProgramFolder folder;
  const auto train = [&](const std::string& more) {
    json_of(
        folder.run("train run.yaml --resume never --json --set training.max_steps=20 "
                   "--set adapter.lora_dropout=0 --set model.compute_dtype=float32 " +
                   more));
    return loss_of(folder, "--model model --adapter run/adapter");
  };
  const std::string to_nf4 =
      "export --model model --adapter run/adapter --to hf --dtype nf4 --json ";
  const double plain = train("");
  const io::Json quantised = json_of(folder.run(to_nf4 + "--out quantised"));
  EXPECT_FALSE(quantised.find("codes_as_trained")->as_bool());
  const io::Json& told = *quantised.find("loss");
  EXPECT_EQ(told.find("samples")->as_integer(), 24);
  EXPECT_NEAR(told.find("before")->as_number(), plain, 1e-5);
  EXPECT_NEAR(told.find("after")->as_number(), loss_of(folder, "--model quantised"), 1e-5);
  EXPECT_GT(told.find("lost")->as_number(), 1e-3);

  const double aware = train("--set adapter.merge_aware=true");
  EXPECT_NE(aware, plain);
  const io::Json kept = json_of(folder.run(to_nf4 + "--out kept --data train.jsonl"));
  EXPECT_TRUE(kept.find("codes_as_trained")->as_bool());
  EXPECT_NEAR(kept.find("loss")->find("lost")->as_number(), 0.0, 1e-5);
  EXPECT_NEAR(loss_of(folder, "--model kept"), aware, 1e-5);
  std::filesystem::remove(folder.path("run/resolved_config.yaml"));
  const Outcome unmeasured = folder.run(to_nf4 + "--out unmeasured");
  EXPECT_EQ(unmeasured.code, 0);
  EXPECT_NE(unmeasured.err.find("was not measured"), std::string::npos) << unmeasured.err;

  const auto refusal = [&](const std::string& command) { return folder.run(command).err; };
  EXPECT_NE(refusal(to_nf4 + "--out other --quantization int8").find("expected nf4, in which"),
            std::string::npos);
  EXPECT_NE(refusal("export --model model --adapter run/adapter --to gguf-lora --out lora")
                .find("merge-aware"),
            std::string::npos);
  EXPECT_NE(refusal("export --model model --to hf --out other --data train.jsonl")
                .find("--data: belongs to"),
            std::string::npos);
}

// eval computes as the adapter was trained, with its scales, unless asked otherwise.
TEST(WholeWay, AnAdapterTrainedInInt8IsEvaluatedInInt8) {
  const ProgramFolder folder;
  ASSERT_EQ(folder
                .run("train run.yaml --set training.max_steps=4 --set model.compute_dtype=int8 "
                     "--set 'data.eval=[{path: train.jsonl}]' --json")
                .code,
            0);
  const std::string eval =
      "eval --data train.jsonl --chat-template chatml --json --max-length 256 --model model ";
  const auto loss = [&](const std::string& arguments) {
    return json_of(folder.run(eval + arguments)).find("loss")->as_number();
  };
  const double as_trained = loss("--adapter run/adapter");
  EXPECT_EQ(as_trained, loss("--adapter run/adapter --compute-dtype int8"));
  EXPECT_NE(as_trained, loss("--adapter run/adapter --compute-dtype auto"));
  std::string last;
  std::istringstream lines(read_text(folder.path("run/metrics.jsonl")));
  for (std::string line; std::getline(lines, line);)
    last = line;
  EXPECT_NEAR(io::parse_json(last, "metrics").find("eval_loss")->as_number(), as_trained, 1e-6);

  const Outcome alone = folder.run(eval + "--compute-dtype int8");
  EXPECT_EQ(alone.code, 64);
  EXPECT_NE(alone.err.find("int8 needs the scales of an adapter"), std::string::npos) << alone.err;
  EXPECT_EQ(folder.run("export --model model --adapter run/adapter --to hf --out merged").code, 0);
  const Outcome exported = folder.run(
      "export --model model --adapter run/adapter --to hf --out other --compute-dtype int8");
  EXPECT_EQ(exported.code, 64);
  EXPECT_NE(exported.err.find("an export writes weights"), std::string::npos) << exported.err;
}

TEST(WholeWay, ExactMatchCountsAnswers) {
  const ProgramFolder folder;
  ASSERT_EQ(folder
                .run("train run.yaml --set training.max_steps=150 --set training.learning_rate=2e-2"
                     " --set training.global_batch_size=4 --set adapter.lora_rank=16"
                     " --set data.max_length=256")
                .code,
            0);
  const std::string eval =
      "eval --model model --data train.jsonl --chat-template chatml "
      "--metric exact_match --max-new-tokens 24 --json ";
  const io::Json before = json_of(folder.run(eval));
  const io::Json after = json_of(folder.run(eval + "--adapter run/adapter"));
  EXPECT_EQ(before.find("exact_match")->as_number(), 0.0);
  EXPECT_GT(after.find("exact_match")->as_number(), 0.5);
  const io::Json some = json_of(folder.run(eval + "--adapter run/adapter --max-samples 5"));
  EXPECT_EQ(some.find("num_samples")->as_integer(), 5);
}

TEST(WholeWay, ExportReplacesOnlyWhenAsked) {
  const ProgramFolder folder;
  const std::string run = "export --model model --to hf --out merged ";
  ASSERT_EQ(folder.run(run).code, 0);
  const std::string first = read_text(folder.path("merged/model.safetensors"));
  EXPECT_EQ(folder.run(run + "--dtype float32").code, 64);
  EXPECT_EQ(read_text(folder.path("merged/model.safetensors")), first);
  EXPECT_EQ(folder.run(run + "--dtype float32 --overwrite").code, 0);
  EXPECT_NE(read_text(folder.path("merged/model.safetensors")), first);
}

TEST(WholeWay, InspectTellsEveryKind) {
  const ProgramFolder folder;
  ASSERT_EQ(folder.run("train run.yaml --set checkpoint.save_steps=2").code, 0);
  const auto kind_of = [&](const std::string& path) {
    return json_of(folder.run("inspect --json " + path)).find("kind")->as_string();
  };
  EXPECT_EQ(kind_of("model"), "model");
  EXPECT_EQ(kind_of("model/model.safetensors"), "safetensors");
  EXPECT_EQ(kind_of("run/adapter"), "adapter");
  EXPECT_EQ(kind_of("run/checkpoint-2"), "checkpoint");
  EXPECT_EQ(kind_of("run"), "run");
  EXPECT_NE(folder.run("inspect model").out.find("model.layers.1.mlp.up_proj.weight"),
            std::string::npos);
  std::string bytes = read_text(folder.path("run/checkpoint-2/adapter.safetensors"));
  bytes[bytes.size() / 2] = static_cast<char>(bytes[bytes.size() / 2] ^ 4);
  testing::write_text(folder.path("run/checkpoint-2/adapter.safetensors"), bytes);
  EXPECT_EQ(folder.run("inspect run/checkpoint-2").code, 65);
}

}  // namespace
}  // namespace shardtune::launch
