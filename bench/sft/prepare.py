#!/usr/bin/env python3
"""Prepares what docs/sft.md trains on: prepare.py CORPORA FOLDER

FOLDER/glaive.json   the tool calls without records whose first answer begins past 3,000 characters
FOLDER/gpt2          an untrained gpt2 of 6 layers x 256 with a byte-level BPE of 4,096 tokens made
                     from both training texts, and ChatML's tokens
Runs with the Python of tests/parity/setup.sh."""
import json
import pathlib
import sys

import tokenizers
import torch
import transformers

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
FIRST_ANSWER_WITHIN = 3000


def first_answer_begins_at(record):
    begin = len(record.get("tools") or "") + len(record.get("system") or "")
    for turn in record["conversations"]:
        if turn["from"] in ("gpt", "function_call"):
            break
        begin += len(turn["value"])
    return begin


def write_tokenizer(texts, folder):
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=4096, special_tokens=SPECIAL, show_progress=False,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(texts, trainer)
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", bos_token="<|endoftext|>"
    ).save_pretrained(folder)
    return tokenizer.get_vocab_size()


def main():
    corpora, folder = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    records = json.loads((corpora / "glaive_toolcall_en_demo.json").read_text())
    kept = [one for one in records if first_answer_begins_at(one) < FIRST_ANSWER_WITHIN]
    (folder / "glaive.json").write_text(json.dumps(kept, indent=1, ensure_ascii=False))
    texts = [turn["value"] for one in kept for turn in one["conversations"]]
    texts += [one.get("tools") or "" for one in kept]
    for line in (corpora / "gsm8k_train.jsonl").read_text().splitlines():
        texts += list(json.loads(line).values())
    size = write_tokenizer(texts, folder / "gpt2")
    torch.manual_seed(42)
    config = transformers.GPT2Config(
        vocab_size=size, n_positions=1024, n_embd=256, n_layer=6, n_head=8, resid_pdrop=0.0,
        embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=2)
    model = transformers.GPT2LMHeadModel(config)
    model.save_pretrained(folder / "gpt2")
    print(f"glaive.json: {len(kept)} of {len(records)} records; gpt2: "
          f"{sum(p.numel() for p in model.parameters()):,} weights, {size} tokens")


if __name__ == "__main__":
    main()
