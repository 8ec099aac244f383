#!/usr/bin/env python3
"""Writes the small random checkpoints of mistral, qwen2, gpt2 and linear rope scaling, LoRA
adapters on them and GGUF files, each with what transformers and PEFT compute from them. The batch,
the random values and --check are those of ../llama/make_golden.py. README.md lists what is here.

    python3 tests/golden/families/make_golden.py [--check]
"""
import json
import pathlib
import shutil
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "llama"))
import make_golden as llama  # noqa: E402  (sets HF_HUB_OFFLINE)

import gguf  # noqa: E402
import numpy  # noqa: E402
import peft  # noqa: E402
import safetensors.torch  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402

VARIANTS = {
    # A window of 6 in every layer: shorter than both sequences.
    "mistral_window": ("mistral", dict(sliding_window=6, tie_word_embeddings=False,
                                       rope_parameters=llama.rope(10000.0))),
    # Biases on q, k and v; a window in the second layer alone; tied head.
    "qwen2_tied": ("qwen2", dict(use_sliding_window=True, sliding_window=5, max_window_layers=1,
                                 tie_word_embeddings=True, rope_parameters=llama.rope(1e6))),
    "linear_rope": ("llama", dict(tie_word_embeddings=True, rope_parameters=llama.rope(
        10000.0, rope_type="linear", factor=4.0))),
}
# Of these only the GGUF file and the expected tensors are kept.
GPT2 = dict(n_embd=32, n_layer=2, n_head=4, n_positions=64, vocab_size=96,
            bos_token_id=1, eos_token_id=2)
VARIANTS["gpt2"] = ("gpt2", GPT2)
VARIANTS["gpt2_scaled"] = ("gpt2", dict(GPT2, n_inner=48, scale_attn_by_inverse_layer_idx=True,
                                        tie_word_embeddings=False))
GGUF_VARIANTS = {
    "qwen2_linear": ("qwen2", dict(tie_word_embeddings=False, rope_parameters=llama.rope(
        10000.0, rope_type="linear", factor=2.0))),
}
ADAPTERS = {
    "mistral_lora": ("mistral_window", dict(target_modules="all-linear", r=4, lora_alpha=8)),
    "qwen2_lora": ("qwen2_tied", dict(target_modules=["q_proj", "k_proj", "v_proj", "down_proj"],
                                      r=4, lora_alpha=8)),
    # q, k and v are one linear; PEFT writes fan_in_fan_out for these modules.
    "gpt2_lora": ("gpt2", dict(target_modules=["c_attn", "c_fc", "c_proj"], r=4, lora_alpha=8,
                               fan_in_fan_out=True)),
}
GGUF_NAMES = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
              "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
              "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
              "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
              "attn.c_attn": "attn_qkv", "attn.c_proj": "attn_output", "mlp.c_fc": "ffn_up",
              "mlp.c_proj": "ffn_down", "ln_1": "attn_norm", "ln_2": "ffn_norm"}


def load(folder, **options):
    return transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", **options).eval()


def write_model(folder, index, model_type, options):
    base = dict(attn_implementation="eager") if model_type == "gpt2" else llama.BASE
    config = transformers.AutoConfig.for_model(model_type, **{**base, **options})
    model = transformers.AutoModelForCausalLM.from_config(config)
    llama.randomize(model, 300 + index, 0.25)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".ln_" in name and name.endswith("weight"):
                parameter += 1.0
    model.save_pretrained(folder)
    with torch.no_grad():
        _, tensors = llama.forward(load(folder))
    safetensors.torch.save_file(tensors, folder / "expected.safetensors")


def write_adapter(folder, index, base, options):
    model = peft.get_peft_model(load(folder.parent / base),
                                peft.LoraConfig(task_type="CAUSAL_LM", **options))
    generator = torch.Generator().manual_seed(400 + index)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    model.peft_config["default"].base_model_name_or_path = base
    model.save_pretrained(folder)
    (folder / "README.md").unlink()
    path = folder / "adapter_config.json"
    saved = json.loads(path.read_text())
    saved["target_modules"] = sorted(saved["target_modules"])
    path.write_text(json.dumps(saved, indent=2) + "\n")
    loss, tensors = llama.forward(model.eval())
    loss.backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            tensors["grad." + name.replace(".default", "")] = parameter.grad.contiguous()
    safetensors.torch.save_file(tensors, folder / "expected.safetensors")


def gguf_name(name):
    whole = {"model.embed_tokens.weight": "token_embd.weight",
             "model.norm.weight": "output_norm.weight", "lm_head.weight": "output.weight",
             "transformer.wte.weight": "token_embd.weight",
             "transformer.wpe.weight": "position_embd.weight",
             "transformer.ln_f.weight": "output_norm.weight",
             "transformer.ln_f.bias": "output_norm.bias"}
    if name in whole:
        return whole[name]
    _, _, layer, part = name.split(".", 3)
    path, suffix = part.rsplit(".", 1)
    return f"blk.{layer}.{GGUF_NAMES[path]}.{suffix}"


def write_gguf(path, folder, architecture, divisors=None, scaling=None):
    """As llama.cpp's converter: q and k of llama in interleaved pairs, llama3's divisors a tensor."""
    config = transformers.AutoConfig.from_pretrained(folder)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    if architecture == "gpt2":
        writer.add_feed_forward_length(4 * config.n_embd)
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
    else:
        writer.add_feed_forward_length(config.intermediate_size)
        writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    if scaling is not None:
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(scaling)
    if divisors is not None:
        writer.add_tensor("rope_freqs.weight", divisors.astype(numpy.float32))
    for name, tensor in sorted(safetensors.torch.load_file(folder / "model.safetensors").items()):
        values = tensor.float().numpy()
        if architecture == "gpt2" and values.ndim == 2 and ".c_" in name:
            values = values.T
        for part in ("q_proj", "k_proj"):
            if architecture == "llama" and part in name:
                count = getattr(config, {"q_proj": "num_attention_heads",
                                         "k_proj": "num_key_value_heads"}[part])
                rows = values.shape[0]
                values = values.reshape(count, 2, rows // count // 2, -1).swapaxes(1, 2).reshape(
                    values.shape)
        writer.add_tensor(gguf_name(name), numpy.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def check_gguf(path, folder):
    """transformers reads the same weights from the file as from the folder."""
    # Of gpt2's sizes transformers reads some from its defaults, hence the configuration.
    config = transformers.AutoConfig.from_pretrained(folder)
    theirs = load(path.parent, gguf_file=path.name, config=config).state_dict()
    for name, tensor in load(folder).state_dict().items():
        assert torch.equal(theirs[name], tensor), name


def write_all(root):
    here = pathlib.Path(__file__).resolve().parent
    for index, (name, (model_type, options)) in enumerate(VARIANTS.items()):
        write_model(root / name, index, model_type, options)
    for index, (name, (base, options)) in enumerate(ADAPTERS.items()):
        write_adapter(root / name, index, base, options)
    for index, (name, (model_type, options)) in enumerate(GGUF_VARIANTS.items()):
        folder = root / name
        write_model(folder, 50 + index, model_type, options)
        write_gguf(root / f"{name}.gguf", folder, "qwen2", scaling=2.0)
        check_gguf(root / f"{name}.gguf", folder)
        (folder / "expected.safetensors").rename(root / f"{name}.expected.safetensors")
        shutil.rmtree(folder)
    write_gguf(root / "gpt2.gguf", root / "gpt2", "gpt2")
    check_gguf(root / "gpt2.gguf", root / "gpt2")
    scaled = here.parent / "llama" / "llama3_rope"
    model = load(scaled)
    plain = 10000.0 ** (-torch.arange(0, 8, 2).float() / 8)
    divisors = (plain / model.model.rotary_emb.inv_freq).numpy()
    write_gguf(root / "llama3_rope.gguf", scaled, "llama", divisors=divisors)
    check_gguf(root / "llama3_rope.gguf", scaled)


def main():
    with tempfile.TemporaryDirectory() as scratch:
        llama.run(write_all, pathlib.Path(scratch), pathlib.Path(__file__).resolve().parent)


if __name__ == "__main__":
    main()
