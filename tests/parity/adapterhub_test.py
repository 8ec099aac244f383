#!/usr/bin/env python3
"""Live comparison of bottleneck adapters with AdapterHub's library (adapters 1.3.0), in a Python of its
own, since it goes with no transformers 5: adapters trained here load there, those it saves load here.

    SHARDTUNE_BINARY=build/release/launch/shardtune PYTHON tests/parity/adapterhub_test.py [-k NAME]"""
import pathlib
import tempfile
import unittest

import adapters
import torch
import transformers

import parity_test as parity

SOME = ({"config": "double_seq_bn", "reduction_factor": 8},
        {"config": "seq_bn", "reduction_factor": {"1": 4, "default": 16}, "leave_out": [0]},
        {"config": "par_bn", "reduction_factor": 4},
        {"config": "scaled_par_bn", "reduction_factor": 4, "scaling": "learned"},
        # AdapterPlus without stochastic depth.
        {"config": "seq_bn", "reduction_factor": 12.5, "original_ln_before": True,
         "original_ln_after": False, "residual_before_ln": False, "scaling": "channel",
         "init_weights": "houlsby", "non_linearity": "gelu"})


MAKE = {"llama": parity.make_tiny_model, "gpt2": parity.make_tiny_gpt2}


class Bottleneck(parity.ParityCase):
    config = parity.TinyModel.config
    sequences = parity.TinyModel.sequences

    def every_case(self, check):
        for family in MAKE:
            for options in SOME:
                with (self.subTest(family=family, **options),
                      tempfile.TemporaryDirectory() as scratch):
                    self.scratch = pathlib.Path(scratch)
                    folder = self.scratch / "model"
                    tokenizer = MAKE[family](folder)
                    rows = parity.sample_rows(10)
                    base = transformers.AutoModelForCausalLM.from_pretrained(
                        folder, dtype=torch.float32, attn_implementation="eager").eval()
                    sequences = self.sequences(tokenizer, rows)
                    before, _ = parity.their_loss(base, sequences)
                    # With its cache the library's llama gives other answers than without.
                    base.generation_config.use_cache = False
                    adapters.init(base)
                    adapter = check(folder, base, options)
                    ours = parity.our_loss(folder, rows, self.scratch, "--adapter", adapter,
                                           "--compute-dtype", "float32")
                    theirs, count = parity.their_loss(base.eval(), sequences)
                    self.assertEqual(ours["num_tokens"], count)
                    self.assertGreater(abs(theirs - before), 10 * parity.FP32 * before,
                                       "the adapter does too little")
                    self.assert_close(ours["loss"], theirs, parity.FP32)
                    self.assert_same_answers(base, tokenizer, sequences[:4], parity.NEAR["fp32"],
                                             "--model", folder, "--adapter", adapter,
                                             "--compute-dtype", "float32")

    def test_ours_load_there(self):
        def check(folder, base, options):
            adapter = self.train(self.config(folder, {"method": "bottleneck", **options}))
            base.load_adapter(str(adapter), use_safetensors=True, set_active=True)
            return adapter
        self.every_case(check)

    def test_theirs_load_here(self):
        def check(folder, base, options):
            config = adapters.AdapterConfig.load(
                options["config"], **{key: value for key, value in options.items()
                                      if key != "config"})
            base.add_adapter("theirs", config=config)
            base.train_adapter("theirs")
            torch.manual_seed(5)
            with torch.no_grad():
                for _, parameter in sorted(base.named_parameters()):
                    if parameter.requires_grad:
                        parameter.add_(torch.randn(parameter.shape) * 0.2)
            base.save_adapter(str(self.scratch / "theirs"), "theirs", use_safetensors=True,
                              with_head=False)
            return self.scratch / "theirs"
        self.every_case(check)


if __name__ == "__main__":
    unittest.main(verbosity=2)
