#!/usr/bin/env python3
"""shardtune beside tokenizers, transformers and PEFT, live: ids, losses, adapters, merged models.

    SHARDTUNE_BINARY=build/release/launch/shardtune PYTHON tests/parity/parity_test.py [-k NAME]

SHARDTUNE_MODEL names the GGUF file of SmolLM2 (default: where set-up put it). Tolerances: 0.5% of
the loss where bf16 or 4-bit rounding is involved (the bound of docs/benchmarks.md); 2e-5 where both
sides compute in fp32 (a mean of some hundred terms of up to 6, each with sums of 64 products).
"""
import functools
import json
import os
import pathlib
import subprocess
import tempfile
import unittest

import peers
import peft
import tokenizers
import torch
import transformers

ROOT = pathlib.Path(__file__).resolve().parents[2]
BINARY = os.environ.get("SHARDTUNE_BINARY", str(ROOT / "build/release/launch/shardtune"))
CORPORA = ROOT.parent / "shared" / "corpora"
SMOLLM2_SYSTEM = ("<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by "
                  "Hugging Face<|im_end|>\n")
ROUNDED = 5e-3
FP32 = 2e-5
NEAR = {"rounded": 0.1, "fp32": 1e-3}  # of log probabilities: as likely for two that round otherwise
NEW_TOKENS = 24
GOLDEN = {  # FORMATS section 6.6
    "The capital of France is Paris.": ([504, 3575, 282, 4649, 314, 7042, 30], 2.567449),
    "In 2024, the model had 135M parameters.\n\n  def f(x):\n    return x  # 42": (
        [788, 216, 34, 32, 34, 36, 28, 260, 1743, 761, 216, 33, 35, 37, 61, 6116, 30, 8866, 753,
         275, 24, 104, 727, 472, 1003, 1792, 216, 907, 216, 36, 34], 3.251294),
}


def shardtune(*arguments):
    """Standard output of the program; its messages are in the failure."""
    result = subprocess.run([BINARY, *map(str, arguments)], capture_output=True, text=True)
    if result.returncode != 0:
        raise AssertionError(f"{arguments[0]} left {result.returncode}:\n{result.stderr[-3000:]}")
    return result.stdout


def our_ids(model, texts, scratch, *options):
    """Ids of texts without line breaks, one call for all."""
    path = pathlib.Path(scratch) / "lines.txt"
    path.write_text("".join(text + "\n" for text in texts), encoding="utf-8", newline="")
    lines = shardtune("tokenize", "--model", model, "--file", path, *options).splitlines()
    return [json.loads(line) for line in lines]


def our_loss(model, rows, scratch, *options):
    path = pathlib.Path(scratch) / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return json.loads(shardtune("eval", "--model", model, "--data", path, "--metric", "loss",
                                "--json", *options))


def their_loss(model, sequences):
    """Mean over the trained tokens of (ids, trained) pairs."""
    sums = [peers.negative_log_likelihood(model, ids, trained) for ids, trained in sequences]
    return sum(s for s, _ in sums) / sum(n for _, n in sums), sum(n for _, n in sums)


def real_texts(count):
    """Paragraphs of real text, without line breaks."""
    path = CORPORA / "wiki_demo.txt"
    if not path.exists():
        raise unittest.SkipTest(f"{path} is absent")
    lines = [line.strip() for line in path.read_text().splitlines()]
    return [line[:1200] for line in lines if len(line) > 300][:count]


def sample_rows(count):
    lines = (ROOT / "data/samples/eval.jsonl").read_text().splitlines()[:count]
    return [json.loads(line) for line in lines]


class ParityCase(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.scratch = pathlib.Path(folder.name)

    def assert_close(self, ours, theirs, relative):
        self.assertLessEqual(abs(ours - theirs), relative * abs(theirs),
                             f"ours {ours}, theirs {theirs}, allowed {relative:g} of it")

    def assert_same_answers(self, model, tokenizer, sequences, near, *options):
        """Greedy answers of the program and of `model`. A difference counts only where `model` finds
        no two tokens of its answer as likely as `near`; most answers must not differ at all."""
        rows = self.scratch / "prompts.jsonl"
        rows.write_text("".join(json.dumps({"prompt": row["prompt"]}) + "\n"
                                for row in sample_rows(len(sequences))))
        ours = json.loads(shardtune("generate", "--prompts", rows, "--json", "--max-new-tokens",
                                    NEW_TOKENS, *options))["generations"]
        equal = 0
        for answer, (ids, trained) in zip(ours, sequences, strict=True):
            prompt = torch.tensor([ids[:trained.index(True)]])
            with torch.no_grad():
                found = model.generate(
                    input_ids=prompt, attention_mask=torch.ones_like(prompt), do_sample=False,
                    max_new_tokens=NEW_TOKENS, eos_token_id=tokenizer.token_to_id("<|im_end|>"),
                    pad_token_id=0, return_dict_in_generate=True, output_logits=True)
            theirs = tokenizer.decode(found.sequences[0, prompt.shape[1]:].tolist())
            if answer["text"] == theirs:
                equal += 1
                continue
            best = [step[0].float().log_softmax(-1).topk(2).values for step in found.logits]
            gap = min((first - second).item() for first, second in best)
            self.assertLess(gap, near, f"parts:\n{answer['text']!r}\n{theirs!r}")
        self.assertGreaterEqual(equal, 0.7 * len(ours), f"only {equal} of {len(ours)} are equal")

    def train(self, config):
        path = self.scratch / "run.yaml"
        path.write_text(json.dumps(config))  # JSON is YAML
        shardtune("train", path)
        return pathlib.Path(config["checkpoint"]["output_dir"]) / "adapter"


@functools.cache
def smollm2():
    path = peers.model_path()
    if path is None:
        raise unittest.SkipTest("SmolLM2-135M-Instruct.Q4_1.gguf is absent; set SHARDTUNE_MODEL")
    return path


@functools.cache
def smollm2_tokenizer():
    return peers.load_tokenizer(smollm2())


class SmolLM2(ParityCase):
    def sequences(self, rows):
        """Ids and trained mask of completion rows under the smollm2 template."""
        result = []
        for row in rows:
            prompt = smollm2_tokenizer().encode(
                f"{SMOLLM2_SYSTEM}<|im_start|>user\n{row['prompt']}<|im_end|>\n"
                "<|im_start|>assistant\n").ids
            answer = smollm2_tokenizer().encode(row["completion"] + "<|im_end|>").ids
            result.append((prompt + answer, [False] * len(prompt) + [True] * len(answer)))
        return result

    def test_ids_of_real_text(self):
        texts = real_texts(400)
        theirs = [encoding.ids for encoding in smollm2_tokenizer().encode_batch(texts)]
        self.assertEqual(our_ids(smollm2(), texts, self.scratch), theirs)

    def test_golden_ids_and_losses(self):
        for text, (ids, loss) in GOLDEN.items():
            found = json.loads(shardtune("tokenize", "--model", smollm2(), "--text", text))
            self.assertEqual(found, ids)
            result = our_loss(smollm2(), [{"text": text}], self.scratch, "--format", "text",
                              "--compute-dtype", "float32")
            if result["num_tokens"] == len(ids) - 1:
                self.assert_close(result["loss"], loss, FP32)
            else:  # the text closes with the end token
                ids = ids + [smollm2_tokenizer().token_to_id("<|im_end|>")]
                theirs, count = their_loss(peers.load_model(smollm2()), [(ids, None)])
                self.assertEqual(result["num_tokens"], count)
                self.assert_close(result["loss"], theirs, FP32)

    def test_golden_answer(self):
        answer = shardtune("generate", "--model", smollm2(), "--prompt",
                           "What is the capital of France?", "--max-new-tokens", "16")
        self.assertEqual(answer.strip(), "The capital of France is Paris.")

    def test_loss_of_real_text(self):
        texts = real_texts(8)
        ids = our_ids(smollm2(), texts, self.scratch)
        ours = our_loss(smollm2(), [{"text": t} for t in texts], self.scratch, "--format", "text")
        extra = ours["num_tokens"] - sum(len(i) - 1 for i in ids)
        self.assertIn(extra, (0, len(texts)))
        if extra:  # every text closes with the end token
            ids = [i + [smollm2_tokenizer().token_to_id("<|im_end|>")] for i in ids]
        theirs, count = their_loss(peers.load_model(smollm2()), [(i, None) for i in ids])
        self.assertEqual(ours["num_tokens"], count)
        self.assert_close(ours["loss"], theirs, ROUNDED)

    def test_loss_of_completions(self):
        rows = sample_rows(12)
        ours = our_loss(smollm2(), rows, self.scratch)
        theirs, count = their_loss(peers.load_model(smollm2()), self.sequences(rows))
        self.assertEqual(ours["num_tokens"], count)
        self.assert_close(ours["loss"], theirs, ROUNDED)

    def test_adapter_and_merged_model_after_training(self):
        """Three QLoRA steps; then PEFT on the bitsandbytes NF4 base, and the merged model."""
        run = self.scratch / "run"
        shardtune("train", ROOT / "configs/quickstart.yaml",
                  "--set", f"model.model_name_or_path={smollm2()}",
                  "--set", f"data.train=[{{path: {ROOT}/data/samples/train.jsonl}}]",
                  "--set", f"checkpoint.output_dir={run}", "--set", "training.stop_at_step=3",
                  "--set", "training.max_steps=3")
        rows = sample_rows(12)
        ours = our_loss(smollm2(), rows, self.scratch, "--adapter", run / "adapter")

        base = peers.load_model(smollm2())
        peers.quantize_like_bitsandbytes(base)
        model = peft.PeftModel.from_pretrained(base, run / "adapter").eval()
        theirs, count = their_loss(model, self.sequences(rows))
        self.assertEqual(ours["num_tokens"], count)
        self.assert_close(ours["loss"], theirs, ROUNDED)
        self.assert_same_answers(model, smollm2_tokenizer(), self.sequences(rows[:8]),
                                 NEAR["rounded"], "--model", smollm2(), "--adapter",
                                 run / "adapter", "--compute-dtype", "float32")
        plain, _ = their_loss(peers.load_model(smollm2()), self.sequences(rows))
        self.assertGreater(abs(plain - theirs), 5 * ROUNDED * theirs, "the adapter does too little")

        merged = self.scratch / "merged"
        shardtune("export", "--model", smollm2(), "--adapter", run / "adapter", "--to", "hf",
                  "--out", merged)
        model = transformers.AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32)
        loss, _ = their_loss(model.eval(), self.sequences(rows))
        self.assert_close(ours["loss"], loss, ROUNDED)
        self.assert_same_answers(model, smollm2_tokenizer(), self.sequences(rows[:8]),
                                 NEAR["fp32"], "--model", merged, "--compute-dtype", "float32")
        self.check_exported_tokenizer(merged)

    def check_exported_tokenizer(self, merged):
        texts = real_texts(100) + ["  1 22\t333", "a\u0301 caf\u00e9 \U0001f600", " <|im_end|>x"]
        theirs = transformers.AutoTokenizer.from_pretrained(merged)
        self.assertEqual(our_ids(smollm2(), texts, self.scratch),
                         [theirs(text)["input_ids"] for text in texts])
        self.assertEqual(our_ids(merged, texts, self.scratch),
                         our_ids(smollm2(), texts, self.scratch))
        chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes."}]
        rendered = theirs.apply_chat_template(chat, tokenize=False)
        self.assertEqual(rendered, SMOLLM2_SYSTEM + "<|im_start|>user\nHi<|im_end|>\n"
                                   "<|im_start|>assistant\nYes.<|im_end|>\n")


def make_tiny_model(folder, tied=False):
    """A random llama with a byte-level tokenizer and the chatml template."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    vocab = {token: i for i, token in enumerate(specials + alphabet)}
    merges = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("i", "n"), ("e", "r")]
    for left, right in merges:
        vocab[left + right] = len(vocab)
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.add_special_tokens(specials)
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    fast.chat_template = (
        "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + "
        "message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")
    fast.save_pretrained(folder)
    torch.manual_seed(3)
    config = transformers.LlamaConfig(
        hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=len(vocab), max_position_embeddings=512,
        rms_norm_eps=1e-5, tie_word_embeddings=tied, bos_token_id=0, eos_token_id=2,
        initializer_range=0.1)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return tokenizer


def make_tiny_gpt2(folder):
    """The same with a random gpt2."""
    tokenizer = make_tiny_model(folder)
    torch.manual_seed(4)
    config = transformers.GPT2Config(
        n_embd=64, n_layer=3, n_head=4, n_positions=512, vocab_size=tokenizer.get_vocab_size(),
        bos_token_id=0, eos_token_id=2, initializer_range=0.1)
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    return tokenizer


class TinyModel(ParityCase):
    """Everything in fp32, so that the sides agree to fp32's own rounding."""

    def config(self, folder, adapter):
        return {
            "model": {"model_name_or_path": str(folder), "compute_dtype": "float32"},
            "quantization": {"method": "none"},
            "adapter": adapter,
            "data": {"train": [{"path": str(ROOT / "data/samples/train.jsonl"),
                                "format": "completion"}],
                     "chat_template": "chatml", "max_length": 500},  # room for virtual tokens
            "training": {"max_steps": 6, "micro_batch_size": 1, "global_batch_size": 2,
                         "learning_rate": 0.02},
            "checkpoint": {"output_dir": str(self.scratch / "run")},
        }

    def sequences(self, tokenizer, rows):
        result = []
        for row in rows:
            prompt = tokenizer.encode(f"<|im_start|>user\n{row['prompt']}<|im_end|>\n"
                                      "<|im_start|>assistant\n").ids
            answer = tokenizer.encode(row["completion"] + "<|im_end|>").ids
            result.append((prompt + answer, [False] * len(prompt) + [True] * len(answer)))
        return result

    def check(self, adapter_keys, merges=True, tied=False):
        folder = self.scratch / "model"
        tokenizer = make_tiny_model(folder, tied)
        rows = sample_rows(10)
        sequences = self.sequences(tokenizer, rows)
        base = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        before, _ = their_loss(base.eval(), sequences)
        adapter = self.train(self.config(folder, adapter_keys))

        ours = our_loss(folder, rows, self.scratch, "--adapter", adapter, "--compute-dtype",
                        "float32")
        model = peft.PeftModel.from_pretrained(base, adapter)
        theirs, count = their_loss(model.eval(), sequences)
        self.assertEqual(ours["num_tokens"], count)
        self.assertGreater(abs(theirs - before), 10 * FP32 * before, "the adapter does too little")
        self.assert_close(ours["loss"], theirs, FP32)
        self.assert_same_answers(model, tokenizer, sequences[:4], NEAR["fp32"], "--model", folder,
                                 "--adapter", adapter, "--compute-dtype", "float32")
        self.check_peft_export(folder, adapter, model, sequences)
        if merges:
            self.check_merged(folder, adapter, model, sequences, tokenizer)
            self.check_tokenizer(folder, [row["prompt"] for row in rows])

    def check_peft_export(self, folder, adapter, model, sequences):
        """The folder that export writes is the adapter that training saved, for PEFT too."""
        exported = self.scratch / "peft"
        shardtune("export", "--model", folder, "--adapter", adapter, "--to", "peft", "--out",
                  exported)
        base = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        loaded = peft.PeftModel.from_pretrained(base, exported).eval()
        with torch.no_grad():
            for ids, _ in sequences[:3]:
                ids = torch.tensor([ids])
                self.assertTrue(torch.equal(loaded(ids).logits, model(ids).logits))

    def check_merged(self, folder, adapter, model, sequences, tokenizer):
        merged = self.scratch / "merged"
        shardtune("export", "--model", folder, "--adapter", adapter, "--to", "hf", "--out", merged,
                  "--dtype", "float32")
        loaded = transformers.AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32)
        with torch.no_grad():
            for ids, _ in sequences[:3]:
                ids = torch.tensor([ids])
                expected = model(ids).logits
                difference = (loaded.eval()(ids).logits - expected).abs().max()
                # W + s B A rounded once to fp32 against two separate sums.
                self.assertLessEqual(difference.item(), FP32 * expected.abs().max().item())
        self.assert_same_answers(loaded, tokenizer, sequences[:4], NEAR["fp32"], "--model", merged,
                                 "--compute-dtype", "float32")

    def check_tokenizer(self, folder, texts):
        automatic = transformers.AutoTokenizer.from_pretrained(self.scratch / "merged")
        self.assertEqual([automatic(text)["input_ids"] for text in texts],
                         our_ids(folder, texts, self.scratch))

    def test_every_method(self):
        some = {"target_modules": ["q_proj", "v_proj", "down_proj"]}
        for adapter in (
            {"method": "lora", "lora_rank": 4, "use_dora": True, "rank_pattern": {"q_proj": 3}},
            {"method": "lora", "lora_rank": 4, "lora_alpha": 4, "init_lora_weights": "pissa"},
            {"method": "lora", "lora_rank": 4, "lora_alpha": 4, "init_lora_weights": "olora"},
            {"method": "lora", "lora_rank": 2, "lora_alpha": 16, "init_lora_weights": "eva"},
            {"method": "adalora", "init_r": 6, "target_r": 2, "tinit": 1, "tfinal": 2,
             "lora_alpha": 300, **some},
            {"method": "ia3"},
            {"method": "vera", "r": 16, **some},
            {"method": "loha", "r": 4, **some},
            {"method": "lokr", "r": 4, **some},
            {"method": "loha", "r": 4, "rank_dropout": 0.2, "module_dropout": 0.2, **some},
            {"method": "oft", "oft_block_size": 8, **some},
            {"method": "oft", "oft_block_size": 8, "coft": True, "eps": 0.5, "module_dropout": 0.3,
             **some},
            {"method": "boft", **some},
        ):
            with self.subTest(**adapter), tempfile.TemporaryDirectory() as scratch:
                self.scratch = pathlib.Path(scratch)
                self.check(adapter)

    def test_lora_on_embedding_and_head(self):
        for tied in (False, True):
            for targets in (["q_proj", "embed_tokens", "lm_head"], ["embed_tokens"], ["lm_head"]):
                with (self.subTest(tied=tied, targets=targets),
                      tempfile.TemporaryDirectory() as scratch):
                    self.scratch = pathlib.Path(scratch)
                    self.check({"lora_rank": 4, "target_modules": targets}, tied=tied)

    def test_trained_parts_of_the_base(self):
        for adapter in (
            {"method": "lora", "lora_rank": 4, "target_modules": ["q_proj", "v_proj"],
             "modules_to_save": ["embed_tokens", "lm_head", "norm"]},
            {"method": "lora", "lora_rank": 4, "target_modules": ["q_proj"],
             "modules_to_save": ["layers.1.mlp"]},
            {"method": "freeze", "freeze_trainable_layers": 1,
             "freeze_extra_modules": ["model.norm"]},
            {"method": "full"},
        ):
            with self.subTest(**adapter), tempfile.TemporaryDirectory() as scratch:
                self.scratch = pathlib.Path(scratch)
                self.check(adapter)

    def test_every_method_with_virtual_tokens(self):
        tokens = {"num_virtual_tokens": 6}
        for adapter in (
            {"method": "prefix_tuning", **tokens},
            {"method": "prefix_tuning", "prefix_projection": True, **tokens},
            {"method": "prompt_tuning", "prompt_tuning_init": "TEXT",
             "prompt_tuning_init_text": "Answer in JSON", **tokens},
            {"method": "p_tuning", **tokens},
            {"method": "p_tuning", "encoder_reparameterization_type": "LSTM", **tokens},
        ):
            with self.subTest(**adapter), tempfile.TemporaryDirectory() as scratch:
                self.scratch = pathlib.Path(scratch)
                self.check(adapter, merges=False)

    def test_lora_all_linear(self):
        self.check({"lora_rank": 8, "lora_alpha": 16, "target_modules": "all-linear"})

    def test_rslora_on_two_modules(self):
        self.check({"lora_rank": 4, "lora_alpha": 8, "use_rslora": True,
                    "target_modules": ["q_proj", "v_proj"]})


class TensorBoard(unittest.TestCase):
    """The event files of a run and its resume, read by tensorboard itself."""

    def test_scalars_equal_the_metrics(self):
        try:
            from tensorboard.backend.event_processing import event_accumulator
        except ImportError:
            self.skipTest("no tensorboard: run tests/parity/setup.sh")
        with tempfile.TemporaryDirectory() as scratch:
            folder = pathlib.Path(scratch)
            (folder / "run.yaml").write_text(
                f"model: {{model_name_or_path: {smollm2()}}}\n"
                "adapter: {lora_rank: 2, lora_alpha: 4}\n"
                f"data: {{train: [{{path: {ROOT}/data/samples/train.jsonl}}], eval_split: 4, "
                "max_length: 128}\n"
                "training: {max_steps: 4, micro_batch_size: 1, global_batch_size: 2}\n"
                f"checkpoint: {{output_dir: {folder}/run, save_steps: 1}}\n"
                "eval: {eval_steps: 2}\nlogging: {tensorboard: true}\n")
            shardtune("train", folder / "run.yaml", "--set", "training.stop_at_step=3")
            # As after a crash: step 3 is run again from the checkpoint of step 2.
            shardtune("train", folder / "run.yaml", "--resume", folder / "run" / "checkpoint-2")
            events = event_accumulator.EventAccumulator(str(folder / "run" / "tensorboard"))
            events.Reload()
            rows = [json.loads(line)
                    for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
            for tag, key in (("train/loss", "loss"), ("train/grad_norm", "grad_norm"),
                             ("train/learning_rate", "learning_rate"), ("eval/loss", "eval_loss")):
                expected = [(row["step"], row[key]) for row in rows if key in row]
                found = [(event.step, event.value) for event in events.Scalars(tag)]
                self.assertEqual([step for step, _ in found], [step for step, _ in expected], tag)
                for (_, value), (_, reference) in zip(found, expected):
                    self.assertAlmostEqual(value, reference, delta=1e-6 * abs(reference))


if __name__ == "__main__":
    unittest.main(verbosity=2)
