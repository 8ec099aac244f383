#!/usr/bin/env python3
"""What shardtune exports, loaded by llama.cpp, live: greedy tokens, ids, templates.

    SHARDTUNE_BINARY=build/release/launch/shardtune PYTHON tests/parity/exports_test.py [-k NAME]

A file's values are those that the gguf package decodes, and llama.cpp on them in F32, where both
programs compute in fp32, gives our greedy tokens. On the file itself llama.cpp rounds what goes into
each product as well (to 11 bits beside F16, to 8 beside Q8_0): where its answer is another there, it
is another than its own on the same values. MOST of them must be the same: a file that llama.cpp reads
otherwise than we do gives none.
"""
import json
import unittest

import gguf
import numpy
import torch
import transformers

import llama_cpp
from parity_test import (ParityCase, ROOT, SMOLLM2_SYSTEM, make_tiny_model, our_ids, sample_rows,
                         shardtune, smollm2, smollm2_tokenizer)

MOST = 0.7
COUNT = 24


class ExportCase(ParityCase):
    def our_answers(self, prompts, *options):
        """Greedy texts by the program."""
        path = self.scratch / "prompts.jsonl"
        path.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
        answers = json.loads(shardtune(
            "generate", "--prompts", path, "--json", "--max-new-tokens", COUNT,
            "--compute-dtype", "float32", *options))
        return [answer["text"] for answer in answers["generations"]]

    def assert_same_answers(self, ours, llama, prompts):
        """`prompts`: ids of each."""
        self.assertEqual(ours, [llama.greedy(ids, COUNT) for ids in prompts])

    def assert_most_answers(self, ours, llama, prompts):
        equal = sum(text == llama.greedy(ids, COUNT)
                    for text, ids in zip(ours, prompts, strict=True))
        self.assertGreaterEqual(equal, MOST * len(ours), f"only {equal} of {len(ours)} are equal")

    def assert_same_values(self, ours, file, prompts, context=512):
        """`ours`: answers on `file`, whose values llama.cpp gets in F32."""
        values = file.parent / "values"
        shardtune("export", "--model", file, "--to", "gguf", "--dtype", "float32", "--out", values)
        decoded = {tensor.name: tensor for tensor in
                   gguf.GGUFReader(values / "model.gguf").tensors}
        for tensor in gguf.GGUFReader(file).tensors:
            expected = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            numpy.testing.assert_array_equal(decoded[tensor.name].data, expected, tensor.name)
        with llama_cpp.LlamaCpp(values / "model.gguf", context=context) as llama:
            self.assert_same_answers(ours, llama, prompts)

    def export(self, model, adapter, form, name, *options):
        shardtune("export", "--model", model, "--adapter", adapter, "--to", form, "--out",
                  self.scratch / name, *options)
        return self.scratch / name


class SmolLM2(ExportCase):
    def setUp(self):
        super().setUp()
        self.prompts = [row["prompt"] for row in sample_rows(8)]
        self.texts = [f"{SMOLLM2_SYSTEM}<|im_start|>user\n{prompt}<|im_end|>\n"
                      "<|im_start|>assistant\n" for prompt in self.prompts]
        self.ids = [smollm2_tokenizer().encode(text).ids for text in self.texts]

    def trained(self, *options):
        run = self.scratch / "run"
        shardtune("train", ROOT / "configs/quickstart.yaml",
                  "--set", f"model.model_name_or_path={smollm2()}",
                  "--set", f"data.train=[{{path: {ROOT}/data/samples/train.jsonl}}]",
                  "--set", f"checkpoint.output_dir={run}", "--set", "training.stop_at_step=6",
                  "--set", "training.max_steps=6", *options)
        return run / "adapter"

    def test_merged_file_in_llama_cpp(self):
        adapter = self.trained()
        for dtype in ("float32", "float16", "q8_0"):
            folder = self.export(smollm2(), adapter, "gguf", dtype, "--dtype", dtype)
            file = folder / "model.gguf"
            ours = self.our_answers(self.prompts, "--model", file)
            with llama_cpp.LlamaCpp(file) as llama:
                rendered = [llama.render([{"role": "user", "content": prompt}])
                            for prompt in self.prompts]
                self.assertEqual(rendered, self.texts)
                self.assertEqual([llama.ids(text) for text in rendered], self.ids)
                if dtype == "float32":  # the merge rounds nothing away
                    self.assertEqual(ours, self.our_answers(
                        self.prompts, "--model", smollm2(), "--adapter", adapter))
                    self.assert_same_answers(ours, llama, self.ids)
                    continue
                self.assert_most_answers(ours, llama, self.ids)
            self.assert_same_values(ours, file, self.ids)

    def test_adapter_file_beside_the_base_in_llama_cpp(self):
        """The base trained on is the file's own blocks. llama.cpp gets their values in F32: beside
        Q4_1 it would round what goes into each product to 8 bits."""
        adapter = self.trained("--set", "quantization={method: keep}")
        folder = self.export(smollm2(), adapter, "gguf-lora", "lora")
        shardtune("export", "--model", smollm2(), "--to", "gguf", "--dtype", "float32", "--out",
                  self.scratch / "base")
        ours = self.our_answers(self.prompts, "--model", smollm2(), "--adapter", adapter)
        with llama_cpp.LlamaCpp(self.scratch / "base/model.gguf",
                                lora=folder / "adapter.gguf") as llama:
            self.assert_same_answers(ours, llama, self.ids)
        plain = self.our_answers(self.prompts, "--model", smollm2())
        self.assertNotEqual(plain, ours, "the adapter does too little")


FAMILIES = {
    "llama": {"class": transformers.LlamaForCausalLM, "config": transformers.LlamaConfig},
    "llama3_rope": {
        "class": transformers.LlamaForCausalLM, "config": transformers.LlamaConfig,
        "more": {"max_position_embeddings": 1024, "attention_bias": True, "rope_parameters": {
            "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 64}}},
    "linear_rope": {
        "class": transformers.LlamaForCausalLM, "config": transformers.LlamaConfig,
        "more": {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0,
                                     "factor": 4.0}}},
    "mistral": {"class": transformers.MistralForCausalLM, "config": transformers.MistralConfig,
                "more": {"sliding_window": 384, "head_dim": 32}},
    "qwen2": {"class": transformers.Qwen2ForCausalLM, "config": transformers.Qwen2Config},
    "gpt2": {"class": transformers.GPT2LMHeadModel, "config": transformers.GPT2Config,
             "more": {"n_embd": 64, "n_inner": 96, "n_layer": 3, "n_head": 4, "n_positions": 512,
                      "layer_norm_epsilon": 1e-5, "tie_word_embeddings": True}},
}


class Families(ExportCase):
    """A random model of each, trained for a few steps in fp32."""

    def test_every_family(self):
        for name in FAMILIES:
            with self.subTest(name):
                self.check(name)

    def make_model(self, name):
        folder = self.scratch / name
        tokenizer = make_tiny_model(folder)  # its weights and config.json are replaced
        torch.manual_seed(5)
        config = FAMILIES[name]["config"](**{
            "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
            "num_attention_heads": 4, "num_key_value_heads": 2,
            "vocab_size": tokenizer.get_vocab_size(), "max_position_embeddings": 512,
            "rms_norm_eps": 1e-5, "tie_word_embeddings": name == "qwen2", "bos_token_id": 0,
            "eos_token_id": 2, "initializer_range": 0.1, **FAMILIES[name].get("more", {})})
        model = FAMILIES[name]["class"](config)
        for key, value in model.named_parameters():
            if key.endswith("bias"):  # not zero
                torch.nn.init.normal_(value, std=0.1)
        model.save_pretrained(folder)
        return folder

    def check(self, name):
        folder = self.make_model(name)
        run = self.scratch / f"{name}.run"
        adapter = self.train({
            "model": {"model_name_or_path": str(folder), "compute_dtype": "float32"},
            "quantization": {"method": "none"},
            "adapter": {"lora_rank": 8, "lora_alpha": 16, "use_rslora": True,
                        "rank_pattern": {"k_proj": 4, "c_attn": 4},
                        "alpha_pattern": {"up_proj": 8, "c_fc": 8}},
            "data": {"train": [{"path": str(ROOT / "data/samples/train.jsonl"),
                                "format": "completion"}],
                     "chat_template": "chatml", "max_length": 384},
            "training": {"max_steps": 12, "micro_batch_size": 1, "global_batch_size": 2,
                         "learning_rate": 0.02},
            "checkpoint": {"output_dir": str(run)}})
        prompts = [row["prompt"] for row in sample_rows(8)]
        ids = our_ids(folder, [json.dumps(prompt) for prompt in prompts], self.scratch)
        prompts = [json.dumps(prompt) for prompt in prompts]
        with_adapter = self.our_answers(prompts, "--model", folder, "--adapter", adapter, "--raw")
        for dtype in ("float32", "float16", "q8_0"):
            file = self.export(folder, adapter, "gguf", f"{name}.{dtype}", "--dtype",
                               dtype) / "model.gguf"
            ours = self.our_answers(prompts, "--model", file, "--raw")
            with llama_cpp.LlamaCpp(file, context=384) as llama:
                self.assertEqual([llama.ids(prompt) for prompt in prompts], ids)
                if dtype == "float32":
                    self.assertEqual(ours, with_adapter)
                    self.assert_same_answers(ours, llama, ids)
                    continue
                self.assert_most_answers(ours, llama, ids)
            self.assert_same_values(ours, file, ids, 384)
        base = self.scratch / f"{name}.base"
        shardtune("export", "--model", folder, "--to", "gguf", "--dtype", "float32", "--out", base)
        lora = self.export(folder, adapter, "gguf-lora", f"{name}.lora")
        with llama_cpp.LlamaCpp(base / "model.gguf", lora / "adapter.gguf", 384) as llama:
            self.assert_same_answers(with_adapter, llama, ids)


TEXTS = ["The house  of\tthe 12 birds.\n\n  x = f(y); // 1234567", " a", "a   b     c", "",
         "na\u00efve \u65e5\u672c\u8a9e \U0001f600", "it's THEY'LL 3rd\r\n\r\n  42"]


class Tokenizers(ExportCase):
    """llama.cpp's ids of texts (in NFC, which it does not apply) with tokenizers that were written as
    metadata."""

    def check(self, folder):
        shardtune("export", "--model", folder, "--to", "gguf", "--out", self.scratch / "gguf")
        with llama_cpp.LlamaCpp(self.scratch / "gguf/model.gguf") as llama:
            for text in TEXTS:
                ours = json.loads(shardtune("tokenize", "--model", folder, "--text", text))
                self.assertEqual(llama.ids(text), ours, repr(text))

    def small_model(self, vocab_size):
        config = transformers.LlamaConfig(
            hidden_size=64, intermediate_size=96, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=1, vocab_size=vocab_size, bos_token_id=1, eos_token_id=2)
        transformers.LlamaForCausalLM(config).save_pretrained(self.scratch / "model")
        return self.scratch / "model"

    def test_sentencepiece(self):
        folder = self.small_model(1300)  # more rows than the vocabulary has tokens
        golden = ROOT / "tests/golden/tokenizer/small_spm.model"
        (folder / "tokenizer.model").write_bytes(golden.read_bytes())
        (folder / "tokenizer_config.json").write_text(
            '{"bos_token": "<s>", "eos_token": "</s>"}')
        self.check(folder)

    def test_splits_by_name(self):
        splits = json.loads((ROOT / "tests/golden/tokenizer/splits.json").read_text())["steps"]
        small = json.loads((ROOT / "tests/golden/tokenizer/small_digits.json").read_text())
        for name in ("llama3", "qwen2", "tekken", "bloom", "digits"):
            with self.subTest(name):
                self.doCleanups()
                self.setUp()
                folder = self.small_model(600)
                if name != "digits":
                    small["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [
                        splits[name], {"type": "ByteLevel", "add_prefix_space": False,
                                       "use_regex": False, "trim_offsets": True}]}
                    small["normalizer"] = {"type": "NFC"} if name == "qwen2" else None
                    small["model"]["ignore_merges"] = name in ("llama3", "tekken")
                (folder / "tokenizer.json").write_text(json.dumps(small))
                (folder / "tokenizer_config.json").write_text('{"eos_token": "<|end|>"}')
                self.check(folder)


if __name__ == "__main__":
    unittest.main(verbosity=2)
