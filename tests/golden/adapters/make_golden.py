#!/usr/bin/env python3
"""Writes one folder per adapter method: the adapter as PEFT saves it, with random tensors, and what
PEFT computes with it on ../llama/tied_gqa or, gpt2_*, on ../families/gpt2 (expected.safetensors:
logits, loss, gradients by name).

    python3 tests/golden/adapters/make_golden.py            # rewrites the folders beside this file
    python3 tests/golden/adapters/make_golden.py NAME...    # some of them
    python3 tests/golden/adapters/make_golden.py --check    # fails when the files would change
"""
import argparse
import json
import os
import pathlib
import sys
import tempfile
import types

os.environ["HF_HUB_OFFLINE"] = "1"

import bitsandbytes
import peft
import peft.utils.loftq_utils
import safetensors.torch
import torch
import transformers

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "llama")]
import golden_files  # noqa: E402
import make_golden as llama  # noqa: E402

SOME = ["q_proj", "v_proj", "down_proj"]
# name: (config class, options, scale of the random values, value they lie around by name)
CASES = {
    "dora": (peft.LoraConfig, dict(target_modules=SOME, r=2, lora_alpha=4, use_dora=True), 0.2, {}),
    "lora_patterns": (peft.LoraConfig, dict(
        target_modules=SOME, r=2, lora_alpha=4, rank_pattern={"layers.1.*q_proj": 3, "down_proj": 1},
        alpha_pattern={"v_proj": 5}), 0.2, {}),
    "ia3": (peft.IA3Config, dict(target_modules=["k_proj", "v_proj", "down_proj"],
                                 feedforward_modules=["down_proj"]), 0.3, {"ia3_l": 1}),
    "vera": (peft.VeraConfig, dict(target_modules=SOME, r=8), 0.3, {}),
    "loha": (peft.LoHaConfig, dict(target_modules=SOME, r=2, alpha=3, rank_pattern={"v_proj": 1}),
             0.3, {}),
    "lokr": (peft.LoKrConfig, dict(target_modules=SOME, r=2, alpha=3), 0.3, {}),
    "lokr_both": (peft.LoKrConfig, dict(target_modules=SOME, r=1, alpha=1, decompose_both=True,
                                        decompose_factor=8), 0.3, {}),
    "oft": (peft.OFTConfig, dict(target_modules=SOME, oft_block_size=8), 0.1, {}),
    "oft_exact_shared": (peft.OFTConfig, dict(
        target_modules=SOME, r=4, oft_block_size=0, block_share=True, use_cayley_neumann=False),
        0.1, {}),
    "boft": (peft.BOFTConfig, dict(target_modules=SOME, boft_block_size=4), 0.1, {"boft_s": 1}),
}
# Methods that put something before the tokens.
TOKEN_CASES = {
    "prefix_tuning": (peft.PrefixTuningConfig, dict(num_virtual_tokens=3), 1.0, {}),
    "prefix_projection": (peft.PrefixTuningConfig, dict(
        num_virtual_tokens=3, prefix_projection=True, encoder_hidden_size=12), 0.5, {}),
    "prompt_tuning": (peft.PromptTuningConfig, dict(num_virtual_tokens=3), 0.3, {}),
    "p_tuning_mlp": (peft.PromptEncoderConfig, dict(
        num_virtual_tokens=3, encoder_hidden_size=12), 0.3, {}),
    "p_tuning_lstm": (peft.PromptEncoderConfig, dict(
        num_virtual_tokens=4, encoder_hidden_size=6, encoder_num_layers=2,
        encoder_reparameterization_type="LSTM"), 0.3, {}),
    "multitask": (peft.MultitaskPromptTuningConfig, dict(
        num_virtual_tokens=3, num_tasks=2, num_ranks=2), 0.7, {}),
    "adaption_prompt": (peft.AdaptionPromptConfig, dict(adapter_len=4, adapter_layers=2), 0.8, {}),
}
# On gpt2 with the same options; their places in the list are the seeds of their values.
ON_GPT2 = ["prefix_tuning", "prompt_tuning", "p_tuning_mlp", "p_tuning_lstm", "multitask",
           "adaption_prompt", "prefix_projection"]
TOKEN_CASES.update({"gpt2_" + name: TOKEN_CASES[name] for name in ON_GPT2})
TOKEN_CASES["gpt2_adaption_prompt"] = (peft.AdaptionPromptConfig, dict(
    adapter_len=4, adapter_layers=1), 0.8, {})
TASKS = [1, 0]  # of the two sequences
# What is trained is not what is saved: the run's section that trains it. expected.safetensors then
# has value.<name> and grad.<name> of every trained tensor under our names.
TRAINED = {
    "prefix_projection": "{method: prefix_tuning, num_virtual_tokens: 3, prefix_projection: true, "
                         "encoder_hidden_size: 12}",
    "p_tuning_mlp": "{method: p_tuning, num_virtual_tokens: 3, encoder_hidden_size: 12}",
    "p_tuning_lstm": "{method: p_tuning, num_virtual_tokens: 4, encoder_hidden_size: 6, "
                     "encoder_reparameterization_type: LSTM}",
}
TRAINED.update({"gpt2_" + name: section for name, section in TRAINED.items()})

# PEFT knows gpt2's Conv1D modules for these methods alone.
CONV1D = dict(target_modules=["c_attn", "mlp.c_proj"])
# PEFT puts QA-LoRA on GPTQ's layers alone; its variant computes the same beside a plain one.
QALORA_CASES = {
    "qalora": (peft.LoraConfig, dict(target_modules=SOME, r=2, lora_alpha=4, qalora_group_size=8),
               0.2, {}),
    "gpt2_qalora": (peft.LoraConfig, dict(CONV1D, r=3, lora_alpha=4, use_rslora=True,
                                          qalora_group_size=4), 0.2, {}),
}
GPT2_CASES = {
    "gpt2_dora": (peft.LoraConfig, dict(CONV1D, r=2, lora_alpha=4, use_dora=True), 0.2, {}),
    "gpt2_ia3": (peft.IA3Config, dict(CONV1D, feedforward_modules=["mlp.c_proj"]), 0.3,
                 {"ia3_l": 1}),
    "gpt2_vera": (peft.VeraConfig, dict(CONV1D, r=8), 0.3, {}),
}
# The others meet the same model with its Conv1D modules written as nn.Linear.
LINEAR_CASES = {
    "gpt2_loha": (peft.LoHaConfig, dict(CONV1D, r=2, alpha=3), 0.3, {}),
    "gpt2_lokr": (peft.LoKrConfig, dict(CONV1D, r=2, alpha=3), 0.3, {}),
    "gpt2_oft": (peft.OFTConfig, dict(CONV1D, oft_block_size=8), 0.1, {}),
    "gpt2_boft": (peft.BOFTConfig, dict(CONV1D, boft_block_size=4), 0.1, {"boft_s": 1}),
}

# Saved outside of the ball, used on its surface.
COFT_CASES = {
    "oft_coft": (peft.OFTConfig, dict(target_modules=SOME, oft_block_size=8, coft=True, eps=0.7),
                 0.1, {}),
}

ADALORA_CASES = {
    "adalora": (peft.AdaLoraConfig, dict(target_modules=SOME, init_r=3, target_r=2, lora_alpha=5,
                                         total_step=10), 0.3, {}),
    "adalora_pruned": (peft.AdaLoraConfig, dict(
        target_modules=SOME, init_r=3, target_r=2, lora_alpha=5, orth_reg_weight=0.8,
        total_step=10), 0.3, {}),
    "gpt2_adalora": (peft.AdaLoraConfig, dict(CONV1D, init_r=3, target_r=2, lora_alpha=5,
                                              total_step=10), 0.3, {}),
}
# LoRA on embedding and head: tied, untied, and gpt2's.
TABLE_CASES = {
    "table_tied": ("tied_gqa", dict(target_modules=["q_proj", "embed_tokens", "lm_head"], r=2,
                                    lora_alpha=3)),
    "table_tied_head": ("tied_gqa", dict(target_modules=["lm_head"], r=2, use_rslora=True,
                                         rank_pattern={"lm_head": 3})),
    "table_untied": ("head_dim", dict(target_modules=["embed_tokens", "lm_head"], r=2)),
    "table_gpt2": ("families/gpt2", dict(target_modules=["c_attn", "wte"], r=2)),
}
# Of adalora_pruned: the triplets that are left, by linear in order of the model.
KEPT = [[True, False, True], [False, True, True], [False, False, False],
        [True, True, True], [False, True, False], [True, False, False]]

# LoRA whose ranks and directions EVA takes from the two sequences.
EVA_CASES = {
    "eva": (dict(r=2, lora_alpha=6, target_modules="all-linear"), {}),
    "eva_patterns": (dict(r=1, lora_alpha=3, target_modules=SOME[:1] + ["o_proj", "down_proj"],
                          use_rslora=True, rank_pattern={"layers.0.*o_proj": 3},
                          alpha_pattern={"down_proj": 5}),
                     dict(rho=3.0, use_label_mask=False, whiten=True)),
    "gpt2_eva": (dict(r=1, lora_alpha=2, target_modules=["c_attn", "c_fc", "c_proj"]),
                 dict(rho=3.0, adjust_scaling_factors=False)),
}

# Parts of the base that are trained: biases, whole modules, tied tables.
NONE = "dummy-target-modules"
NORMS = {"norm": 1, "ln_": 1}
TRAINED_CASES = {
    "trained_bias_all": ("families/gpt2", dict(target_modules=["c_attn"], r=2, bias="all")),
    "trained_bias_dora": ("families/gpt2", dict(target_modules=["c_attn"], r=2, use_dora=True,
                                                bias="lora_only")),
    "trained_bias_only": ("families/qwen2_tied", dict(target_modules=["q_proj", "v_proj"], r=2,
                                                      bias="lora_only")),
    # "norm" ends input_layernorm and post_attention_layernorm too; the head keeps its values.
    "trained_embedding": ("tied_gqa", dict(target_modules=["q_proj"], r=2,
                                           modules_to_save=["embed_tokens", "norm"])),
    "trained_head": ("tied_gqa", dict(target_modules=["v_proj"], r=2,
                                      modules_to_save=["lm_head"])),
    "trained_linears": ("tied_gqa", dict(target_modules=["q_proj"], r=2,
                                         modules_to_save=["layers.1.mlp", "v_proj"])),
    "trained_tied": ("tied_gqa", dict(target_modules=["q_proj"], r=2, ensure_weight_tying=True,
                                      modules_to_save=["embed_tokens"])),
    "bitfit": ("families/gpt2", dict(target_modules=NONE, bias="all")),
    "full": ("families/gpt2", dict(target_modules=NONE, modules_to_save=[
        "wte", "wpe", "ln_1", "ln_2", "ln_f", "c_attn", "c_proj", "c_fc", "lm_head"])),
}


def base_of(name):
    if name in TRAINED_CASES or name in TABLE_CASES:
        return {**TRAINED_CASES, **TABLE_CASES}[name][0]
    return "families/gpt2" if name.startswith("gpt2") else "tied_gqa"


def turn_into_qalora(model):
    config = model.peft_config["default"]
    config.use_qalora = True
    for module in model.modules():
        if isinstance(module, peft.tuners.lora.LoraLayer):
            module.lora_variant["default"] = peft.tuners.lora.variants.QALoraLinearVariant()
            module.lora_variant["default"].init(module, "default", config)


def load_base(name):
    base = base_of(name)
    if "/" not in base:
        return llama.load(HERE.parent / "llama" / base)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        HERE.parent / base, dtype=torch.float32, attn_implementation="eager").eval()
    if name in LINEAR_CASES:
        for path, module in list(model.named_modules()):
            if isinstance(module, transformers.pytorch_utils.Conv1D):
                linear = torch.nn.Linear(*module.weight.shape)  # [in,out]
                linear.weight = torch.nn.Parameter(module.weight.detach().T.contiguous())
                linear.bias = module.bias
                parent, leaf = path.rsplit(".", 1)
                setattr(model.get_submodule(parent), leaf, linear)
    return model


def randomize(model, seed, scale, centers):
    """New values for every trained parameter, in order of name."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if not parameter.requires_grad:
                continue
            values = torch.randn(parameter.shape, generator=generator) * scale
            if "magnitude" in name:
                parameter.mul_(1 + values)
                continue
            for part, center in centers.items():
                values = values + center * (part in name)
            parameter.copy_(values)


def trained_parts(name, values):
    """A trained tensor of PEFT's under our names: those of all layers in one are cut by layer."""
    name = name.replace(".default", "")
    if name.startswith("prompt_encoder.transform.2."):
        return {f"{name}.{i}": part.contiguous() for i, part in enumerate(values.chunk(2))}
    return {name: values.contiguous()}


class Tokens:
    """The model's logits of the tokens alone, without those of virtual tokens before them."""

    def __init__(self, model):
        self.model, self.calls = model.eval(), 0

    def __call__(self, ids):
        config = self.model.peft_config["default"]
        more = {}
        if config.peft_type == "MULTITASK_PROMPT_TUNING":
            more["task_ids"] = torch.tensor([TASKS[self.calls]])
        self.calls += 1
        logits = self.model(ids, **more).logits
        return types.SimpleNamespace(logits=logits[:, logits.shape[1] - ids.shape[1]:])


def save(model, folder, base):
    model.peft_config["default"].base_model_name_or_path = base
    model.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    path = folder / "adapter_config.json"
    saved = json.loads(path.read_text())
    for key in ("target_modules", "feedforward_modules", "modules_to_save"):  # sets have no order of their own
        if isinstance(saved.get(key), list):
            saved[key] = sorted(saved[key])
    path.write_text(json.dumps(saved, indent=2) + "\n")


def prune(model, folder, base):
    """The adapter that PEFT loads again when only KEPT is left of it."""
    names = [name for name, _ in model.base_model.model.named_parameters() if ".lora_E." in name]
    model.peft_config["default"].rank_pattern = dict(zip(names, KEPT, strict=True))
    save(model, folder, base)
    return peft.PeftModel.from_pretrained(load_base("adalora"), folder, is_trainable=True)


def orthogonality(model):
    """What AdaLoRA adds to the loss: all of it where no token has a label."""
    ids = torch.zeros((1, 3), dtype=torch.long)
    return model(ids, labels=torch.full_like(ids, -100), num_items_in_batch=torch.tensor(1)).loss


def write_case(folder, index, name, case):
    kind, options, scale, centers = case
    torch.manual_seed(300 + index)
    config = kind(task_type="CAUSAL_LM", **options)
    model = peft.get_peft_model(load_base(name), config)
    if name in QALORA_CASES:
        turn_into_qalora(model)
    randomize(model, 400 + index, scale, centers)
    save(model, folder, base_of(name))
    if name == "adalora_pruned":
        model = prune(model, folder, base_of(name))
    loss, tensors = llama.forward(Tokens(model.eval()))
    if kind is peft.AdaLoraConfig:
        loss = loss + orthogonality(model)
        tensors["loss"] = loss.detach().reshape(1)
    loss.backward()
    for index in range(len(llama.SEQUENCE_LENGTHS)):
        del tensors[f"input_ids_{index}"], tensors[f"labels_{index}"]  # those of ../llama
    if name in TRAINED:
        (folder / "run.yaml").write_text(TRAINED[name] + "\n")
    for key, parameter in model.named_parameters():
        if not parameter.requires_grad or parameter.numel() == 0:
            continue
        if name in TRAINED:
            for what, values in (("value.", parameter.detach()), ("grad.", parameter.grad)):
                for part, tensor in trained_parts(key, values).items():
                    tensors[what + part] = tensor.clone()
            continue
        saved = key.replace("lora_magnitude_vector.default.weight", "lora_magnitude_vector")
        saved = saved.replace("prompt_encoder.default.embedding.weight", "prompt_embeddings")
        saved = saved.replace("prompt_encoder.default.", "").replace(".modules_to_save", "")
        tensors["grad." + saved.replace(".default", "")] = parameter.grad.contiguous()
    safetensors.torch.save_file(tensors, folder / "expected.safetensors")


def eva_batch():
    """The two sequences padded to one length, as a DataLoader hands them over."""
    sequences = llama.sequences()
    length = max(len(ids) for ids, _ in sequences)
    batch = {"input_ids": [], "labels": [], "attention_mask": []}
    for ids, labels in sequences:
        pad = length - len(ids)
        batch["input_ids"].append(torch.nn.functional.pad(ids, (0, pad)))
        batch["labels"].append(torch.nn.functional.pad(labels, (0, pad), value=-100))
        batch["attention_mask"].append(torch.nn.functional.pad(torch.ones_like(ids), (0, pad)))
    return {key: torch.stack(rows) for key, rows in batch.items()}


def write_eva(folder, index, name, options, eva):
    torch.manual_seed(300 + index)
    config = peft.LoraConfig(task_type="CAUSAL_LM", init_lora_weights="eva",
                             eva_config=peft.EvaConfig(tau=0.999999, **eva), **options)
    model = peft.get_peft_model(load_base(name), config)
    peft.initialize_lora_eva_weights(model, [eva_batch()], show_progress_bar=False)
    generator = torch.Generator().manual_seed(400 + index)
    with torch.no_grad():
        for key, parameter in sorted(model.named_parameters()):
            if ".lora_B." in key:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    save(model, folder, base_of(name))
    loss, tensors = llama.forward(Tokens(model.eval()))
    loss.backward()
    for i in range(len(llama.SEQUENCE_LENGTHS)):
        del tensors[f"input_ids_{i}"], tensors[f"labels_{i}"]  # those of ../llama
    for key, parameter in model.named_parameters():
        if parameter.requires_grad:
            tensors["grad." + key.replace(".default", "")] = parameter.grad.contiguous()
    safetensors.torch.save_file(tensors, folder / "expected.safetensors")


def write_starts(folder):
    """A and B of layer 0's q_proj as the starts that factor the weight leave them, alpha 8, rank 4.
    PEFT's LoftQ asks for a GPU: here its decomposition of what bitsandbytes' NF4 takes."""
    tensors = {}
    for start in ("pissa", "olora"):
        model = peft.get_peft_model(load_base("dora"), peft.LoraConfig(
            task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules=["q_proj"],
            init_lora_weights=start))
        layer = model.base_model.model.model.layers[0].self_attn.q_proj
        tensors[start + ".lora_A"] = layer.lora_A.default.weight
        tensors[start + ".lora_B"] = layer.lora_B.default.weight
    weight = load_base("dora").model.layers[0].self_attn.q_proj.weight
    # In rows of whole blocks: bitsandbytes on a CPU decodes others with a wrong absmax.
    codes, state = bitsandbytes.functional.quantize_4bit(weight.data.reshape(-1, 64), blocksize=64,
                                                         quant_type="nf4")
    taken = weight - bitsandbytes.functional.dequantize_4bit(codes, state).reshape(weight.shape)
    factors = peft.utils.loftq_utils._low_rank_decomposition(taken, reduced_rank=4)
    tensors["loftq.lora_A"], tensors["loftq.lora_B"] = factors["R"], factors["L"]
    folder.mkdir()
    safetensors.torch.save_file({k: v.detach().contiguous() for k, v in tensors.items()},
                                folder / "starts.safetensors")


def write_combined(root):
    """Two LoRA adapters (first, second) on tied_gqa, and what add_weighted_adapter makes of them."""
    options = {"first": dict(target_modules=["q_proj", "v_proj"], r=2, lora_alpha=4),
               "second": dict(target_modules=["q_proj", "down_proj"], r=2, lora_alpha=6)}
    model = None
    for index, (name, settings) in enumerate(options.items()):
        config = peft.LoraConfig(task_type="CAUSAL_LM", **settings)
        if model is None:
            model = peft.get_peft_model(load_base("dora"), config, adapter_name=name)
        else:
            model.add_adapter(name, config)
        generator = torch.Generator().manual_seed(500 + index)
        with torch.no_grad():
            for key, parameter in sorted(model.named_parameters()):
                if f".{name}." in key:
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    for name in options:
        model.peft_config[name].base_model_name_or_path = "tied_gqa"
        model.save_pretrained(root, selected_adapters=[name])
        path = root / name / "adapter_config.json"
        saved = json.loads(path.read_text())
        saved["target_modules"] = sorted(saved["target_modules"])
        path.write_text(json.dumps(saved, indent=2) + "\n")
        (root / name / "README.md").unlink(missing_ok=True)
    (root / "README.md").unlink(missing_ok=True)
    tensors = {}
    for kind in ("linear", "cat", "svd"):
        model.add_weighted_adapter(list(options), [0.7, -0.4], kind, combination_type=kind,
                                   svd_rank=3 if kind == "svd" else None)
        model.set_adapter(kind)
        _, computed = llama.forward(model.eval())
        for index in range(len(llama.SEQUENCE_LENGTHS)):
            tensors[f"{kind}.logits_{index}"] = computed[f"logits_{index}"].detach()
    safetensors.torch.save_file(tensors, root / "combined.safetensors")


# Of adalora_schedule: the whole of its section, and the optimizer's learning rate.
SCHEDULE = dict(target_modules=SOME, init_r=4, target_r=2, lora_alpha=8, tinit=1, tfinal=3,
                deltaT=2, total_step=10)
SCHEDULE_RATE = 1e-2


def write_schedule(root):
    """Ten steps of torch's AdamW on both sequences: losses, the triplets kept, and importance."""
    torch.manual_seed(700)
    model = peft.get_peft_model(load_base("adalora"),
                                peft.AdaLoraConfig(task_type="CAUSAL_LM", **SCHEDULE))
    randomize(model, 701, 0.3, {})
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    key = lambda name: name.replace("base_model.model.", "").replace(".default", "")  # noqa: E731
    tensors = {"start." + key(name): p.detach().clone() for name, p in trained}
    optimizer = torch.optim.AdamW([p for _, p in trained], lr=SCHEDULE_RATE, weight_decay=0.0)
    allocator = model.base_model.rankallocator
    losses = []
    for step in range(SCHEDULE["total_step"]):
        loss, _ = llama.forward(model.train())
        loss = loss + orthogonality(model)
        losses.append(loss.detach().reshape(1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        model.base_model.update_and_allocate(step)
        pattern = model.peft_config["default"].rank_pattern or {}
        tensors[f"kept.{step}"] = torch.tensor([m for marks in pattern.values() for m in marks],
                                               dtype=torch.float32)
        entries = [p.detach().reshape(-1) for name, p in trained if ".lora_E." in name]
        tensors[f"zeros.{step}"] = (torch.cat(entries) == 0).float()
        for name, importance in allocator.exp_avg_ipt.items():
            if step == 5:
                tensors["exp_avg_ipt." + key(name)] = importance.clone()
                tensors["exp_avg_unc." + key(name)] = allocator.exp_avg_unc[name].clone()
    tensors["losses"] = torch.cat(losses)
    root.mkdir()
    section = dict(SCHEDULE, method="adalora", orth_reg_weight=0.5)
    (root / "run.yaml").write_text(json.dumps(section) + "\n")
    safetensors.torch.save_file({k: v.contiguous() for k, v in tensors.items()},
                                root / "schedule.safetensors")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--check", action="store_true")
    parser.add_argument("names", nargs="*")
    arguments = parser.parse_args()
    golden_files.check_versions(llama.VERSIONS)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        root = pathlib.Path(scratch)
        trained = {name: (peft.LoraConfig, options, 0.2, NORMS)
                   for name, (_, options) in TRAINED_CASES.items()}
        cases = list(enumerate({**CASES, **GPT2_CASES, **LINEAR_CASES, **trained}.items()))
        cases += enumerate(TOKEN_CASES.items(), len(CASES))
        cases += enumerate(ADALORA_CASES.items(), 50)
        cases += enumerate(QALORA_CASES.items(), 60)
        cases += enumerate(COFT_CASES.items(), 80)
        cases += enumerate(((name, (peft.LoraConfig, options, 0.2, {}))
                            for name, (_, options) in TABLE_CASES.items()), 60)
        for index, (name, case) in cases:
            if not arguments.names or name in arguments.names:
                write_case(root / name, index, name, case)
        for index, (name, (options, eva)) in enumerate(EVA_CASES.items(), 70):
            if not arguments.names or name in arguments.names:
                write_eva(root / name, index, name, options, eva)
        if not arguments.names or "starts" in arguments.names:
            write_starts(root / "starts")
        if not arguments.names or "combined" in arguments.names:
            write_combined(root / "combined")
        if not arguments.names or "adalora_schedule" in arguments.names:
            write_schedule(root / "adalora_schedule")
        golden_files.publish(root, HERE, arguments.check)


if __name__ == "__main__":
    main()
