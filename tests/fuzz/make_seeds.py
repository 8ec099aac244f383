#!/usr/bin/env python3
"""Makes the seed files of tests/fuzz/seeds: small files of the kinds of damage that parsers of model
files, configurations and data were really broken by (counts before bounds, products that wrap,
shapes larger than the data, nesting, aliases, indices out of range, patterns that run away).

    python3 tests/fuzz/make_seeds.py

What each must give stands in seeds/expected.tsv: file, exit code of its error (0: none), a part of
the message. SHARDTUNE_PRINT_SEEDS=1 makes fuzz_seeds_test print what every seed gives.
"""
import json
import struct

import folder_seeds
import text_seeds
from seed_files import write


# safetensors -------------------------------------------------------------------------------------
def safetensors(header, data=b"", length=None):
    text = header if isinstance(header, bytes) else (
        header if isinstance(header, str) else json.dumps(header)).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(shape, begin, end, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def make_safetensors():
    def seed(name, *args, **kwargs):
        write("safetensors", name, safetensors(*args, **kwargs))

    seed("valid", {"__metadata__": {"format": "pt"}, "a": entry([2, 2], 0, 16), "b": entry([3], 16, 22, "F16")},
         bytes(22))
    seed("no_tensors", "{}")
    seed("scalar_and_empty", {"a": entry([], 0, 4), "b": entry([0, 7], 4, 4)}, bytes(4))
    write("safetensors", "shorter_than_a_length", b"\x01\x02\x03")
    seed("length_beyond_the_file", "{}", length=2**63)
    seed("length_all_ones", "{}", length=2**64 - 1)
    seed("length_over_100_mb", "{}", length=100_000_001)
    seed("no_object", "[]")
    seed("space_before_the_brace", " {}")
    seed("product_wraps_64_bits", {"a": entry([2**42 + 1, 2**22], 0, 4)}, bytes(4))
    seed("product_wraps_to_zero", {"a": entry([2**32, 2**32], 0, 0)})
    seed("bytes_wrap", {"a": entry([2**62], 0, 0)})
    seed("extent_truncates_to_one", {"a": entry([2**32 + 1], 0, 4)}, bytes(4))
    seed("shape_larger_than_the_data", {"a": entry([1000, 1000], 0, 4000000)}, bytes(16))
    seed("shape_other_than_the_range", {"a": entry([3], 0, 16)}, bytes(16))
    seed("negative_extent", {"a": entry([-4], 0, 16)}, bytes(16))
    seed("extent_of_minus_0", '{"a":{"dtype":"F32","shape":[2,-0],"data_offsets":[0,0]}}')
    seed("extent_with_a_fraction", {"a": entry([1.5], 0, 4)}, bytes(4))
    seed("extent_of_2_to_the_64", '{"a":{"dtype":"F32","shape":[18446744073709551616],"data_offsets":[0,4]}}',
         bytes(4))
    seed("negative_offset", {"a": entry([1], -4, 0)}, bytes(4))
    seed("range_backwards", {"a": entry([1], 8, 4)}, bytes(8))
    seed("overlap", {"a": entry([2], 0, 8), "b": entry([2], 4, 12)}, bytes(12))
    seed("one_range_twice", {"a": entry([2], 0, 8), "b": entry([2], 0, 8)}, bytes(8))
    seed("hole", {"a": entry([1], 0, 4), "b": entry([1], 8, 12)}, bytes(12))
    seed("data_left_over", {"a": entry([1], 0, 4)}, bytes(12))
    seed("unknown_dtype", {"a": entry([1], 0, 4, "F33")}, bytes(4))
    seed("half_a_byte", {"a": entry([3], 0, 2, "F4")}, bytes(2))
    seed("name_twice", '{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
         bytes(4))
    seed("metadata_with_a_number", {"__metadata__": {"format": 7}, "a": entry([1], 0, 4)}, bytes(4))
    seed("not_utf8", b'{"\xff\xfe":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', bytes(4))
    seed("deep_header", '{"a":' * 200 + "1" + "}" * 200)
    seed("many_extents", {"a": entry([1] * 300, 0, 4)}, bytes(4))


# GGUF --------------------------------------------------------------------------------------------
U32, I32, F32, BOOL, STRING, ARRAY, U64 = 4, 5, 6, 7, 8, 9, 10


def text(value):
    data = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(data)) + data


def pair(key, kind, value):
    return text(key) + struct.pack("<I", kind) + value


def strings(values):
    return struct.pack("<IQ", STRING, len(values)) + b"".join(text(v) for v in values)


def integers(values, kind=I32):
    return struct.pack("<IQ", kind, len(values)) + b"".join(struct.pack("<i", v) for v in values)


def info(name, dims, kind, offset):
    return text(name) + struct.pack("<I", len(dims)) + b"".join(struct.pack("<Q", d) for d in dims) + \
        struct.pack("<IQ", kind, offset)


def gguf(pairs=(), infos=(), data=b"", num_pairs=None, num_tensors=None, version=3, alignment=32):
    out = b"GGUF" + struct.pack("<IQQ", version, len(infos) if num_tensors is None else num_tensors,
                                len(pairs) if num_pairs is None else num_pairs)
    out += b"".join(pairs) + b"".join(infos)
    if infos:
        out += bytes(-len(out) % alignment) + data
    return out


def vocabulary(model="gpt2", tokens=None, types=None, scores=None, merges=("a b",), extra=()):
    tokens = tokens if tokens is not None else ["<unk>", "a", "b", "ab", "<|im_end|>"]
    pairs = [pair("general.architecture", STRING, text("llama")),
             pair("tokenizer.ggml.model", STRING, text(model)),
             pair("tokenizer.ggml.pre", STRING, text("gpt-2")),
             pair("tokenizer.ggml.tokens", ARRAY, strings(tokens)),
             pair("tokenizer.ggml.token_type", ARRAY,
                  integers(types if types is not None else [2] + [1] * (len(tokens) - 2) + [3]))]
    if merges is not None:
        pairs.append(pair("tokenizer.ggml.merges", ARRAY, strings(merges)))
    if scores is not None:
        pairs.append(pair("tokenizer.ggml.scores", ARRAY,
                          struct.pack("<IQ", F32, len(scores)) + b"".join(struct.pack("<f", s) for s in scores)))
    return pairs + list(extra)


def make_gguf():
    def seed(name, *args, **kwargs):
        write("gguf", name, gguf(*args, **kwargs))

    u32 = lambda key, value: pair(key, U32, struct.pack("<I", value))
    valid = vocabulary(extra=[u32("tokenizer.ggml.eos_token_id", 4)])
    seed("valid", valid, [info("x", [32, 2], 8, 0)], bytes(68))
    spm = ["<unk>", "\u2581a", "a", "\u2581", "<0x0A>", "</s>"]
    seed("valid_sentencepiece", vocabulary("llama", spm, [2, 1, 1, 1, 6, 3], [0, -1, -2, -3, 0, 0], None))
    kinds = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
    every = [pair(f"k{kind}", kind, struct.pack(form, 1)) for kind, form in kinds.items()]
    every += [pair(f"a{kind}", ARRAY, struct.pack("<IQ", kind, 2) + struct.pack(form, 1) + struct.pack(form, 0))
              for kind, form in kinds.items()]
    seed("valid_every_type", valid + every)
    llama = [u32("llama." + key, value) for key, value in {
        "context_length": 64, "embedding_length": 32, "block_count": 1, "feed_forward_length": 64,
        "attention.head_count": 4, "attention.head_count_kv": 2, "rope.dimension_count": 8}.items()]
    eps = pair("llama.attention.layer_norm_rms_epsilon", F32, struct.pack("<f", 1e-5))
    seed("valid_llama", valid + llama + [eps])
    seed("valid_llama_linear", valid + llama + [eps, pair("llama.rope.scaling.type", STRING, text("linear")),
                                                pair("llama.rope.scaling.factor", F32, struct.pack("<f", 2.0))])
    for shape, values, name in ((4, [1.0, 1.0, 2.0, 8.0], "valid_llama_divisors"), (3, [1.0] * 3, "divisors_3"),
                                (4, [0.0] * 4, "divisors_0"), (4, [float("nan")] * 4, "divisors_nan")):
        seed(name, valid + llama + [eps], [info("rope_freqs.weight", [shape], 0, 0)],
             struct.pack(f"<{shape}f", *values))
    seed("rope_type_unknown", valid + llama + [eps, pair("llama.rope.scaling.type", STRING, text("spiral"))])
    seed("rope_base_negative", valid + llama + [eps, pair("llama.rope.freq_base", F32, struct.pack("<f", -1.0))])
    seed("rope_scale_linear_nan", valid + llama + [eps, pair("llama.rope.scale_linear", F32, struct.pack("<f", float("nan")))])
    seed("heads_0", valid + [u32("llama.attention.head_count", 0)] + llama)
    seed("value_of_2_to_the_63", [pair("a", U64, struct.pack("<Q", 2**63))])
    seed("tensor_name_not_utf8", valid, [info(b"\xff\xfe", [8], 0, 0)], bytes(32))
    seed("tensor_of_an_undecoded_type", valid, [info("x", [256], 16, 0)], bytes(66))
    write("gguf", "magic_alone", b"GGUF")
    write("gguf", "other_magic", b"GGJT" + bytes(20))
    seed("version_1", valid, version=1)
    seed("version_2_to_the_31", valid, version=2**31)
    seed("tensor_count_2_to_the_63", valid, num_tensors=2**63)
    seed("tensor_count_2_to_the_42", valid, num_tensors=2**42 + 1)
    seed("pair_count_2_to_the_60", valid, num_pairs=2**60)
    seed("key_length_all_ones", [struct.pack("<Q", 2**64 - 1) + b"a"], num_pairs=1)
    seed("string_length_beyond_the_file", [text("a") + struct.pack("<IQ", STRING, 2**40) + b"x"])
    seed("array_count_wraps", [text("a") + struct.pack("<IIQ", ARRAY, U64, 2**61 + 1) + bytes(16)])
    seed("array_of_strings_count", [text("a") + struct.pack("<IIQ", ARRAY, STRING, 2**32) + bytes(16)])
    seed("array_of_arrays", [text("a") + struct.pack("<IIQIQ", ARRAY, ARRAY, 1, U32, 0)])
    seed("array_of_unknown_type", [text("a") + struct.pack("<IIQ", ARRAY, 77, 1) + bytes(8)])
    seed("value_of_unknown_type", [text("a") + struct.pack("<I", 99) + bytes(8)])
    seed("bool_of_2", [pair("a", BOOL, b"\x02")])
    seed("key_twice", [u32("a", 1), u32("a", 1)])
    seed("key_not_utf8", [u32(b"\xff\xfe", 1)])
    seed("no_dimensions_but_4_billion", valid, [text("x") + struct.pack("<IQIQ", 2**32 - 1, 1, 0, 0)])
    seed("five_dimensions", valid, [info("x", [1] * 5, 0, 0)], bytes(4))
    seed("dimension_wraps", valid, [info("x", [2**42 + 1, 2**22], 0, 0)], bytes(32))
    seed("dimension_truncates", valid, [info("x", [2**32 + 32], 0, 0)], bytes(128))
    seed("dimension_of_0", valid, [info("x", [0, 4], 0, 0)], bytes(32))
    seed("dimension_negative", valid, [info("x", [2**64 - 32], 0, 0)], bytes(32))
    seed("row_that_cuts_a_block", valid, [info("x", [33], 8, 0)], bytes(68))
    seed("type_unknown", valid, [info("x", [32], 200, 0)], bytes(128))
    seed("data_beyond_the_file", valid, [info("x", [1024, 1024], 0, 0)], bytes(64))
    seed("offset_beyond_the_file", valid, [info("x", [8], 0, 2**63)], bytes(64))
    seed("offset_not_aligned", valid, [info("x", [8], 0, 7)], bytes(64))
    seed("tensors_overlap", valid, [info("x", [16], 0, 0), info("y", [16], 0, 32)], bytes(128))
    seed("name_twice", valid, [info("x", [8], 0, 0), info("x", [8], 0, 32)], bytes(64))
    seed("name_of_1000_bytes", valid, [info("x" * 1000, [8], 0, 0)], bytes(32))
    seed("alignment_0", valid + [u32("general.alignment", 0)], [info("x", [8], 0, 0)], bytes(32))
    seed("alignment_3", valid + [u32("general.alignment", 3)], [info("x", [8], 0, 0)], bytes(32))
    seed("alignment_2_to_the_31", valid + [u32("general.alignment", 2**31)], [info("x", [8], 0, 0)], bytes(32))
    seed("piece_too_long", vocabulary(tokens=["<unk>", "a" * 5000, "b", "x"]))
    seed("piece_empty", vocabulary(tokens=["<unk>", "", "", "a"]))
    seed("piece_twice", vocabulary(tokens=["<unk>", "a", "a", "x"]))
    seed("piece_not_utf8", vocabulary(tokens=["<unk>", b"\xff\xfe", "b", "x"]))
    seed("no_tokens", vocabulary(tokens=[], types=[]))
    seed("tokens_are_numbers", [pair("general.architecture", STRING, text("llama")),
                                pair("tokenizer.ggml.model", STRING, text("gpt2")),
                                pair("tokenizer.ggml.pre", STRING, text("gpt-2")),
                                pair("tokenizer.ggml.tokens", ARRAY, integers([1, 2, 3]))])
    seed("fewer_types_than_tokens", vocabulary(types=[1]))
    seed("type_out_of_range", vocabulary(types=[1, -7, 99, 1, 1]))
    seed("fewer_scores_than_pieces", vocabulary("llama", spm, [2, 1, 1, 1, 6, 3], [0.0], None))
    seed("score_nan", vocabulary("llama", spm, [2, 1, 1, 1, 6, 3], [float("nan")] * 6, None))
    seed("byte_piece_minus_1", vocabulary("llama", ["<unk>", "<0x-1>", "<0x+F>", "a", "<0xZZ>", "</s>"],
                                          [2, 6, 6, 1, 6, 3], [0.0] * 6, None))
    seed("byte_piece_of_an_ordinary_text", vocabulary("llama", ["<unk>", "a", "b", "c", "d", "</s>"],
                                                      [2, 6, 6, 1, 6, 3], [0.0] * 6, None))
    seed("eos_out_of_range", vocabulary(extra=[u32("tokenizer.ggml.eos_token_id", 4_000_000_000)]))
    seed("eos_just_out_of_range", vocabulary(extra=[u32("tokenizer.ggml.eos_token_id", 5)]))
    seed("eos_negative", vocabulary(extra=[pair("tokenizer.ggml.eos_token_id", I32, struct.pack("<i", -1))]))
    seed("eos_a_string", vocabulary(extra=[pair("tokenizer.ggml.eos_token_id", STRING, text("4"))]))
    seed("merge_without_a_space", vocabulary(merges=["ab"]))
    seed("merge_of_unknown_pieces", vocabulary(merges=["x y"]))
    seed("merges_are_numbers", vocabulary(merges=None, extra=[pair("tokenizer.ggml.merges", ARRAY, integers([1]))]))
    seed("architecture_empty", [p if b"architecture" not in p else
                                pair("general.architecture", STRING, text("")) for p in valid])
    seed("split_rule_unknown", [p if b"gpt-2" not in p else pair("tokenizer.ggml.pre", STRING, text("nobody"))
                                for p in valid])


# tokenizer.json ----------------------------------------------------------------------------------
def tokenizer(model=None, **parts):
    base = {"version": "1.0", "added_tokens": [{"id": 3, "content": "<|im_end|>", "special": True}],
            "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
            "decoder": {"type": "ByteLevel"},
            "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]}}
    base["model"].update(model or {})
    base.update(parts)
    return json.dumps(base)


def make_tokenizer_json():
    def seed(name, content):
        write("tokenizer_json", name, content)

    def split(regex):
        return {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False},
            {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}]}

    seed("valid", tokenizer())
    seed("valid_metaspace", tokenizer(
        {"vocab": {"<unk>": 0, "\u2581": 1, "a": 2, "\u2581a": 3, "<0x0A>": 4}, "merges": [["\u2581", "a"]],
         "byte_fallback": True, "unk_token": "<unk>"}, added_tokens=[], pre_tokenizer=None,
        normalizer={"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "\u2581"}, {
            "type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}]},
        decoder={"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "}, {"type": "ByteFallback"},
            {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]}))
    def steps(*steps):
        return tokenizer(pre_tokenizer={"type": "Sequence", "pretokenizers": [
            *steps, {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}]})

    def cut(pattern, behavior="Isolated", invert=False):
        return {"type": "Split", "pattern": pattern, "behavior": behavior, "invert": invert}

    for behavior in ("Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous"):
        seed("split_" + behavior.lower(), steps(cut({"Regex": "[a-b]|12"}, behavior)))
        seed("split_text_" + behavior.lower(), steps(cut({"String": "a"}, behavior, True)))
    seed("split_empty_matches", steps(cut({"Regex": "x*"})))
    seed("split_digits", steps({"type": "Digits", "individual_digits": True}))
    seed("split_punctuation", steps({"type": "Punctuation", "behavior": "Isolated"}))
    for scheme in ("always", "never", "first", "last"):
        seed("metaspace_" + scheme, tokenizer(
            {"vocab": {"<unk>": 0, "\u2581": 1, "a": 2, "\u2581a": 3}, "merges": [["\u2581", "a"]],
             "unk_token": "<unk>", "fuse_unk": True}, added_tokens=[],
            pre_tokenizer={"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": scheme, "split": False},
            decoder={"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": scheme, "split": False}))
    begin = {"SpecialToken": {"id": "<|im_end|>", "type_id": 0}}
    text_part = {"Sequence": {"id": "A", "type_id": 0}}
    known = {"<|im_end|>": {"id": "<|im_end|>", "ids": [3], "tokens": ["<|im_end|>"]}}

    def template(single, tokens=known):
        return {"type": "TemplateProcessing", "single": single, "pair": [], "special_tokens": tokens}

    seed("valid_template", tokenizer(post_processor={"type": "Sequence", "processors": [
        {"type": "ByteLevel"}, template([begin, text_part, begin])]}))
    seed("template_twice", tokenizer(post_processor={"type": "Sequence", "processors": [
        template([begin, text_part]), template([begin, text_part])]}))
    seed("template_of_two_texts", tokenizer(post_processor=template([text_part, text_part])))
    seed("template_without_a_text", tokenizer(post_processor=template([begin])))
    seed("template_no_list", tokenizer(post_processor=template({"a": 1})))
    seed("template_of_nothing", tokenizer(post_processor=template([{}])))
    seed("template_token_not_listed", tokenizer(post_processor=template([begin, text_part], {})))
    seed("post_processor_unknown", tokenizer(post_processor={"type": "BertProcessing"}))
    seed("merges_no_list", tokenizer({"merges": {"a": "b"}}))
    seed("dropout", tokenizer({"dropout": 0.1}))
    seed("prefix_of_pieces", tokenizer({"continuing_subword_prefix": "##"}))
    seed("ignore_merges", tokenizer({"ignore_merges": True}))
    seed("flag_a_word", tokenizer({"byte_fallback": "yes"}))
    seed("added_no_list", tokenizer(added_tokens={"id": 3}))
    seed("added_a_number", tokenizer(added_tokens=[3]))
    seed("added_null", tokenizer(added_tokens=None))
    seed("added_two_ids", tokenizer(added_tokens=[{"id": 3, "content": "x"}, {"id": 4, "content": "x"}]))
    seed("id_of_10_to_the_18", tokenizer({"vocab": {"a": 10**18}, "merges": []}))
    seed("id_negative", tokenizer({"vocab": {"a": -1, "b": 0}, "merges": []}))
    seed("id_of_2_to_the_32", tokenizer({"vocab": {"a": 2**32, "b": 0}, "merges": []}))
    seed("id_a_string", tokenizer({"vocab": {"a": "0"}, "merges": []}))
    seed("id_twice", tokenizer({"vocab": {"a": 0, "b": 0}, "merges": []}))
    seed("vocab_a_list", tokenizer({"vocab": ["a", "b"]}))
    seed("vocab_empty", tokenizer({"vocab": {}, "merges": []}, added_tokens=[]))
    seed("piece_too_long", tokenizer({"vocab": {"a" * 5000: 0}, "merges": []}))
    seed("piece_outside_the_alphabet", tokenizer({"vocab": {"\u4e2d": 0, "a": 1}, "merges": []}))
    seed("merge_of_unknown_pieces", tokenizer({"merges": ["x y"]}))
    seed("merge_of_three", tokenizer({"merges": ["a b c"]}))
    seed("merge_a_number", tokenizer({"merges": [7]}))
    seed("merge_of_a_list_of_one", tokenizer({"merges": [["a"]]}))
    seed("merge_twice", tokenizer({"merges": ["a b", "a b"]}))
    seed("added_id_of_10_to_the_12", tokenizer(added_tokens=[{"id": 10**12, "content": "x", "special": True}]))
    seed("added_id_negative", tokenizer(added_tokens=[{"id": -5, "content": "x", "special": True}]))
    seed("added_empty", tokenizer(added_tokens=[{"id": 3, "content": "", "special": True}]))
    seed("added_at_a_taken_id", tokenizer(added_tokens=[{"id": 0, "content": "x", "special": True}]))
    seed("added_without_content", tokenizer(added_tokens=[{"id": 3}]))
    seed("pattern_that_runs_away", tokenizer(pre_tokenizer=split("(a+)+$|(\\w+\\s?)+$")))
    seed("pattern_nested_groups", tokenizer(pre_tokenizer=split("(" * 3000 + "a" + ")" * 3000)))
    seed("pattern_of_many_repeats", tokenizer(pre_tokenizer=split("((((a{1,999}){1,999}){1,999}){1,999}){1,999}")))
    seed("pattern_not_closed", tokenizer(pre_tokenizer=split("(a")))
    seed("pattern_of_20_kb", tokenizer(pre_tokenizer=split("a" * 20000)))
    seed("sequences_nested", '{"pre_tokenizer":' + '{"type":"Sequence","pretokenizers":[' * 40 + "]}" * 40 +
         ',"model":{"type":"BPE","vocab":{"a":0},"merges":[]}}')
    seed("normalizer_that_grows", tokenizer(normalizer={"type": "Sequence", "normalizers": [
        {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}] * 60}))
    seed("replace_nothing", tokenizer(normalizer={"type": "Replace", "pattern": {"String": ""}, "content": "x"}))
    seed("byte_piece_minus_1", tokenizer({"vocab": {"<0x-1>": 0, "<0x100>": 1, "a": 2}, "merges": [],
                                          "byte_fallback": True}, pre_tokenizer=None, decoder={"type": "ByteFallback"}))
    seed("unknown_token_not_there", tokenizer({"unk_token": "<unk>"}))
    seed("post_processor_id_out_of_range", tokenizer(post_processor={
        "type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}},
                                                 {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [], "special_tokens": {"<s>": {"id": "<s>", "ids": [4294967296], "tokens": ["<s>"]}}}))
    seed("model_unigram", tokenizer({"type": "Unigram", "vocab": [["a", 0.0]]}))
    seed("model_missing", "{}")
    seed("no_object", "[]")


# tokenizer.model ---------------------------------------------------------------------------------
def varint(value):
    out = b""
    while value > 127:
        out += bytes([value & 127 | 128])
        value >>= 7
    return out + bytes([value])


def field(number, data):
    return varint(number << 3 | 2) + varint(len(data)) + data


def piece(value, score, kind=1):
    return field(1, field(1, value.encode()) + b"\x15" + struct.pack("<f", score) + b"\x18" + varint(kind))


def make_tokenizer_model():
    def seed(name, content):
        write("tokenizer_model", name, content)

    pieces = piece("<unk>", 0, 2) + piece("<s>", 0, 3) + piece("</s>", 0, 3) + piece("<0x0A>", 0, 6) + \
        piece("\u2581", -1) + piece("a", -2) + piece("\u2581a", -3)
    normalizer = field(3, b"\x18\x01\x20\x00\x28\x01")  # a space before, none removed, all marked
    trainer = field(2, b"\x18\x02") + normalizer  # model_type BPE
    seed("valid", pieces + trainer)
    seed("empty", b"")
    seed("pieces_alone", pieces)
    seed("unigram", pieces + field(2, b"\x18\x01") + normalizer)
    seed("varint_without_an_end", b"\xff" * 40)
    seed("varint_of_11_bytes", b"\x0a" + b"\x80" * 10 + b"\x01")
    seed("length_beyond_the_file", b"\x0a" + varint(2**40) + b"abc")
    seed("length_all_ones", b"\x0a" + varint(2**64 - 1) + b"abc")
    seed("groups_nested", b"\x0b" * 5000)
    seed("field_0", b"\x02\x01a")
    seed("wire_type_7", b"\x0f\x01a")
    seed("score_cut", field(1, field(1, b"a") + b"\x15\x00"))
    seed("score_nan", piece("<unk>", 0, 2) + piece("a", float("nan")) + trainer)
    seed("type_out_of_range", piece("<unk>", 0, 2) + piece("a", 0, 99) + trainer)
    seed("piece_too_long", piece("<unk>", 0, 2) + piece("a" * 5000, 0) + trainer)
    seed("piece_twice", piece("<unk>", 0, 2) + piece("a", 0) + piece("a", 0) + trainer)
    seed("piece_not_utf8", piece("<unk>", 0, 2) + field(1, field(1, b"\xff\xfe")) + trainer)
    seed("byte_piece_minus_1", piece("<unk>", 0, 2) + piece("<0x-1>", 0, 6) + trainer)


# data --------------------------------------------------------------------------------------------
def make_data():
    def seed(name, content):
        write("data", name, content)

    seed("valid_completion", '{"prompt": "a", "completion": "b"}\n{"prompt": "c", "completion": "d"}\n')
    seed("valid_messages", '[{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}]')
    seed("valid_alpaca", '{"instruction": "a", "input": "", "output": "b", "history": [["q", "r"]]}\n')
    seed("valid_sharegpt", '{"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}\n')
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": {"x": 1}}}

    def calls(name, value, role="assistant"):
        seed(name, json.dumps({"messages": [
            {"role": "user", "content": "a"}, {"role": role, "content": "b", "tool_calls": value},
            {"role": "tool", "content": "c", "tool_call_id": "1"},
            {"role": "assistant", "content": "d"}]}) + "\n")

    calls("valid_calls", [call, {"name": "g", "arguments": "{\"y\": [2]}"}])
    calls("calls_null", None)
    calls("calls_of_the_user", [call], "user")
    calls("calls_an_object", call)
    calls("call_a_string", ["f"])
    calls("call_without_a_name", [{"function": {"arguments": {}}}])
    calls("call_without_arguments", [{"name": "f"}])
    calls("call_arguments_a_list", [{"name": "f", "arguments": [1]}])
    calls("call_arguments_text_of_a_list", [{"name": "f", "arguments": "[1]"}])
    calls("call_arguments_cut", [{"name": "f", "arguments": "{\"x\": "}])
    calls("call_arguments_nested", [{"name": "f", "arguments": "[" * 3000}])
    seed("valid_text", '{"text": "a"}\n{"text": "b"}\n')
    seed("text_empty", '{"text": ""}\n')
    seed("valid_system_and_tools", json.dumps({"system": "s", "tools": [{"name": "f"}], "messages": [
        {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}) + "\n")
    seed("system_message_and_tools", json.dumps({"tools": "[]", "messages": [
        {"role": "system", "content": "s"}, {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"}]}) + "\n")
    seed("system_twice", json.dumps({"system": "s", "messages": [
        {"role": "system", "content": "t"}, {"role": "assistant", "content": "b"}]}) + "\n")
    seed("no_answer", '{"messages": [{"role": "user", "content": "a"}]}\n')
    seed("answer_empty", '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": ""}]}\n')
    seed("valid_completion_of_messages", json.dumps({
        "prompt": [{"role": "user", "content": "a"}], "completion": [{"role": "assistant", "content": "b"}]}) + "\n")
    seed("completion_of_a_user", json.dumps({
        "prompt": [{"role": "user", "content": "a"}], "completion": [{"role": "user", "content": "b"}]}) + "\n")
    seed("completion_empty", '{"prompt": "a", "completion": ""}\n')
    seed("valid_alpaca_system", '{"instruction": "a", "input": "i", "output": "b", "system": "s"}\n'
         '{"instruction": "", "input": "i", "output": "b"}\n')
    seed("alpaca_empty", '{"instruction": "", "input": "", "output": "b"}\n{"instruction": "a", "output": ""}\n')
    seed("history_no_list", '{"instruction": "a", "output": "b", "history": "q"}\n')
    seed("errors_50", '{"prompt": "a", "completion": ""}\n' * 50)
    seed("empty", "")
    seed("blank_lines", "\n\n  \n")
    seed("line_cut", '{"prompt": "a", "completion": "b"}\n{"prompt": "c", "comple')
    seed("array_not_closed", '[{"prompt": "a", "completion": "b"},')
    seed("array_closed_twice", '[{"prompt": "a", "completion": "b"}]]')
    seed("array_of_numbers", "[1, 2]")
    seed("brackets_closed_first", "[}]{[")
    seed("line_a_number", "7\n")
    seed("nested_10000", '{"prompt": ' + "[" * 10000 + "\n")
    seed("completion_missing", '{"prompt": "a"}\n')
    seed("completion_a_number", '{"prompt": "a", "completion": 7}\n')
    seed("key_twice", '{"prompt": "a", "prompt": "b", "completion": "c"}\n')
    seed("messages_no_list", '{"messages": {"role": "user"}}\n')
    seed("messages_empty", '{"messages": []}\n')
    seed("message_a_string", '{"messages": ["a", "b"]}\n')
    seed("role_unknown", '{"messages": [{"role": "king", "content": "a"}]}\n')
    seed("role_missing", '{"conversations": [{"value": "a"}]}\n')
    seed("value_null", '{"conversations": [{"from": "human", "value": null}, {"from": "gpt", "value": "b"}]}\n')
    seed("history_of_three", '{"instruction": "a", "output": "b", "history": [["q", "r", "s"]]}\n')
    seed("no_known_keys", '{"a": 1}\n')
    seed("not_utf8", b'{"prompt": "\xff\xfe", "completion": "b"}\n')
    seed("zero_byte", b'{"prompt": "a\x00", "completion": "b"}\n')
    seed("half_a_surrogate_pair", '{"prompt": "\\ud800", "completion": "b"}\n')
    seed("byte_order_mark", b'\xef\xbb\xbf{"prompt": "a", "completion": "b"}\n')
    seed("carriage_returns", '{"prompt": "a", "completion": "b"}\r\n\r\n')
    seed("string_with_brackets", '[{"prompt": "]}\\"[{", "completion": "b"}]')


if __name__ == "__main__":
    make_safetensors()
    make_gguf()
    make_tokenizer_json()
    make_tokenizer_model()
    make_data()
    folder_seeds.make_tokenizer_config()
    text_seeds.make_json()
    text_seeds.make_yaml()
    folder_seeds.make_shard_index()
    folder_seeds.make_model_config()
    folder_seeds.make_manifest()
    folder_seeds.make_swap()
