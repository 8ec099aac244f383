#!/usr/bin/env python3
"""Writes the folders of bottleneck adapters: as make_golden.py does for PEFT's methods, but with the
AdapterHub library (adapters 1.3.0, transformers 4.57.6, which go with no transformers 5), so in a
Python of its own.

    python3 tests/golden/adapters/make_bottleneck.py            # rewrites the folders beside this file
    python3 tests/golden/adapters/make_bottleneck.py --check    # fails when the files would change
    python3 tests/golden/adapters/make_bottleneck.py --load FOLDER BASE    # logits of a saved adapter
"""
import argparse
import json
import os
import pathlib
import sys
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"

import adapters
import safetensors.torch
import torch
import transformers

VERSIONS = {"torch": "2.11.0", "transformers": "4.57.6", "adapters": "1.3.0"}
HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
import golden_files  # noqa: E402
HOULSBY, PFEIFFER, PARALLEL = adapters.DoubleSeqBnConfig, adapters.SeqBnConfig, adapters.ParBnConfig
PLUS = dict(original_ln_before=True, original_ln_after=False, residual_before_ln=False,
            scaling="channel", init_weights="houlsby", non_linearity="gelu")
# name: (config class, options). Values are random, those of norms and learned scales lie around 1.
CASES = {
    "bottleneck_houlsby": (HOULSBY, dict(reduction_factor=4)),
    "bottleneck_pfeiffer": (PFEIFFER, dict(reduction_factor=8)),
    "bottleneck_parallel": (PARALLEL, dict(reduction_factor=4)),
    # AdapterPlus without stochastic depth: the residual comes from the adapter itself.
    "bottleneck_plus": (PFEIFFER, dict(PLUS, reduction_factor=12.5)),
    "bottleneck_norms": (HOULSBY, dict(
        ln_before=True, ln_after=True, adapter_residual_before_ln=True, original_ln_before=True,
        residual_before_ln=False, non_linearity="gelu_new",
        reduction_factor={"1": 16, "default": 8})),
    "bottleneck_parallel_norm": (PARALLEL, dict(
        mh_adapter=True, ln_after=True, scaling="learned", non_linearity="tanh",
        reduction_factor=16, leave_out=[0])),
    # The residual of the layer is taken away again: only what the library computes makes it so.
    "bottleneck_bare": (HOULSBY, dict(original_ln_after=False, ln_after=True, scaling=0.5,
                                    non_linearity="sigmoid", reduction_factor=16)),
    "gpt2_bottleneck_houlsby": (HOULSBY, dict(reduction_factor=4)),
    "gpt2_bottleneck_pfeiffer": (PFEIFFER, dict(reduction_factor=8)),
    "gpt2_bottleneck_parallel": (PARALLEL, dict(reduction_factor=8, original_ln_after=False)),
}


def load_base(base):
    folder = HERE.parent / ("llama" if base == "tied_gqa" else "") / base
    config = json.loads((folder / "config.json").read_text())
    kind = (transformers.GPT2Config, transformers.GPT2LMHeadModel)
    if base == "tied_gqa":
        kind = (transformers.LlamaConfig, transformers.LlamaForCausalLM)
        config["rope_theta"] = config.pop("rope_parameters")["rope_theta"]  # as transformers 4 has it
    config["dtype"] = "float32"
    model = kind[1](kind[0](**config, attn_implementation="eager")).eval()
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    model.load_state_dict(weights, strict=False)
    model.tie_weights()
    return model


def forward(model):
    """Logits of each sequence of ../llama alone, and the loss over both."""
    inputs = safetensors.torch.load_file(HERE.parent / "llama/lora_qv/expected.safetensors")
    tensors, total, count = {}, 0.0, 0
    for index in range(2):
        ids, labels = inputs[f"input_ids_{index}"].long(), inputs[f"labels_{index}"].long()
        logits = model(ids[None]).logits[0]
        total = total + torch.nn.functional.cross_entropy(
            logits[:-1].float(), labels[1:], ignore_index=-100, reduction="sum")
        count += int((labels[1:] != -100).sum())
        tensors[f"logits_{index}"] = logits.detach().float().contiguous()
    loss = total / count
    tensors["loss"] = loss.detach().reshape(1)
    return loss, tensors


def check_base(base):
    """That this library computes what the one that made the base does."""
    folder = HERE.parent / ("llama" if base == "tied_gqa" else "") / base
    path = folder / "expected.safetensors"
    _, tensors = forward(load_base(base))
    expected = safetensors.torch.load_file(path)
    for index in range(2):
        torch.testing.assert_close(tensors[f"logits_{index}"], expected[f"logits_{index}"])


def write_case(folder, index, name, kind, options):
    base = "families/gpt2" if name.startswith("gpt2") else "tied_gqa"
    model = load_base(base)
    adapters.init(model)
    torch.manual_seed(600 + index)
    model.add_adapter("golden", config=kind(**options))
    model.train_adapter("golden")
    generator = torch.Generator().manual_seed(700 + index)
    trained = {key: value for key, value in model.named_parameters() if value.requires_grad}
    with torch.no_grad():
        for key, parameter in sorted(trained.items()):
            values = torch.randn(parameter.shape, generator=generator) * 0.3
            around_one = key.endswith("scaling") or ("norm" in key and key.endswith("weight"))
            parameter.copy_(values + around_one)
    loss, tensors = forward(model.eval())
    loss.backward()
    for key, parameter in trained.items():
        tensors["grad." + key] = parameter.grad.contiguous()
        # The library's state_dict holds this norm a second time.
        if "adapter_norm_before" in key:
            again = key.replace("adapter_norm_before", "adapter_down.0")
            tensors["grad." + again] = parameter.grad.clone()
    save_adapter(model, folder, base)
    safetensors.torch.save_file(tensors, folder / "expected.safetensors")


def save_adapter(model, folder, base):
    """What save_adapter writes; of a tensor with two names save_file takes no view of the other."""
    whole = safetensors.torch.save_file
    adapters.loading.save_file = lambda tensors, path: whole(
        {key: value.clone() for key, value in tensors.items()}, path, metadata={"format": "pt"})
    folder.mkdir(parents=True)
    model.save_adapter(str(folder), "golden", use_safetensors=True, with_head=False)
    for path in list(folder.iterdir()):
        if path.name not in ("adapter_config.json", "adapter.safetensors"):
            path.unlink()
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    config["model_name"] = base
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def load(folder, base):
    """Prints the largest difference between the logits with a saved adapter and those expected."""
    model = load_base(base)
    adapters.init(model)
    name = model.load_adapter(str(folder), use_safetensors=True, set_active=True)
    _, tensors = forward(model.eval())
    safetensors.torch.save_file(tensors, folder / "loaded.safetensors")
    print(f"{name}: {folder / 'loaded.safetensors'}")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--load", nargs=2, metavar=("FOLDER", "BASE"))
    arguments = parser.parse_args()
    golden_files.check_versions(VERSIONS)
    torch.set_num_threads(1)
    if arguments.load:
        return load(pathlib.Path(arguments.load[0]), arguments.load[1])
    for base in ("tied_gqa", "families/gpt2"):
        check_base(base)
    with tempfile.TemporaryDirectory() as scratch:
        root = pathlib.Path(scratch)
        for index, (name, case) in enumerate(CASES.items()):
            write_case(root / name, index, name, *case)
        golden_files.publish(root, HERE, arguments.check)


if __name__ == "__main__":
    main()
