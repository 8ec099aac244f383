"""Seeds of files that belong to a folder for make_seeds.py: the shard index, config.json, the
manifest of a checkpoint, and what a device does to swap blocks."""
import hashlib
import json
import struct

from seed_files import write


# Shard index: the folder holds "a" and "b" in model-1.safetensors, "c" in model-2.safetensors -----
def make_shard_index():
    shards = {"a": "model-1.safetensors", "b": "model-1.safetensors", "c": "model-2.safetensors"}

    def seed(name, weight_map=None, content=None, **parts):
        if content is None:
            content = json.dumps({"metadata": {"total_size": 18}, "weight_map": weight_map, **parts})
        write("shard_index", name, content)

    seed("valid", shards)
    seed("without_metadata", content=json.dumps({"weight_map": shards}))
    seed("total_size_2_to_the_70", shards, metadata={"total_size": 2**70})
    seed("total_size_negative", shards, metadata={"total_size": -1})
    seed("tensor_in_the_other_shard", {**shards, "c": "model-1.safetensors"})
    seed("tensor_of_no_shard", {**shards, "d": "model-2.safetensors"})
    seed("tensor_not_listed", {"a": "model-1.safetensors"})
    seed("shard_not_there", {**shards, "c": "model-3.safetensors"})
    seed("shard_of_text", {"a": "notes.txt"})
    seed("shard_is_the_index", {"a": "model.safetensors.index.json"})
    for name, path in {"parent": "../model-1.safetensors", "absolute": "/etc/passwd", "dot": ".",
                       "dots": "..", "empty": "", "nul": "model-1.safetensors\0.txt",
                       "slash_last": "model-1.safetensors/", "inside": "sub/../model-1.safetensors",
                       "backslash": "..\\model-1.safetensors", "drive": "C:model-1.safetensors",
                       "case": "MODEL-1.SAFETENSORS", "space_last": "model-1.safetensors ",
                       "long": "m" * 5000, "device": "/dev/zero", "not_utf8_escape": "\ud800",
                       "pickle": "pytorch_model-00001.bin", "percent": "%2e%2e%2fmodel-1.safetensors",
                       "full_width_dots": "\uff0e\uff0e/model-1.safetensors"}.items():
        seed("name_" + name, {"a": path})
    seed("name_a_number", {"a": 1})
    seed("name_null", {"a": None})
    seed("name_a_list", {"a": ["model-1.safetensors"]})
    seed("map_empty", {})
    seed("map_a_list", [["a", "model-1.safetensors"]])
    seed("map_missing", content='{"metadata": {}}')
    seed("map_twice", content='{"weight_map": {"a": "model-1.safetensors"}, "weight_map": {}}')
    seed("tensor_twice", content='{"weight_map": {"a": "model-1.safetensors", "a": "model-2.safetensors"}}')
    seed("shards_300", {f"t{i}": f"s{i}.safetensors" for i in range(300)})
    seed("no_object", content="[]")
    seed("cut", content=json.dumps({"weight_map": shards})[:-20])
    seed("nested_map", content='{"weight_map": ' + '{"a":' * 2000)


# tokenizer_config.json: beside the valid seeds of tokenizer.json (a, b, ab, <|im_end|>) and of
# tokenizer.model (7 pieces) ----------------------------------------------------------------------
def make_tokenizer_config():
    def seed(name, config):
        write("tokenizer_config", name, config if isinstance(config, str) else json.dumps(config))

    def added(entries):
        return {"added_tokens_decoder": entries}

    seed("valid", {"eos_token": None, "add_bos_token": True, "chat_template": "{{ messages }}",
                   "added_tokens_decoder": {"7": {"content": "<x>", "special": True, "lstrip": True,
                                                  "rstrip": True, "single_word": True}}})
    seed("end_of_the_json_alone", {"eos_token": "<|im_end|>", "bos_token": {"content": "<|im_end|>"}})
    seed("end_of_the_model_alone", {"bos_token": "<s>", "eos_token": "</s>", "add_eos_token": True})
    seed("templates_by_name", {"chat_template": [{"name": "tool_use", "template": "x"},
                                                 {"name": "default", "template": "{{ messages }}"}]})
    seed("templates_without_a_default", {"chat_template": [{"name": "x"}, 7, {"template": "y"}]})
    seed("template_a_number", {"chat_template": 7})
    seed("no_object", "[]")
    seed("empty", "")
    seed("cut", '{"eos_token": "<|im')
    seed("eos_unknown", {"eos_token": "<nobody>"})
    seed("eos_a_number", {"eos_token": 2})
    seed("eos_a_list", {"eos_token": ["</s>"]})
    seed("eos_content_a_number", {"eos_token": {"content": 2}})
    seed("eos_of_50_kb", {"eos_token": "x" * 50000})
    seed("flags_are_words", {"add_bos_token": "yes", "add_eos_token": 1})
    seed("added_a_list", added([{"content": "x"}]))
    seed("added_id_a_word", added({"x": {"content": "x"}}))
    seed("added_id_negative", added({"-1": {"content": "x"}}))
    seed("added_id_with_a_rest", added({"7x": {"content": "x"}}))
    seed("added_id_of_2_to_the_32", added({"4294967296": {"content": "x"}}))
    seed("added_id_far_above", added({"2000000000": {"content": "x"}}))
    seed("added_ids_that_climb", added({str(7 + 65535 * i): {"content": f"x{i}"} for i in range(1, 400)}))
    seed("added_ids_with_gaps", added({"9": {"content": "x"}, "4000": {"content": "y"}}))
    seed("added_at_a_piece", added({"5": {"content": "b"}}))
    seed("added_again", added({"1": {"content": "<s>", "special": True}, "01": {"content": "<s>"}}))
    seed("added_twice_one_text", added({"7": {"content": "x"}, "8": {"content": "x"}}))
    seed("added_empty", added({"7": {"content": ""}}))
    seed("added_without_content", added({"7": {}}))
    seed("added_a_string", added({"7": "x"}))
    seed("added_content_a_number", added({"7": {"content": 7}}))
    seed("added_too_long", added({"7": {"content": "x" * 5000}}))
    seed("added_not_utf8_escape", '{"added_tokens_decoder": {"7": {"content": "\\ud800"}}}')
    seed("added_4000", added({str(7 + i): {"content": f"<{i}>"} for i in range(4000)}))
    seed("key_twice", '{"eos_token": null, "eos_token": "</s>"}')


# config.json --------------------------------------------------------------------------------------
LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64,
         "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "vocab_size": 100, "max_position_embeddings": 256,
         "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu",
         "tie_word_embeddings": True, "bos_token_id": 1, "eos_token_id": 2}
GPT2 = {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "n_embd": 64, "n_layer": 2,
        "n_head": 4, "n_positions": 256, "vocab_size": 100, "layer_norm_epsilon": 1e-5,
        "activation_function": "gelu_new"}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 8192}


def make_model_config():
    def seed(name, config, drop=(), **changes):
        config = {key: value for key, value in {**config, **changes}.items() if key not in drop}
        write("model_config", name, json.dumps(config))

    seed("valid_llama", LLAMA)
    seed("valid_llama3_scaling", LLAMA, rope_scaling=LLAMA3)
    seed("valid_linear_scaling", LLAMA, rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5})
    seed("valid_mistral", LLAMA, model_type="mistral", sliding_window=128, head_dim=32)
    seed("valid_qwen2", LLAMA, model_type="qwen2", use_sliding_window=True, sliding_window=64,
         layer_types=["full_attention", "sliding_attention"], max_window_layers=1)
    seed("valid_gpt2", GPT2)
    seed("eos_a_list", LLAMA, eos_token_id=[2, 3, 4])
    for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
                "vocab_size", "head_dim", "intermediate_size", "max_position_embeddings"):
        seed(f"{key}_0", LLAMA, **{key: 0})
        seed(f"{key}_negative", LLAMA, **{key: -1})
        seed(f"{key}_2_to_the_40", LLAMA, **{key: 2**40})
    for key in ("n_embd", "n_layer", "n_head", "n_positions", "n_inner"):
        seed(f"{key}_2_to_the_62", GPT2, **{key: 2**62})
        seed(f"{key}_negative", GPT2, **{key: -2**31})
    seed("hidden_size_2_to_the_64", LLAMA, hidden_size=2**64)
    seed("hidden_size_a_fraction", LLAMA, hidden_size=64.5)
    seed("hidden_size_a_string", LLAMA, hidden_size="64")
    seed("hidden_size_missing", LLAMA, drop=("hidden_size",))
    seed("heads_that_do_not_divide", LLAMA, num_attention_heads=5, num_key_value_heads=5)
    seed("heads_not_a_multiple", LLAMA, num_key_value_heads=3)
    seed("heads_of_keys_above_heads", LLAMA, num_key_value_heads=8)
    seed("head_dim_odd", LLAMA, head_dim=7)
    seed("norm_eps_0", LLAMA, rms_norm_eps=0)
    seed("norm_eps_1e308", LLAMA, rms_norm_eps=1e308)
    seed("rope_theta_0", LLAMA, rope_theta=0)
    seed("rope_theta_negative", LLAMA, rope_theta=-1e4)
    seed("rope_theta_1e308", LLAMA, rope_theta=1e308)
    seed("rope_factor_0", LLAMA, rope_scaling={"rope_type": "linear", "factor": 0})
    seed("rope_factor_negative", LLAMA, rope_scaling={**LLAMA3, "factor": -8})
    seed("rope_factors_equal", LLAMA, rope_scaling={**LLAMA3, "low_freq_factor": 4.0})
    seed("rope_original_0", LLAMA, rope_scaling={**LLAMA3, "original_max_position_embeddings": 0})
    seed("rope_unknown", LLAMA, rope_scaling={"rope_type": "yarn", "factor": 4})
    seed("rope_a_list", LLAMA, rope_scaling=[1, 2])
    seed("rope_type_a_number", LLAMA, rope_scaling={"rope_type": 3})
    seed("rope_partial", LLAMA, partial_rotary_factor=0.5)
    seed("window_negative", LLAMA, model_type="mistral", sliding_window=-1)
    seed("window_2_to_the_40", LLAMA, model_type="mistral", sliding_window=2**40)
    seed("layer_types_too_few", LLAMA, model_type="qwen2", use_sliding_window=True, sliding_window=4,
         layer_types=["full_attention"])
    seed("layer_types_unknown", LLAMA, model_type="qwen2", use_sliding_window=True, sliding_window=4,
         layer_types=["full_attention", "other"])
    seed("layer_types_numbers", LLAMA, model_type="qwen2", use_sliding_window=True, sliding_window=4,
         layer_types=[1, 2])
    seed("window_layers_negative", LLAMA, model_type="qwen2", use_sliding_window=True, sliding_window=4,
         max_window_layers=-5)
    seed("eos_a_string", LLAMA, eos_token_id="2")
    seed("eos_list_of_strings", LLAMA, eos_token_id=["2"])
    seed("eos_negative", LLAMA, eos_token_id=-7)
    seed("eos_above_the_vocabulary", LLAMA, eos_token_id=2**40)
    seed("bos_2_to_the_62", LLAMA, bos_token_id=2**62)
    seed("model_type_missing", LLAMA, drop=("model_type",))
    seed("model_type_unknown", LLAMA, model_type="nobody")
    seed("model_type_a_path", LLAMA, model_type="../../etc/passwd")
    seed("model_type_a_list", LLAMA, model_type=["llama"])
    seed("activation_unknown", LLAMA, hidden_act="exec")
    seed("quantised_elsewhere", LLAMA, quantization_config={"quant_method": "gptq"})
    seed("quantised_a_number", LLAMA, quantization_config=7)
    seed("quantised_bitsandbytes", LLAMA, quantization_config={"quant_method": "bitsandbytes"})
    seed("tie_a_string", LLAMA, tie_word_embeddings="yes")
    seed("code_of_the_model", LLAMA, auto_map={"AutoModel": "evil.py--Model"})
    write("model_config", "no_object", "[]")
    write("model_config", "key_twice", '{"model_type": "llama", "model_type": "gpt2"}')
    write("model_config", "nested_3000", '{"model_type": ' + "[" * 3000)


# Manifest of a checkpoint: the folder holds data.bin with "hello" ---------------------------------
def crc32c(data):
    value = 0xFFFFFFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    return value ^ 0xFFFFFFFF


def compact(value):
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def make_manifest():
    data = b"hello"
    file = {"name": "data.bin", "size": len(data), "sha256": hashlib.sha256(data).hexdigest(),
            "crc32c": [crc32c(data)]}
    body = {"format_version": 1, "step": 50, "seed": 7, "config_sha256": "0" * 64, "base_sha256": "1" * 64,
            "block_bytes": 1 << 20, "files": [file]}

    def sealed(value, digest=None):
        return compact({"manifest": value,
                        "sha256": digest or hashlib.sha256(compact(value).encode()).hexdigest()}) + "\n"

    def seed(name, /, **changes):
        write("manifest", name, sealed({key: value for key, value in {**body, **changes}.items()
                                        if value is not ...}))

    def seed_file(name, /, **changes):
        seed("file_" + name, files=[{key: value for key, value in {**file, **changes}.items()
                                     if value is not ...}])

    seed("valid")
    write("manifest", "checksum_of_another", sealed(body, "0" * 64))
    write("manifest", "checksum_missing", compact({"manifest": body}) + "\n")
    write("manifest", "space_behind", sealed(body) + " ")
    write("manifest", "line_end_missing", sealed(body)[:-1])
    write("manifest", "member_more", sealed(body).replace('{"manifest"', '{"a":1,"manifest"'))
    write("manifest", "body_a_list", sealed([body]))
    write("manifest", "body_missing", "{}")
    write("manifest", "cut", sealed(body)[:60])
    write("manifest", "empty", "")
    write("manifest", "nested_3000", '{"manifest":' * 3000)
    seed("version_2", format_version=2)
    seed("version_negative", format_version=-1)
    seed("version_a_string", format_version="1")
    seed("version_missing", format_version=...)
    seed("step_2_to_the_64", step=2**64)
    seed("step_a_fraction", step=1.5)
    seed("step_negative", step=-1)
    seed("seed_missing", seed=...)
    seed("blocks_of_0_bytes", block_bytes=0)
    seed("files_missing", files=...)
    seed("files_an_object", files={"data.bin": file})
    seed("files_empty", files=[])
    seed("files_twice", files=[file, file])
    seed("files_of_numbers", files=[1, 2])
    seed("files_20_that_are_not_there", files=[{**file, "name": f"x{i}"} for i in range(20)])
    seed_file("size_negative", size=-1)
    seed_file("size_2_to_the_62", size=2**62)
    seed_file("size_2_to_the_63_less_1", size=2**63 - 1, crc32c=[])
    seed_file("size_0", size=0, crc32c=[])
    seed_file("size_of_6", size=6)
    seed_file("blocks_2", crc32c=[crc32c(data), 0])
    seed_file("blocks_none", crc32c=[])
    seed_file("blocks_a_string", crc32c="00")
    seed_file("blocks_of_strings", crc32c=["x"])
    seed_file("block_negative", crc32c=[-1])
    seed_file("block_of_33_bits", crc32c=[crc32c(data) + 2**32])
    seed_file("block_wrong", crc32c=[1])
    seed_file("digest_wrong", sha256="0" * 64)
    seed_file("digest_in_capitals", sha256=file["sha256"].upper())
    seed_file("digest_a_number", sha256=0)
    seed_file("digest_missing", sha256=...)
    for name, path in {"parent": "../data.bin", "absolute": "/etc/passwd", "dot": ".", "empty": "",
                       "nul": "data.bin\0", "manifest": "manifest.json", "device": "/dev/zero",
                       "not_there": "other.bin", "slash": "data.bin/", "long": "d" * 5000}.items():
        seed("file_name_" + name, files=[file, {**file, "name": path}])
    seed_file("name_a_number", name=5)


# Swap: number of regions less 1 (u8); size of each (u16: below 0xC000 times 4, from there its low 14
# bits times 32, plus the low 2 bits); faults of 8 bytes: kind, request that it meets, argument (u16),
# offset (u32). Requests: 0 and 1 write, 2 reads all, then one for each region --------------------------
FLIP, ZERO, LOST, ERROR, SHORT, COPY, CUT, LATE = range(8)
ENOSPC, EIO, EINTR = 28, 5, 4


def make_swap():
    def seed(name, faults=(), sizes=(0x4003, 1, 0, 0xC001 + 4000)):
        write("swap", name, struct.pack("<B", len(sizes) - 1) + b"".join(struct.pack("<H", s) for s in sizes) +
              b"".join(struct.pack("<BBHI", *fault) for fault in faults))

    seed("valid")
    seed("valid_one_byte", sizes=[1])
    seed("valid_nothing", sizes=[0])
    seed("valid_of_3_requests", sizes=[0xFFFF, 0xFFFF, 0xFFFF, 0xFFFF])
    write("swap", "empty", b"")
    seed("flip_first_byte", [(FLIP, 2, 1, 0)])
    seed("flip_in_the_last_block", [(FLIP, 2, 128, 4096 + 4096 + 100000)])
    seed("flip_before_it_is_written", [(FLIP, 1, 1, 0)])
    seed("flip_between_reads", [(FLIP, 3, 1, 0)])
    seed("flip_in_the_padding", [(FLIP, 2, 1, 4090)])
    seed("zeros", [(ZERO, 2, 4096, 0)])
    seed("zeros_of_a_later_read", [(ZERO, 4, 65535, 4096)])
    seed("write_lost", [(LOST, 1, 0, 0)])
    seed("writes_lost", [(LOST, 0, 0, 0), (LOST, 1, 0, 0)])
    seed("write_error", [(ERROR, 0, ENOSPC - 1, 0)])
    seed("second_write_error", [(ERROR, 1, EIO - 1, 0)])
    seed("read_error", [(ERROR, 2, EIO - 1, 0)])
    seed("later_read_error", [(ERROR, 4, EIO - 1, 0)])
    seed("read_interrupted", [(ERROR, 2, EINTR - 1, 0), (ERROR, 3, EINTR - 1, 0)])
    seed("read_short", [(SHORT, 2, 256, 0)])
    seed("read_short_often", [(SHORT, i, 257, 0) for i in range(2, 12)])
    seed("read_short_of_no_page", [(SHORT, 2, 3, 0), (SHORT, 3, 3, 0)])
    seed("read_short_of_no_page_often", [(SHORT, i, 3, 0) for i in range(2, 40)])
    seed("write_short_of_no_page_often", [(SHORT, i, 3, 0) for i in range(1, 40)])
    seed("write_short", [(SHORT, 0, 300, 0), (SHORT, 1, 255, 0)])
    seed("write_of_nothing", [(SHORT, 1, 0, 0)])
    seed("read_of_nothing", [(SHORT, 2, 0, 0)])
    seed("blocks_exchanged", [(COPY, 2, 2, 65536 + 8192)])
    seed("file_cut_inside_of_a_page", [(CUT, 2, 0, 50000)])
    seed("file_cut_to_nothing", [(CUT, 2, 0, 0)])
    seed("results_backwards", [(LATE, i, 0, 0) for i in range(2, 16)], [0xFFFF] * 4)
    seed("results_backwards_with_an_error", [(LATE, i, 0, 0) for i in range(6, 9)] + [(ERROR, 7, EIO - 1, 0)],
         [0xFFFF] * 4)
