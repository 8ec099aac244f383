#!/usr/bin/env python3
"""What ZeRO stage 3 costs on ranks of one machine, as a table in docs/benchmarks.md: one rank with
all threads, and as many ranks as cores with one thread each at stages 2 and 3, in turns on the same
rows with the same bits.

    bench/parallel/stage3.py --smollm2 FILE.gguf [--rounds 3] [--rows 4] [--dry]

SmolLM2-135M, bf16, LoRA of rank 16 on all linears, rows of 512 tokens, --rows of them in a
micro-batch, one micro-batch a rank. Gathers: processor time of the thread that gathers ahead, as a
share of the step. Refuses a busy machine; --dry allows one and leaves docs/ alone.
"""
import argparse
import datetime
import os
import pathlib
import statistics
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "memory"))
import run as memory  # noqa: E402
from run import common  # noqa: E402

WARM_UP, STEPS, LENGTH = 2, 5, 512
BEGIN, END = "<!-- stage3:begin -->", "<!-- stage3:end -->"


def train(arguments, work, method, ranks, threads, stage, total_ranks):
    config = work / "stage3.yaml"
    config.write_text(f"""\
model: {{model_name_or_path: "{arguments.smollm2.resolve()}", compute_dtype: bfloat16}}
quantization: {{method: {method}{", double_quant: true" if method == "nf4" else ""}}}
adapter: {{lora_rank: 16, lora_alpha: 32}}
data:
  train: [{{path: "{work / 'text.txt'}", format: text}}]
  chat_template: none
  max_length: {LENGTH}
training:
  objective: pretrain
  max_steps: {STEPS}
  micro_batch_size: {arguments.rows}
  global_batch_size: {arguments.rows * total_ranks}
parallel: {{threads: {threads}, zero_optimization: {{stage: {stage}}}}}
checkpoint: {{output_dir: "{work / 'run'}"}}
""")
    _, lines = common.train(config, work, ranks)
    counted = lines[WARM_UP:]
    return {"speed": statistics.median(x["tokens_per_second"] for x in counted),
            "gather": statistics.median(x["prefetch_cpu_ms"] / x["step_time_ms"] for x in counted),
            "wait": statistics.median(x["time_ms"]["units"] / x["step_time_ms"] for x in counted),
            "losses": [x["loss"] for x in lines]}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--smollm2", type=pathlib.Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--work", type=pathlib.Path, default=pathlib.Path("/tmp/shardtune-memory"))
    parser.add_argument("--dry", action="store_true")
    arguments = parser.parse_args()
    work = common.begin(arguments)
    memory.write_text(work / "text.txt")
    cores = len(os.sched_getaffinity(0))
    sides = {f"1 rank x {cores}": (1, cores, 0), f"{cores} x 1, stage 2": (cores, 1, 2),
             f"{cores} x 1, stage 3": (cores, 1, 3)}
    lines = ["| base | " + " | ".join(f"{name}, tokens/s" for name in sides) +
             " | stage 3 / one rank | stage 3 / stage 2 | gathers | waited |",
             "|---|---|---|---|---|---|---|---|"]
    for method in ("none", "nf4"):
        results = {name: [] for name in sides}
        for _ in range(arguments.rounds):
            for name, (ranks, threads, stage) in sides.items():
                results[name].append(train(arguments, work, method, ranks, threads, stage, cores))
        if len({tuple(r["losses"]) for side in results.values() for r in side}) != 1:
            sys.exit(f"{method}: expected the same losses on all sides, found others.")
        one, two, three = results.values()
        lines.append("| " + " | ".join(
            [method] + [common.spread([r["speed"] for r in side], 0) for side in (one, two, three)] +
            [common.spread([a["speed"] / b["speed"] for a, b in zip(three, other)], 2)
             for other in (one, two)] +
            [common.spread([100 * r[key] for r in three], 1) + "%" for key in ("gather", "wait")]) + " |")
        print(lines[-1], flush=True)
    lines += ["", f"{arguments.rows} x {LENGTH} tokens a rank and step, {arguments.rounds} rounds in "
              f"turns of {STEPS} steps, the first {WARM_UP} not counted; all losses have the same "
              f"bits. {datetime.date.today()}, commit {common.commit()}, {common.cpu()}, {cores} cores."]
    print("\n".join(lines))
    if not arguments.dry:
        common.write_section("benchmarks.md", BEGIN, END, "\n".join(lines))


if __name__ == "__main__":
    main()
