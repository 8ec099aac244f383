#!/usr/bin/env python3
"""Predicted and measured peak memory of 48 runs, as a table in docs/memory.md.

    bench/memory/run.py --program build/release/launch/shardtune --smollm2 FILE.gguf [--only WORD]

Every run makes two steps through launch/run and says itself what it predicted for each rank and
what the kernel measured (ru_maxrss). The 1.1B Llama shape is written here with random weights.
Results gather in WORK/results.json, so that the runs may be made in several calls; the table holds
those that were made. Needs Python 3.11, nothing else.
"""
import argparse
import datetime
import json
import math
import os
import pathlib
import random
import struct
import subprocess
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
import common  # noqa: E402

BEGIN, END = "<!-- bench/memory/run.py -->", "<!-- end -->"
BOUND = (0.97, 1.10)  # predicted / measured of every rank (R37: within +10% and -3%)


def byte_tokens():
    """GPT-2's printable character of every byte."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in plain else chr(next(others)) for byte in range(256)]


def write_tokenizer(folder):
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    split = {"type": "ByteLevel", "add_prefix_space": False}
    document = {
        "version": "1.0",
        "added_tokens": [{"id": 256 + i, "content": text, "special": True}
                         for i, text in enumerate(special)],
        "pre_tokenizer": split, "decoder": split,
        "model": {"type": "BPE", "vocab": {t: i for i, t in enumerate(byte_tokens())},
                  "merges": []}}
    (folder / "tokenizer.json").write_text(json.dumps(document))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}))


def random_block(count=1 << 19, deviation=0.02):
    """bf16 values of a normal distribution, as bytes."""
    generator = random.Random(7)
    # A prime, so that no two rows of a matrix are the same ones.
    values = [generator.gauss(0.0, deviation) for _ in range(4099)]
    words = [struct.unpack("<I", struct.pack("<f", value))[0] >> 16 for value in values]
    return struct.pack(f"<{len(words)}H", *words) * (count // len(words))


# hidden, inner, layers, heads, key-value heads, vocabulary
LLAMA_1B = (2048, 5632, 22, 32, 4, 32000)  # TinyLlama's: 1.1B weights, 2.2 GB in bf16
LLAMA_7B = (4096, 11008, 32, 32, 32, 32000)  # Llama-2's: 6.7B weights, 13.5 GB in bf16


NF4 = [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
       -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
       0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
       0.7229568362236023, 1.0]


def nf4_parts(name, shape):
    """The tensors of a linear as bitsandbytes keeps it, (name, dtype, shape, bytes to repeat): codes
    straight from the generator, absmax that makes them normal with a deviation of some 0.02."""
    generator = random.Random(13)
    state = json.dumps({"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": shape})
    absmax = [generator.uniform(0.04, 0.06) for _ in range(4099)]
    numel = shape[0] * shape[1]
    return [(name, "U8", [numel // 2, 1], generator.randbytes((1 << 20) + 7)),
            (name + ".absmax", "F32", [numel // 64], struct.pack("<4099f", *absmax)),
            (name + ".quant_map", "F32", [16], struct.pack("<16f", *NF4)),
            (name + ".quant_state.bitsandbytes__nf4", "U8", [len(state)], state.encode())]


def llama_shapes(sizes):
    hidden, inner, layers, heads, kv_heads, vocab = sizes
    kv = hidden // heads * kv_heads
    shapes = {"model.embed_tokens.weight": [vocab, hidden], "lm_head.weight": [vocab, hidden],
              "model.norm.weight": [hidden]}
    for i in range(layers):
        for name, shape in {
                "self_attn.q_proj": [hidden, hidden], "self_attn.k_proj": [kv, hidden],
                "self_attn.v_proj": [kv, hidden], "self_attn.o_proj": [hidden, hidden],
                "mlp.gate_proj": [inner, hidden], "mlp.up_proj": [inner, hidden],
                "mlp.down_proj": [hidden, inner], "input_layernorm": [hidden],
                "post_attention_layernorm": [hidden]}.items():
            shapes[f"model.layers.{i}.{name}.weight"] = shape
    return shapes


def write_llama(folder, sizes, in_nf4=False):
    """A model of a shape with random weights: all in bf16, or the linears as NF4 codes."""
    if (folder / "model.safetensors").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    hidden, inner, layers, heads, kv_heads, vocab = sizes
    (folder / "config.json").write_text(json.dumps({
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_act": "silu",
        "hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": kv_heads, "vocab_size": vocab,
        "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "tie_word_embeddings": False, "eos_token_id": 258}))
    write_tokenizer(folder)
    dense = random_block()
    tensors = []
    for name, shape in llama_shapes(sizes).items():
        is_linear = name.endswith("_proj.weight")
        tensors += nf4_parts(name, shape) if in_nf4 and is_linear else [(name, "BF16", shape, dense)]
    header, offset = {}, 0
    for name, dtype, shape, _ in tensors:
        size = {"U8": 1, "BF16": 2, "F32": 4}[dtype] * math.prod(shape)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    partial = folder / "model.safetensors.partial"
    with open(partial, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, _, _, block in tensors:
            begin, end = header[name]["data_offsets"]
            while begin < end:
                begin += file.write(block[:end - begin])
    partial.rename(folder / "model.safetensors")


def write_text(path):
    generator = random.Random(11)
    words = "the model reads every line and learns which word may follow another one".split()
    path.write_text(" ".join(generator.choice(words) for _ in range(60000)))


def runs():
    """(name, model, ranks, options) of the runs."""
    def smollm2(name, ranks=1, stage=0, method="nf4", length=256, micro=1, **more):
        return (f"SmolLM2 {name}", "smollm2", ranks, dict(stage=stage, method=method,
                length=length, micro=micro, **more))

    def llama(name, ranks=1, stage=0, method="nf4", length=128, micro=1, **more):
        return (f"1.1B {name}", "llama", ranks, dict(stage=stage, method=method, length=length,
                micro=micro, **more))

    param, states = dict(offload=("param",)), dict(offload=("optimizer",))
    both = dict(offload=("optimizer", "param"))
    return [
        *[smollm2("nf4", ranks, stage) for ranks in (1, 2, 4) for stage in (0, 3)],
        *[smollm2("nf4", 2, stage) for stage in (1, 2)],
        smollm2("nf4", 4, 2),
        smollm2("nf4, recompute", 2, 3, length=512, micro=2, recompute=True),
        smollm2("nf4, both offloads", 1, 2, **both),
        smollm2("nf4, both offloads", 2, 3, **both),
        smollm2("nf4, both offloads", 4, 3, **both),
        smollm2("nf4, offload_param", 1, 0, **param),
        smollm2("nf4, offload_param", 2, 2, **param),
        smollm2("nf4, offload_param", 2, 3, **param),
        smollm2("nf4, offload_optimizer", 1, 0, **states),
        smollm2("nf4, offload_optimizer", 2, 2, **states),
        smollm2("nf4, offload_optimizer", 2, 3, **states),
        smollm2("nf4, both offloads, a save in each step", 2, 3, save_steps=1, **both),
        smollm2("dense, both offloads, recompute", 1, 0, "none", recompute=True, **both),
        smollm2("dense", 2, 3, "none"),
        smollm2("nf4, recompute", 1, 0, length=512, micro=2, recompute=True),
        smollm2("nf4", 2, 2, length=512, micro=2),
        smollm2("dense", 1, 0, "none"),
        smollm2("dense, float32", 1, 0, "none", dtype="float32"),
        smollm2("int8", 2, 1, "int8"),
        smollm2("nf4, float32", 1, 0, dtype="float32"),
        smollm2("nf4", 1, 0, length=128),
        smollm2("nf4", 1, 0, length=2048),
        smollm2("nf4, recompute", 1, 0, length=2048, recompute=True),
        smollm2("nf4", 1, 0, length=128, micro=8),
        smollm2("nf4, 8 micro-batches a step", 1, 2, micro=1, batch=8),
        smollm2("nf4, 8 micro-batches a step", 2, 3, micro=1, batch=8),
        smollm2("nf4, lora_rank 64", 2, 2, rank=64),
        llama("nf4"),
        llama("nf4, recompute", length=512, recompute=True),
        llama("nf4", 2, 2),
        llama("nf4", 2, 3),
        llama("nf4, recompute", 4, 3, recompute=True),
        llama("nf4, offload_optimizer", 2, 2, **states),
        llama("nf4, offload_param", 1, 0, **param),
        llama("nf4, both offloads", 1, 0, recompute=True, **both),
        llama("nf4, both offloads", 2, 3, **both),
        llama("dense", 1, 0, "none"),
        llama("dense, recompute", 4, 3, "none", recompute=True),
        llama("int8", 1, 0, "int8"),
        llama("nf4, lora_rank 64", 2, 1, rank=64),
    ]


def zero_optimization(work, options):
    text = f"stage: {options['stage']}"
    for what in options.get("offload", ()):
        text += f", offload_{what}: {{device: nvme, nvme_path: \"{work / 'nvme'}\"}}"
    return text


def configuration(work, models, model, ranks, options):
    batch = options.get("batch", options["micro"] * ranks)
    quantization = f"method: {options['method']}"
    if options["method"] == "nf4":
        quantization += ", double_quant: true"
    return f"""\
model: {{model_name_or_path: "{models[model]}", compute_dtype: {options.get('dtype', 'auto')}}}
quantization: {{{quantization}}}
adapter: {{lora_rank: {options.get('rank', 16)}, lora_alpha: 32}}
data:
  train: [{{path: "{work / 'text.txt'}", format: text}}]
  chat_template: none
  max_length: {options['length']}
training:
  objective: pretrain
  max_steps: 2
  micro_batch_size: {options['micro']}
  global_batch_size: {batch}
  gradient_checkpointing: {str(options.get('recompute', False)).lower()}
parallel: {{zero_optimization: {{{zero_optimization(work, options)}}}}}
checkpoint: {{output_dir: "{work / 'run'}", save_steps: {options.get('save_steps', 50)}}}
"""


def run(program, work, models, model, ranks, options):
    config = work / "run.yaml"
    config.write_text(configuration(work, models, model, ranks, options))
    result, _ = common.train(config, work, ranks, program)
    return {"predicted": result["rank_predicted_bytes"], "measured": result["rank_peak_rss_bytes"],
            "pool": result["pool_peak_bytes"], "predicted_pool": result["predicted_pool_bytes"],
            "moved": result["step_traffic"], "predicted_moved": result["predicted_step_traffic"]}


def is_exact(result):
    """Whether a step moved what was predicted, rows of tables apart, which the tokens decide."""
    moved, predicted = result["moved"], result["predicted_moved"]
    return all(moved[key] == predicted[key] for key in moved if not key.startswith("rows_"))


def moved_mib(result):
    moved = result["moved"]
    between = sum(moved[key] for key in moved if key.endswith("_received_bytes"))
    disk = moved["units_read_bytes"] + moved["rows_read_bytes"] + moved["states_read_bytes"]
    return f"{between / (1 << 20):.1f} / {disk / (1 << 20):.1f}"


def worst(result):
    """The ratio predicted / measured that is furthest out of all ranks."""
    ratios = [p / m for p, m in zip(result["predicted"], result["measured"])]
    return max(ratios, key=lambda ratio: max(ratio - 1.0, (1.0 - ratio) * 10.0 / 3.0))


def key_of(run):
    name, _, ranks, options = run
    return f"{name}, ranks={ranks}, " + ", ".join(f"{k}={v}" for k, v in options.items())


def table(made, planned):
    mebibyte = 1 << 20
    within = sum(BOUND[0] <= worst(result) <= BOUND[1] for _, result in made)
    lines = [f"Measured {datetime.date.today()} on {common.cpu()}, commit {common.commit()}, {os.cpu_count()} cores, bfloat16 "
             f"unless float32 is named: {within} of the {len(made)} runs made (of "
             f"{planned}) within +10% and -3%; a step moved the bytes predicted "
             f"in {sum(is_exact(result) for _, result in made)}.", "",
             "| run | ranks | stage | tokens | predicted MiB, rank 0 | measured MiB, rank 0 | "
             "predicted / measured, worst rank | pool, counted / predicted | received / read MiB a "
             "step |", "|---|---|---|---|---|---|---|---|---|"]
    for (name, _, ranks, options), result in made:
        lines.append(
            f"| {name} | {ranks} | {options['stage']} | {options['length']} x "
            f"{options['micro']} | {result['predicted'][0] / mebibyte:.1f} | "
            f"{result['measured'][0] / mebibyte:.1f} | {worst(result):.3f} | "
            f"{result['pool'] / result['predicted_pool']:.4f} | {moved_mib(result)}"
            f"{'' if is_exact(result) else ', predicted otherwise'} |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--program", type=pathlib.Path, required=True)
    parser.add_argument("--smollm2", type=pathlib.Path, required=True)
    parser.add_argument("--work", type=pathlib.Path, default=pathlib.Path("/tmp/shardtune-memory"))
    parser.add_argument("--only", default="", help="runs whose name and shape contain this")
    parser.add_argument("--again", action="store_true", help="also those that have a result")
    arguments = parser.parse_args()
    work = arguments.work.resolve()
    (work / "nvme").mkdir(parents=True, exist_ok=True)
    models = {"smollm2": arguments.smollm2.resolve(), "llama": work / "llama-1b"}
    write_text(work / "text.txt")
    record = work / "results.json"
    results = json.loads(record.read_text()) if record.exists() else {}
    all_runs = runs()
    for name, model, ranks, options in all_runs:
        key = key_of((name, model, ranks, options))
        if arguments.only not in key or (key in results and not arguments.again):
            continue
        if model == "llama":
            write_llama(models["llama"], LLAMA_1B)
        results[key] = run(arguments.program.resolve(), work, models, model, ranks, options)
        record.write_text(json.dumps(results, indent=1))
        print(f"{worst(results[key]):.3f}  {key}  pool "
              f"{results[key]['pool'] / results[key]['predicted_pool']:.4f}"
              f"{'' if is_exact(results[key]) else '  other bytes moved'}", flush=True)
    made = [(run, results[key]) for run in all_runs if (key := key_of(run)) in results]
    common.write_section("memory.md", BEGIN, END, table(made, len(all_runs)))


if __name__ == "__main__":
    main()
