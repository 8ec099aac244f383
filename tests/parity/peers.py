"""The reference side: SmolLM2 from the GGUF file as a transformers model in fp32 and as a
tokenizers.Tokenizer, without either library's own GGUF import (it drops the digit split)."""
import os
import pathlib

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"

import gguf
import numpy
import tokenizers
import torch
import transformers

transformers.utils.logging.disable_progress_bar()

LAYER_NAMES = {
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
TOP_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


def model_path():
    """The GGUF file named by SHARDTUNE_MODEL, or the one that set-up fetched; None when absent."""
    cache = os.environ.get("SHARDTUNE_CACHE") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "shardtune")
    path = pathlib.Path(os.environ.get("SHARDTUNE_MODEL")
                        or os.path.join(cache, "SmolLM2-135M-Instruct.Q4_1.gguf"))
    return path if path.is_file() else None


def _field(reader, key):
    return reader.fields[key].contents()


def _hf_name(name):
    stem = name.removesuffix(".weight")
    if stem.startswith("blk."):
        _, layer, part = stem.split(".", 2)
        return f"model.layers.{layer}.{LAYER_NAMES[part]}.weight"
    return TOP_NAMES[stem] + ".weight"


def load_model(path, attention="eager"):
    """LlamaForCausalLM in fp32 with the dequantised weights of a llama GGUF file."""
    reader = gguf.GGUFReader(path)
    heads = _field(reader, "llama.attention.head_count")
    kv_heads = _field(reader, "llama.attention.head_count_kv")
    state = {}
    for tensor in reader.tensors:
        values = gguf.dequantize(tensor.data, tensor.tensor_type).astype(numpy.float32)
        values = torch.from_numpy(values.reshape([int(n) for n in reversed(tensor.shape)]).copy())
        name = _hf_name(tensor.name)
        n = {"q_proj": heads, "k_proj": kv_heads}.get(name.split(".")[-2])
        if n:  # rows of a head: interleaved pairs in the file, halves in transformers
            rows, columns = values.shape
            values = values.reshape(n, rows // n // 2, 2, columns).swapaxes(1, 2)
            values = values.reshape(rows, columns).contiguous()
        state[name] = values
    config = transformers.LlamaConfig(
        vocab_size=state["model.embed_tokens.weight"].shape[0],
        hidden_size=_field(reader, "llama.embedding_length"),
        intermediate_size=_field(reader, "llama.feed_forward_length"),
        num_hidden_layers=_field(reader, "llama.block_count"),
        num_attention_heads=heads, num_key_value_heads=kv_heads,
        max_position_embeddings=_field(reader, "llama.context_length"),
        rms_norm_eps=_field(reader, "llama.attention.layer_norm_rms_epsilon"),
        rope_parameters={"rope_type": "default",
                         "rope_theta": float(_field(reader, "llama.rope.freq_base"))},
        tie_word_embeddings="lm_head.weight" not in state, bos_token_id=1, eos_token_id=2,
        attn_implementation=attention, dtype=torch.float32)
    model = transformers.LlamaForCausalLM(config)
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}, (missing, unexpected)
    model.tie_weights()
    return model.eval()


def load_tokenizer(path):
    """The tokenizer of a GGUF file whose pre is smollm: single digits, then GPT-2's bytes."""
    reader = gguf.GGUFReader(path)
    assert _field(reader, "tokenizer.ggml.pre") == "smollm"
    tokens = _field(reader, "tokenizer.ggml.tokens")
    kinds = _field(reader, "tokenizer.ggml.token_type")
    merges = [tuple(m.split(" ")) for m in _field(reader, "tokenizer.ggml.merges")]
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(
        vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([
        tokenizers.pre_tokenizers.Digits(individual_digits=True),
        tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.add_special_tokens([
        tokenizers.AddedToken(token, normalized=False, special=True)
        for token, kind in zip(tokens, kinds) if kind == 3])
    return tokenizer


def negative_log_likelihood(model, ids, trained=None):
    """Sum over the trained targets of one sequence, and their number; targets start at index 1."""
    ids = torch.as_tensor(ids, dtype=torch.int64)
    keep = torch.ones(len(ids), dtype=torch.bool) if trained is None else torch.as_tensor(trained)
    labels = torch.where(keep, ids, -100)
    with torch.no_grad():
        logits = model(ids[None]).logits[0, -len(ids):].float()  # without virtual tokens
    total = torch.nn.functional.cross_entropy(logits[:-1], labels[1:], ignore_index=-100,
                                              reduction="sum")
    return total.item(), int((labels[1:] != -100).sum())


def quantize_like_bitsandbytes(model):
    """Replaces the weights of all linears but the head by NF4 with double quantisation, dequantised."""
    import bitsandbytes.functional as functional
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and name != "lm_head":
            codes, state = functional.quantize_4bit(module.weight.data, blocksize=64,
                                                    quant_type="nf4", compress_statistics=True)
            module.weight.data = functional.dequantize_4bit(codes, state).to(torch.float32)
