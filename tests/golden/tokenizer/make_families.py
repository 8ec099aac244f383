"""Writes the golden files of split patterns and of SentencePiece's BPE, with tokenizers 0.23.3, gguf
0.19.0 and sentencepiece 0.2.3.

    python make_families.py [VOCABULARIES_FOLDER CORPORA_FOLDER]

splits.json        byte lengths of the pieces of some 300 texts under each pre_tokenizer
small_spm.model    a small SentencePiece BPE model with byte fallback
spm.json           ids of the texts under it, and under tokenizer.json files with its vocabulary
vocabularies.json  number of ids and SHA-256 of the ids of all lines of the corpora under the
                   vocabularies of GGUF files
"""
import hashlib
import io
import json
import pathlib
import struct
import sys

import gguf
import sentencepiece
from tokenizers import (AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers,
                        processors)

import make

HERE = pathlib.Path(__file__).resolve().parent
CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|" + TAIL
QWEN2 = CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|" + TAIL
HEAD, REST = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
TEKKEN = (rf"[^\r\n\p{{L}}\p{{N}}]?{HEAD}*{REST}+|[^\r\n\p{{L}}\p{{N}}]?{HEAD}+{REST}*|\p{{N}}|"
          r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")
BLOOM = " ?[^(\\s|[.,!?…。，、।۔،])]+"
# A pattern that is none of ours: cl100k's.
OTHER = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}|"
         r" ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+")


def split(pattern, behavior="isolated", invert=False):
    return pre_tokenizers.Split(Regex(pattern), behavior, invert)


def pre_tokenizers_by_name():
    digits = pre_tokenizers.Digits(individual_digits=True)
    return {
        "llama3": split(LLAMA3), "qwen2": split(QWEN2, "removed", True), "tekken": split(TEKKEN),
        "bloom": split(BLOOM), "other": split(OTHER),
        "removed": split(r"\s+", "removed"), "previous": split(r"[,.!]", "merged_with_previous"),
        "next": split(r"\p{Lu}", "merged_with_next"), "contiguous": split(r"\d", "contiguous"),
        "literal": pre_tokenizers.Split(" ", "merged_with_previous"),
        "deepseek": pre_tokenizers.Sequence([
            split("[\r\n]"), split(r"\s?\p{L}+"), split(r"\s?\p{P}+"), split("[一-龥ࠀ-一가-퟿]+"), digits]),
        "punctuation": pre_tokenizers.Sequence(
            [pre_tokenizers.Punctuation("contiguous"), split("[0-9][0-9][0-9]")]),
    }


def texts():
    return (make.fixed_texts() + make.random_texts(240) +
            ["HELLO'S I'LL 'ſ 'S x'RE ''VE'd", "12345678 ½²³ ١٢٣٤", "a\n\n \nb\r\n c \r", "\t\tx  \u00a0y",
             "HelloWorld fooBAR ÉcoleÉ aªBʰC ªªAB", "\u0301A\u0301a B\u0301c \u0301\u0301", "!!/\n/x //\r\n//",
             "a.b,c। d۔ (e|f) g!?h ...i", "«x» $1+2=3 <t>^~|`", "1a22b333c4444", "x" * 300, " " * 99 + "y"])


def write_splits():
    names = pre_tokenizers_by_name()
    rows = []
    for text in texts():
        row = {"text": text}
        for name, step in names.items():
            row[name] = [len(piece.encode()) for piece, _ in step.pre_tokenize_str(text)]
        rows.append(row)
    steps = {name: json.loads(step.__getstate__()) for name, step in names.items()}
    (HERE / "splits.json").write_text(
        "{\"steps\": " + json.dumps(steps) + ",\n\"rows\": [\n" +
        ",\n".join(json.dumps(row, separators=(",", ":")) for row in rows) + "\n]}\n")


def train_spm():
    out = io.BytesIO()
    sentences = [line for line in make.training_text() for line in line.split("\n") if line.strip()]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences), model_writer=out, model_type="bpe", vocab_size=620,
        byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False,
        character_coverage=0.98, split_digits=True, user_defined_symbols=["<|im_end|>"],
        num_threads=1)
    (HERE / "small_spm.model").write_bytes(out.getvalue())


def spm_pieces():
    model = sentencepiece.SentencePieceProcessor(model_file=str(HERE / "small_spm.model"))
    return model, [(model.id_to_piece(i), model.get_score(i)) for i in range(model.get_piece_size())]


def converted(pieces, control):
    """As converters to tokenizer.json do it."""
    vocab = {text: i for i, (text, _) in enumerate(pieces)}
    merges = []
    for text, score in pieces:
        if text in control or text.startswith("<0x"):
            continue
        local = [(text[:k], text[k:]) for k in range(1, len(text))
                 if text[:k] in vocab and text[k:] in vocab]
        merges += [(pair, score) for pair in sorted(local, key=lambda p: (vocab[p[0]], vocab[p[1]]))]
    merges = [pair for pair, _ in sorted(merges, key=lambda m: m[1], reverse=True)]
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True,
                                     byte_fallback=True))
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in control])
    return tokenizer


def spm_variants(pieces):
    variants = {}
    for name in ("prepend", "first", "never", "words"):
        tokenizer = converted(pieces, ["<unk>", "<s>", "</s>"])
        tokenizer.add_tokens([AddedToken("<|im_end|>", normalized=False)])
        strip = [decoders.Strip(" ", 1, 0)] if name != "never" else []
        tokenizer.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()] + strip)
        if name == "prepend":
            tokenizer.normalizer = normalizers.Sequence(
                [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
            tokenizer.post_processor = processors.TemplateProcessing(
                single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)])
        elif name == "never":
            tokenizer.normalizer = normalizers.Replace(" ", "▁")
            tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
        else:
            scheme = "always" if name == "words" else name
            tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", scheme, split=name == "words")
            tokenizer.decoder = decoders.Metaspace("▁", scheme)
        variants[name] = tokenizer
    return variants


def write_spm():
    train_spm()
    model, pieces = spm_pieces()
    variants = spm_variants(pieces)
    rows = []
    for text in texts()[::2]:
        if "\0" in text:  # ends a text in SentencePiece
            continue
        row = {"text": text}
        if not any(t in text for t in ("<s>", "</s>", "<unk>")):
            row["model"] = model.encode(text)
        for name, tokenizer in variants.items():
            row[name] = tokenizer.encode(text).ids
            if name in ("prepend", "first"):
                row[name + "_decoded"] = tokenizer.decode(row[name], skip_special_tokens=False)
        rows.append(row)
    parts = {}
    for name, tokenizer in variants.items():
        document = json.loads(tokenizer.to_str())
        parts[name] = {k: document[k] for k in
                       ("normalizer", "pre_tokenizer", "post_processor", "decoder")}
    (HERE / "spm.json").write_text(
        "{\"parts\": " + json.dumps(parts) + ",\n\"rows\": [\n" +
        ",\n".join(json.dumps(row, separators=(",", ":")) for row in rows) + "\n]}\n")


def byte_level_from_gguf(fields, steps, normalizer=None, whole=False):
    tokens = fields["tokenizer.ggml.tokens"].contents()
    types = fields["tokenizer.ggml.token_type"].contents()
    merges = [tuple(m.split(" ")) for m in fields["tokenizer.ggml.merges"].contents()]
    tokenizer = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=merges,
                                     ignore_merges=whole))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    if normalizer:
        tokenizer.normalizer = normalizer
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False)
                                  for t, kind in zip(tokens, types) if kind == 3])
    tokenizer.add_tokens([AddedToken(t, normalized=False) for t, kind in zip(tokens, types) if kind == 4])
    return tokenizer


def vocabulary(path, name):
    fields = gguf.GGUFReader(path).fields
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    gpt2 = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if name == "qwen2":
        return byte_level_from_gguf(fields, [split(QWEN2), plain], normalizers.NFC())
    if name == "falcon":
        return byte_level_from_gguf(fields, [pre_tokenizers.Punctuation("contiguous"), gpt2,
                                             split("[0-9][0-9][0-9]")])
    tokens = fields["tokenizer.ggml.tokens"].contents()
    scores = fields["tokenizer.ggml.scores"].contents()
    tokenizer = converted(list(zip(tokens, scores)), ["<unk>", "<s>", "</s>"])
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return tokenizer


def write_vocabularies(folder, corpora):
    entries = []
    for name in ("qwen2", "falcon", "llama-spm"):
        tokenizer = vocabulary(f"{folder}/ggml-vocab-{name}.gguf", name)
        for path in sorted(p for p in pathlib.Path(corpora).iterdir() if p.suffix != ".md"):
            entries.append({"vocabulary": name, **make.corpus_entry(tokenizer, path)})
    (HERE / "vocabularies.json").write_text(json.dumps(entries, indent=1) + "\n")


if __name__ == "__main__":
    write_splits()
    write_spm()
    if len(sys.argv) > 2:
        write_vocabularies(sys.argv[1], sys.argv[2])
