"""Writes the golden files of the tokenizer tests with tokenizers 0.23.3 and gguf 0.19.0.

    python make.py MODEL.gguf [CORPORA_FOLDER]

small_*.json    small tokenizers (one vocabulary, several pipelines), as Tokenizer.save writes them
strings.json    ids of some 300 texts under each small tokenizer and under the model's vocabulary
corpora.json    number of lines, number of ids and SHA-256 of the ids (int32, little endian) of every
                line of each corpus file under the model's vocabulary
"""
import hashlib
import json
import pathlib
import random
import struct
import sys
import unicodedata

import gguf
from tokenizers import (AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers,
                        processors, trainers)

HERE = pathlib.Path(__file__).resolve().parent
DIGITS = pre_tokenizers.Digits(individual_digits=True)


def byte_level(prefix=False, regex=True):
    return pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=regex)


def from_gguf(path):
    """Digits and ByteLevel over the vocabulary of the file, independent of our own export."""
    fields = gguf.GGUFReader(path).fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    merges = [tuple(m.split(" ")) for m in fields["tokenizer.ggml.merges"].contents()]
    types = fields["tokenizer.ggml.token_type"].contents()
    tokenizer = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([DIGITS, byte_level()])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False)
                                  for t, kind in zip(tokens, types) if kind == 3])
    return tokenizer


def training_text():
    rng = random.Random(7)
    words = ("the a of and to in is it that we you they have has had not was for on are with as his "
             "this at be from one two house water tree light running walked happily children's "
             "don't I'll we're café naïve über straße Москва привет мир 東京 日本語 مرحبا नमस्ते "
             "αβγ 123 2024 3.14 foo_bar() {x} == != -> <= ... :-) \U0001F600 \U0001F999").split()
    return [" ".join(rng.choices(words, k=12)) + rng.choice([".", "!", "\n", "\n\n  ", "?"])
            for _ in range(400)]


def small_tokenizers():
    base = Tokenizer(models.BPE())
    base.pre_tokenizer = pre_tokenizers.Sequence([DIGITS, byte_level()])
    # A dozen rare bytes stay without a token, as in SmolLM2: they vanish.
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    missing = set("ÀÁñòõö÷øùúûüýþÿ")
    trainer = trainers.BpeTrainer(vocab_size=520, show_progress=False,
                                  initial_alphabet=[c for c in alphabet if c not in missing])
    base.train_from_iterator(training_text(), trainer)
    base.decoder = decoders.ByteLevel()

    def copy():
        return Tokenizer.from_str(base.to_str())

    digits = copy()
    digits.add_special_tokens([AddedToken(t, special=True, normalized=False)
                               for t in ("<|a|>", "<|a|>b", "<|end|>")])
    added = copy()
    added.pre_tokenizer = byte_level()
    added.add_tokens([AddedToken("<l>", lstrip=True, normalized=False),
                      AddedToken("<r>", rstrip=True, normalized=False),
                      AddedToken("word", single_word=True, normalized=False),
                      AddedToken("é!", normalized=True),
                      AddedToken("<lr>", lstrip=True, rstrip=True, normalized=True)])
    added.add_special_tokens([AddedToken("<|end|>", special=True, normalized=True)])
    nfc = copy()
    nfc.normalizer = normalizers.NFC()
    nfc.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=False), byte_level(prefix=True)])
    nfc.add_special_tokens(["<s>", "</s>"])
    nfc.add_tokens([AddedToken("e\u0301!", normalized=True)])
    nfc.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B </s>",
        special_tokens=[("<s>", nfc.token_to_id("<s>")), ("</s>", nfc.token_to_id("</s>"))])
    whole = copy()
    whole.pre_tokenizer = byte_level(regex=False)
    whole.model.ignore_merges = True
    # Tokens that no merges lead to, so that only ignore_merges yields them.
    document = json.loads(whole.to_str())
    for text in ("Ġzq", "Ġqz"):
        document["model"]["vocab"][text] = len(document["model"]["vocab"])
    whole = Tokenizer.from_str(json.dumps(document))
    return {"digits": digits, "added": added, "nfc": nfc, "whole": whole}


def fixed_texts():
    return ["", " ", "  ", "\n", "\t\n  x", "a", "  1", " 1", "1 ", "12 345", "x  \n  y", "a\r\n\r\nb",
            "don't I'LL we're 's 't 'x ' d's'", "I'm 'll 've'd 're", "''s", "'", "a'", " 'm",
            "<|a|>", "x<|a|>b<|a|>c", "<|a|", "<|<|a|>|>", "<|end|><|end|>", "a <l> b <r>  c",
            "  <l>", "<r>   ", "<l> <l>", "<r> <l>", "\u3000<lr>\u00a0 x", "word words sword word",
            "word_", "-word-", "éword", "é!é!", "e\u0301!", "e\u0301 \u00e9", "\u1e9b\u0323 \u212b",
            "</s>ab<s>", " <s> ", " zq", "zq", "a zq", " qz", "½ ² ٣ Ⅷ 一二 ௧௨", "\u00a0\u2003\u2028x",
            "\u0085\u180e\u200b\u200d", "👩‍👩‍👧 🇩🇪 🏳️‍🌈", "In 2024, the model had 135M parameters.",
            "def f(x):\n    return x  # 42\n\n\n\tpass", "\u0000\u0001\u0004\u0006\u007f", "\ufeffx",
            "\U0010ffff\U000f0000 \ue000", "مرحبا بالعالم ١٢٣", "नमस्ते दुनिया १२३", "สวัสดี ๑๒", "日本語テキスト。",
            "a\u0301\u0302\u0303b", "\u0301x", "ﬁ ﬃ ſ",
            "\U00010d41\U00010d42x \U00011bf0 \U00011bc0\U00011bc1 \U00011de1x \U0002ebf0",
            "ǅ ʰ ª º", "_" * 70, "ab" * 40, " " * 50, "7" * 40,
            "the" * 30, "\n" * 33, "é" * 40]


def random_texts(count):
    rng = random.Random(11)
    pools = [range(0x20, 0x7f), range(0x20, 0x7f), range(0x00, 0x20), range(0xa0, 0x250),
             range(0x300, 0x370), range(0x370, 0x530), range(0x590, 0x700), range(0x900, 0xa00),
             range(0x2000, 0x2070), range(0x2150, 0x2190), range(0x3000, 0x3100),
             range(0x4e00, 0x4f00), range(0xac00, 0xad00), range(0x1f300, 0x1f650),
             range(0x1d7ce, 0x1d800), range(0x660, 0x66a), range(0x0, 0x110000)]
    glue = [" ", "  ", "\n", "'s", "'ll", "7", "<|a|>", "<|end|>", " <l>", "<r> ", "word", "é!"]

    def character():
        while True:
            c = rng.choice(rng.choice(pools))
            if not 0xd800 <= c < 0xe000 and unicodedata.category(chr(c)) != "Cn":
                return chr(c)

    texts = []
    while len(texts) < count:
        parts = []
        for _ in range(rng.randint(1, 8)):
            pool = rng.choice(pools)
            run = [c for c in (rng.choice(pool) for _ in range(rng.randint(1, 6)))
                   if not 0xd800 <= c < 0xe000 and unicodedata.category(chr(c)) != "Cn"]
            parts.append("".join(map(chr, run)) or character())
            if rng.random() < 0.6:
                parts.append(rng.choice(glue))
        texts.append("".join(parts))
    return texts


def corpus_entry(tokenizer, path):
    digest, num_ids = hashlib.sha256(), 0
    lines = path.read_bytes().split(b"\n")
    for begin in range(0, len(lines), 512):
        batch = [line.decode("utf-8") for line in lines[begin:begin + 512]]
        for encoding in tokenizer.encode_batch(batch, add_special_tokens=False):
            digest.update(struct.pack(f"<{len(encoding.ids)}i", *encoding.ids))
            num_ids += len(encoding.ids)
    return {"file": path.name, "lines": len(lines), "ids": num_ids, "sha256": digest.hexdigest()}


def main():
    model = from_gguf(sys.argv[1])
    small = small_tokenizers()
    for name, tokenizer in small.items():
        (HERE / f"small_{name}.json").write_text(
            json.dumps(json.loads(tokenizer.to_str()), ensure_ascii=True, separators=(",", ":")))
    rows = []
    for text in fixed_texts() + random_texts(240):
        row = {"text": text, "model": model.encode(text).ids}
        for name, tokenizer in small.items():
            row[name] = tokenizer.encode(text).ids
        for name in ("digits", "added"):
            small[name].encode_special_tokens = True
            row[name + "_plain"] = small[name].encode(text).ids
            small[name].encode_special_tokens = False
        row["decoded"] = small["digits"].decode(row["digits"], skip_special_tokens=False)
        rows.append(row)
    (HERE / "strings.json").write_text(
        "[\n" + ",\n".join(json.dumps(row, separators=(",", ":")) for row in rows) + "\n]\n")
    if len(sys.argv) > 2:
        files = sorted(p for p in pathlib.Path(sys.argv[2]).iterdir() if p.suffix != ".md")
        entries = [corpus_entry(model, path) for path in files]
        (HERE / "corpora.json").write_text(json.dumps(entries, indent=1) + "\n")


if __name__ == "__main__":
    main()
