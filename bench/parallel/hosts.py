#!/usr/bin/env python3
"""How much of stage 3's gathers between hosts hides behind computing, as a table in
docs/benchmarks.md: two hosts with a rank each on this machine (network namespaces), a wire of a
limited rate between them, stages 2 and 3 in turns and the walk that computes nothing.

    bench/parallel/hosts.py --smollm2 FILE.gguf [--rates 1gbit,100mbit] [--rounds 2] [--dry]

SmolLM2-135M, NF4 with double quantisation, LoRA of rank 16 on all linears, 4 rows of 512 tokens a
rank and step, one thread a rank. What can be hidden is the smaller one of the walk and the
computing, which is stage 2's step; hidden is 1 - (stage 3 - stage 2) / that (PERFORMANCE section
2, B14). Stage 2's step has the exchange of gradients and weights, as stage 3's has. Needs root;
refuses a busy machine; --dry allows one and leaves docs/ alone.
"""
import argparse
import datetime
import json
import pathlib
import statistics
import subprocess
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "memory"))
import run as memory  # noqa: E402
from run import common  # noqa: E402

WARM_UP, STEPS = 1, 4
BEGIN, END = "<!-- hosts:begin -->", "<!-- hosts:end -->"
BUILD = common.ROOT / "build/release"


def configuration(arguments, work, stage):
    config = work / f"hosts-{stage}.yaml"
    config.write_text(f"""\
model: {{model_name_or_path: "{arguments.smollm2.resolve()}", compute_dtype: bfloat16}}
quantization: {{method: nf4, double_quant: true}}
adapter: {{lora_rank: 16, lora_alpha: 32}}
data:
  train: [{{path: "{work / 'text.txt'}", format: text}}]
  chat_template: none
  max_length: 512
training:
  objective: pretrain
  max_steps: {STEPS}
  micro_batch_size: 4
  global_batch_size: 8
parallel: {{threads: 1, zero_optimization: {{stage: {stage}}}}}
checkpoint: {{output_dir: "{work / 'run'}"}}
""")
    return config


def on_two_hosts(rate, *command):
    command = [str(BUILD / "bench/parallel/two_hosts"), rate, "1", *map(str, command)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}: code {done.returncode}\n{done.stderr}")
    return done.stdout


def train(work, rate, config):
    subprocess.run(["rm", "-rf", str(work / "run")], check=True)
    on_two_hosts(rate, BUILD / "launch/shardtune", "train", config, "--resume", "never")
    lines = [json.loads(line) for line in (work / "run/metrics.jsonl").read_text().splitlines()]
    return {"step": statistics.median(line["step_time_ms"] for line in lines[WARM_UP:]),
            "wait": statistics.median(line["time_ms"]["units"] for line in lines[WARM_UP:]),
            "losses": [line["loss"] for line in lines]}


def measure(arguments, work, rate):
    configs = {stage: configuration(arguments, work, stage) for stage in (2, 3)}
    sides = {2: [], 3: []}
    for _ in range(arguments.rounds):
        for stage in (2, 3):
            sides[stage].append(train(work, rate, configs[stage]))
    walk = json.loads(on_two_hosts(rate, BUILD / "bench/parallel/walk_bench", configs[3], 3))
    losses = {tuple(one["losses"]) for side in sides.values() for one in side}
    if len(losses) != 1:
        sys.exit(f"{rate}: expected the same losses at both stages, found {losses}.")
    hidden = [1 - (three["step"] - two["step"]) / min(walk["median_ms"], two["step"])
              for two, three in zip(sides[2], sides[3])]
    wire = walk["received_bytes"] / (walk["median_ms"] / 1e3)
    return "| " + " | ".join([
        rate, common.spread([one["step"] for one in sides[2]], 0),
        common.spread([one["step"] for one in sides[3]], 0),
        common.spread([one["wait"] for one in sides[3]], 0), f"{walk['median_ms']:.0f}",
        f"{wire * 8 / 1e9:.2f}", common.spread([100 * part for part in hidden], 0) + "%"]) + " |"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--smollm2", type=pathlib.Path, required=True)
    parser.add_argument("--rates", default="1gbit,100mbit")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--work", type=pathlib.Path, default=pathlib.Path("/tmp/shardtune-memory"))
    parser.add_argument("--dry", action="store_true")
    arguments = parser.parse_args()
    work = common.begin(arguments)
    memory.write_text(work / "text.txt")
    lines = ["| wire | stage 2 step, ms | stage 3 step, ms | waited for units, ms | walk alone, ms "
             "| Gbit/s of the walk | hidden |", "|---|---|---|---|---|---|---|"]
    for rate in arguments.rates.split(","):
        lines.append(measure(arguments, work, rate))
        print(lines[-1], flush=True)
    lines += ["", f"2 hosts of one rank and one thread, 4 x 512 tokens a rank and step, "
              f"{arguments.rounds} rounds of {STEPS} steps, the first {WARM_UP} not counted; all "
              f"losses have the same bits. {datetime.date.today()}, commit {common.commit()}, "
              f"{common.cpu()}."]
    if not arguments.dry:
        common.write_section("benchmarks.md", BEGIN, END, "\n".join(lines))


if __name__ == "__main__":
    main()
