#!/usr/bin/env python3
"""Writes a random llama of some thousand weights with a byte-level tokenizer, and a few records, with
Python's standard library alone: make_random_model.py FOLDER"""
import array
import json
import pathlib
import random
import struct
import sys

HIDDEN, INNER, LAYERS, HEADS, KV_HEADS, VOCAB = 32, 64, 2, 4, 2, 260


def byte_alphabet():
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    other = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(other)) for byte in range(256)]


def tensors():
    kv = HIDDEN // HEADS * KV_HEADS
    yield "model.embed_tokens.weight", [VOCAB, HIDDEN]
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}."
        for name, rows in (("q", HIDDEN), ("k", kv), ("v", kv), ("o", HIDDEN)):
            yield f"{prefix}self_attn.{name}_proj.weight", [rows, HIDDEN]
        yield f"{prefix}mlp.gate_proj.weight", [INNER, HIDDEN]
        yield f"{prefix}mlp.up_proj.weight", [INNER, HIDDEN]
        yield f"{prefix}mlp.down_proj.weight", [HIDDEN, INNER]
        yield f"{prefix}input_layernorm.weight", [HIDDEN]
        yield f"{prefix}post_attention_layernorm.weight", [HIDDEN]
    yield "model.norm.weight", [HIDDEN]


def main():
    folder = pathlib.Path(sys.argv[1])
    folder.mkdir(parents=True)
    generator = random.Random(1)
    header, data = {}, bytearray()
    for name, shape in tensors():
        count = shape[0] * (shape[1] if len(shape) > 1 else 1)
        middle, width = (1.0, 0.05) if "norm" in name else (0.0, 0.1)
        begin = len(data)
        data += array.array("f", (generator.gauss(middle, width) for _ in range(count))).tobytes()
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [begin, len(data)]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)
    (folder / "config.json").write_text(json.dumps({
        "model_type": "llama", "hidden_act": "silu", "hidden_size": HIDDEN,
        "intermediate_size": INNER, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS, "vocab_size": VOCAB, "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": True,
        "eos_token_id": 258}))
    level = {"type": "ByteLevel", "add_prefix_space": False}
    (folder / "tokenizer.json").write_text(json.dumps({
        "version": "1.0", "pre_tokenizer": level, "decoder": level,
        "added_tokens": [{"id": 256 + i, "content": token, "special": True} for i, token in
                         enumerate(("<|endoftext|>", "<|im_start|>", "<|im_end|>"))],
        "model": {"type": "BPE", "merges": [],
                  "vocab": {token: i for i, token in enumerate(byte_alphabet())}}}))
    (folder / "tokenizer_config.json").write_text(
        '{"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}')
    (folder / "train.jsonl").write_text("".join(
        json.dumps({"prompt": f"say {i}", "completion": f"{i} it is"}) + "\n" for i in range(8)))


main()
