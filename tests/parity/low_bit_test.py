#!/usr/bin/env python3
"""Merge-aware checkpoints in low bits, loaded by transformers and bitsandbytes, live: the weights bit
for bit those that were trained with, and the loss the same.

    SHARDTUNE_BINARY=build/release/launch/shardtune PYTHON tests/parity/low_bit_test.py [-k NAME]
"""
import json
import math
import unittest

import bitsandbytes
import safetensors.torch
import torch
import transformers

import parity_test
from parity_test import ROOT, make_tiny_gpt2, make_tiny_model, shardtune

FORMATS = {"nf4": {"method": "nf4", "double_quant": True}, "nf4_plain": {"method": "nf4"},
           "fp4": {"method": "fp4", "double_quant": True}, "int8": {"method": "int8"}}


class LowBit(parity_test.ParityCase):
    def test_every_format(self):
        self.make_model()
        for name, quantization in FORMATS.items():
            with self.subTest(name):
                self.check(name, quantization)

    def test_every_format_of_gpt2(self):
        """Its linears are Conv1D modules: dense files have them as [in,out], codes as [out,in]."""
        make_tiny_gpt2(self.scratch / "model")
        for name, quantization in FORMATS.items():
            with self.subTest(name):
                self.check(name, quantization, is_gpt2=True)

    def make_model(self):
        """Rows of whole blocks: others bitsandbytes 0.50.2 decodes with a wrong absmax on the CPU."""
        folder = self.scratch / "model"
        make_tiny_model(folder)
        config = transformers.AutoConfig.from_pretrained(folder)
        config.intermediate_size = 128
        torch.manual_seed(4)
        transformers.LlamaForCausalLM(config).save_pretrained(folder)

    def check(self, name, quantization, is_gpt2=False):
        config = parity_test.TinyModel.config(
            self, self.scratch / "model",
            {"lora_rank": 4, "lora_alpha": 8, "merge_aware": True, "merge_aware_weights": "int8"})
        config["quantization"] = quantization
        config["checkpoint"]["output_dir"] = str(self.scratch / name)
        adapter = self.train(config)
        model = ["--model", self.scratch / "model", "--adapter", adapter]
        method = quantization["method"]
        packed, plain = self.scratch / f"{name}-packed", self.scratch / f"{name}-plain"
        shardtune("export", *model, "--to", "hf", "--dtype", method, "--out", packed)
        shardtune("export", *model, "--to", "hf", "--dtype", "float32", "--out", plain)
        values = safetensors.torch.load_file(plain / "model.safetensors")
        loaded = transformers.AutoModelForCausalLM.from_pretrained(packed, dtype=torch.float32)
        compared = 0
        for path, module in loaded.named_modules():
            if isinstance(module, bitsandbytes.nn.Linear4bit):
                found = bitsandbytes.functional.dequantize_4bit(
                    module.weight.data, module.weight.quant_state)
            elif isinstance(module, bitsandbytes.nn.Linear8bitLt):
                scb = module.weight.SCB if module.weight.SCB is not None else module.state.SCB
                found = module.weight.data.float() * (scb / 127).unsqueeze(1)
            else:
                continue
            expected = values[path + ".weight"]
            self.assertTrue(torch.equal(found, expected.T if is_gpt2 else expected), path)
            compared += 1
        self.assertEqual(compared, 3 * (4 if is_gpt2 else 7))
        self.check_loss(packed, loaded, model, exact=method != "int8")

    def check_loss(self, packed, loaded, model, exact):
        """bitsandbytes' int8 products round activations to 8 bits; its 4-bit ones do not."""
        data = ["--data", ROOT / "data/samples/eval.jsonl", "--max-samples", 5, "--chat-template",
                "chatml", "--max-length", 256, "--compute-dtype", "float32", "--json"]
        trained = json.loads(shardtune("eval", *model, *data))["loss"]
        ours = json.loads(shardtune("eval", "--model", packed, *data))["loss"]
        self.assert_close(ours, trained, 1e-5)
        ids = torch.tensor([[1, 5, 9, 30, 31, 7, 80, 81, 82, 20]])
        dense = transformers.AutoModelForCausalLM.from_pretrained(
            str(packed).replace("-packed", "-plain"), dtype=torch.float32)
        # With a gradient wanted bitsandbytes multiplies the fp32 values, else it rounds to bf16.
        embedded = dense.get_input_embeddings()(ids).detach().requires_grad_()
        theirs, same = (model(inputs_embeds=embedded).logits.detach() for model in (loaded, dense))
        error = (theirs - same).norm() / same.norm()
        self.assertLess(error.item(), 1e-4 if exact else 0.1)
        self.assertTrue(math.isfinite(error.item()))


if __name__ == "__main__":
    unittest.main(verbosity=2)
