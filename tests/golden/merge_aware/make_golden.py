#!/usr/bin/env python3
"""Writes one folder per format: a LoRA adapter with random tensors on ../llama/tied_gqa, and what
torch computes when the linears hold Q(W + scale * B A) with a straight-through gradient, Q being
bitsandbytes' quantiser on the CPU (expected.safetensors: logits, loss, gradients of lora_A and lora_B
by name, and the merged weights of one linear).

    python3 tests/golden/merge_aware/make_golden.py            # rewrites the folders beside this file
    python3 tests/golden/merge_aware/make_golden.py --check    # fails when the files would change
"""
import argparse
import json
import os
import pathlib
import sys
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"

import bitsandbytes.functional as bnb
import safetensors.torch
import torch

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "llama")]
import golden_files  # noqa: E402
import make_golden as llama  # noqa: E402

TARGETS = ["q_proj", "v_proj", "down_proj"]
RANK, ALPHA = 3, 6
# folder: (format, form in which W is kept)
CASES = {"nf4": ("nf4", "bf16"), "fp4": ("fp4", "int8"), "int8": ("int8", "bf16")}


def int8_rows(weight):
    absmax = weight.abs().amax(1, keepdim=True)
    return torch.round(weight * (127 / absmax)) * (absmax / 127)


def quantise(weight, method):
    if method == "int8":
        return int8_rows(weight)
    # Flat: the CPU's dequantize_4bit takes a wrong absmax where rows are no whole blocks.
    codes, state = bnb.quantize_4bit(weight.flatten(), blocksize=64, quant_type=method)
    return bnb.dequantize_4bit(codes, state).reshape(weight.shape)


class Merged(torch.nn.Module):
    """x W^T with W = Q(kept + scale * B A); the way back takes Q for the identity."""

    def __init__(self, weight, method, form, generator):
        super().__init__()
        self.kept = weight.bfloat16().float() if form == "bf16" else int8_rows(weight)
        self.method = method
        self.lora_A = torch.nn.Parameter(torch.randn(RANK, weight.shape[1], generator=generator) * 0.2)
        self.lora_B = torch.nn.Parameter(torch.randn(weight.shape[0], RANK, generator=generator) * 0.2)

    def merged(self):
        change = torch.zeros_like(self.kept)
        for k in range(RANK):  # in this order, each product and sum rounded
            change = change + self.lora_B[:, k:k + 1] * self.lora_A[k:k + 1]
        return self.kept + ALPHA / RANK * change

    def values(self):
        return quantise(self.merged().detach(), self.method)

    def forward(self, x):
        return Straight.apply(x, self.merged(), self.values())


class Straight(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, values):
        ctx.save_for_backward(x, values)
        return x @ values.T

    @staticmethod
    def backward(ctx, dy):
        x, values = ctx.saved_tensors
        return dy @ values, dy.flatten(0, -2).T @ x.flatten(0, -2), None


def write_case(folder, index, method, form):
    model = llama.load(HERE.parent / "llama" / "tied_gqa")
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    generator = torch.Generator().manual_seed(700 + index)
    adapter = {}
    for path, module in list(model.named_modules()):
        if not isinstance(module, torch.nn.Linear) or path == "lm_head":
            continue
        parent, leaf = path.rsplit(".", 1)
        if leaf in TARGETS:
            adapter[path] = Merged(module.weight.detach(), method, form, generator)
            setattr(model.get_submodule(parent), leaf, adapter[path])
        else:
            module.weight.copy_(quantise(module.weight.detach(), method))
    loss, tensors = llama.forward(model.eval())
    loss.backward()
    for i in range(len(llama.SEQUENCE_LENGTHS)):
        del tensors[f"input_ids_{i}"], tensors[f"labels_{i}"]  # those of ../llama
    saved = {}
    for path, merged in adapter.items():
        for name in ("lora_A", "lora_B"):
            key = f"base_model.model.{path}.{name}.weight"
            saved[key] = getattr(merged, name).detach().contiguous()
            tensors["grad." + key] = getattr(merged, name).grad.contiguous()
    first = next(iter(adapter))
    tensors["merged." + first] = adapter[first].values()
    folder.mkdir(parents=True)
    safetensors.torch.save_file(tensors, folder / "expected.safetensors")
    safetensors.torch.save_file(saved, folder / "adapter_model.safetensors")
    config = dict(peft_type="LORA", base_model_name_or_path="tied_gqa", r=RANK, lora_alpha=ALPHA,
                  target_modules=sorted(TARGETS))
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        root = pathlib.Path(scratch)
        for index, (name, case) in enumerate(CASES.items()):
            write_case(root / name, index, *case)
        golden_files.publish(root, HERE, arguments.check)


if __name__ == "__main__":
    main()
