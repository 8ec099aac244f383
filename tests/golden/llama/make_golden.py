#!/usr/bin/env python3
"""Writes the small random llama checkpoints and LoRA adapters of this folder, each with what
transformers and PEFT compute from them (expected.safetensors). README.md lists versions and names.

    python3 tests/golden/llama/make_golden.py           # rewrites the folders beside this file
    python3 tests/golden/llama/make_golden.py --check   # fails when the files would change
"""
import argparse
import json
import os
import pathlib
import sys
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"

import peft
import safetensors.torch
import torch
import transformers

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
import golden_files  # noqa: E402

VERSIONS = {"torch": "2.11.0", "transformers": "5.23.0", "peft": "0.21.2"}
BASE = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, vocab_size=96,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
            rms_norm_eps=1e-5, bos_token_id=1, eos_token_id=2, attn_implementation="eager")
SEQUENCE_LENGTHS = (23, 9)


def rope(theta, **scaling):
    return {"rope_type": "default", "rope_theta": theta, **scaling}


VARIANTS = {
    # Grouped K/V heads, one table for embedding and head: the shape of SmolLM2.
    "tied_gqa": dict(tie_word_embeddings=True, rope_parameters=rope(100000.0)),
    # One K/V head per query head, own head, a bias in every linear.
    "untied_bias": dict(num_key_value_heads=4, tie_word_embeddings=False, attention_bias=True,
                        mlp_bias=True, rope_parameters=rope(500.0)),
    # head_dim is not hidden_size / heads, so q_proj and o_proj are not square.
    "head_dim": dict(num_key_value_heads=1, head_dim=16, tie_word_embeddings=False,
                     rope_parameters=rope(10000.0)),
    # config.json as transformers 4 wrote it; rewritten by old_style().
    "old_style": dict(num_key_value_heads=1, tie_word_embeddings=False,
                      rope_parameters=rope(20000.0)),
    # Two bf16 files behind model.safetensors.index.json.
    "sharded_bf16": dict(tie_word_embeddings=False, rope_parameters=rope(10000.0)),
    # The frequency scaling of Llama 3.1, with an original context short enough to matter here.
    "llama3_rope": dict(tie_word_embeddings=True, rope_parameters=rope(
        10000.0, rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
        original_max_position_embeddings=16)),
}
ADAPTERS = {
    "lora_qv": dict(target_modules=["q_proj", "v_proj"], r=4, lora_alpha=8),
    "lora_all_linear_rslora": dict(target_modules="all-linear", r=4, lora_alpha=8,
                                   use_rslora=True),
}


def randomize(module, seed, std):
    """Overwrites every parameter: norms around 1, all else around 0, in order of name."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(module.named_parameters()):
            values = torch.randn(parameter.shape, generator=generator) * std
            parameter.copy_(values + 1.0 if "norm" in name else values)


def sequences():
    """Ids and labels (not shifted, -100 = not trained) of the fixed batch."""
    generator = torch.Generator().manual_seed(5)
    result = []
    for length in SEQUENCE_LENGTHS:
        ids = torch.randint(3, BASE["vocab_size"], (length,), generator=generator)
        labels = ids.clone()
        labels[: length // 3] = -100
        result.append((ids, labels))
    return result


def old_style(folder):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["rope_theta"] = config.pop("rope_parameters")["rope_theta"]
    config["rope_scaling"] = None
    config["torch_dtype"] = config.pop("dtype")
    config["transformers_version"] = "4.40.0"
    # Absent keys stand for the defaults of the class.
    for key in ("head_dim", "attention_bias", "mlp_bias", "tie_word_embeddings"):
        config.pop(key, None)
    path.write_text(json.dumps(dict(sorted(config.items())), indent=2) + "\n")


def load(folder):
    return transformers.LlamaForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager").eval()


def forward(model):
    """Logits of each sequence alone, and the loss: sum over both by the trained tokens of both."""
    tensors, total, count = {}, 0.0, 0
    for index, (ids, labels) in enumerate(sequences()):
        logits = model(ids[None]).logits[0]
        total = total + torch.nn.functional.cross_entropy(
            logits[:-1].float(), labels[1:], ignore_index=-100, reduction="sum")
        count += int((labels[1:] != -100).sum())
        tensors[f"input_ids_{index}"] = ids.to(torch.int32)
        tensors[f"labels_{index}"] = labels.to(torch.int32)
        tensors[f"logits_{index}"] = logits.detach().float().contiguous()
    loss = total / count
    tensors["loss"] = loss.detach().reshape(1)
    return loss, tensors


def write_model(folder, index, options):
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**BASE, **options}))
    randomize(model, 100 + index, 0.25)
    if folder.name == "sharded_bf16":
        model.to(torch.bfloat16).save_pretrained(folder, max_shard_size="30KB")
        assert len(list(folder.glob("model-*.safetensors"))) == 2
    else:
        model.save_pretrained(folder)
    if folder.name == "old_style":
        old_style(folder)
    with torch.no_grad():
        _, tensors = forward(load(folder))
    safetensors.torch.save_file(tensors, folder / "expected.safetensors")


def write_adapter(folder, index, options):
    config = peft.LoraConfig(task_type="CAUSAL_LM", **options)
    model = peft.get_peft_model(load(folder.parent / "tied_gqa"), config)
    generator = torch.Generator().manual_seed(200 + index)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    model.peft_config["default"].base_model_name_or_path = "tied_gqa"
    model.save_pretrained(folder)
    (folder / "README.md").unlink()
    # Sets have no order of their own.
    path = folder / "adapter_config.json"
    saved = json.loads(path.read_text())
    saved["target_modules"] = sorted(saved["target_modules"])
    path.write_text(json.dumps(saved, indent=2) + "\n")

    loss, tensors = forward(model.eval())
    loss.backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            tensors["grad." + name.replace(".default", "")] = parameter.grad.contiguous()
    assert len(tensors) == 7 + len(safetensors.torch.load_file(folder / "adapter_model.safetensors"))
    safetensors.torch.save_file(tensors, folder / "expected.safetensors")


def write_all(root):
    for index, (name, options) in enumerate(VARIANTS.items()):
        write_model(root / name, index, options)
    for index, (name, options) in enumerate(ADAPTERS.items()):
        write_adapter(root / name, index, options)


def run(write, root, here):
    """Writes into root, then copies what differs to `here`, or with --check only tells."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    golden_files.check_versions(VERSIONS)
    torch.set_num_threads(1)
    write(root)
    golden_files.publish(root, here, arguments.check)


def main():
    with tempfile.TemporaryDirectory() as scratch:
        run(write_all, pathlib.Path(scratch), pathlib.Path(__file__).resolve().parent)


if __name__ == "__main__":
    main()
