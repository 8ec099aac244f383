#!/usr/bin/env python3
"""What offload_param to NVMe costs a step, and how much of the reading is hidden, as a table in
docs/benchmarks.md: the base in memory and on NVMe in turns, the walk without computing
(bench/parallel/walk_bench) and fio beside them.

    bench/offload/run.py [--shape 1B|7B] [--tokens 16,128,512,1024] [--steps 4] [--nvme DIR] [--dry]

A Llama shape with random weights, kept in WORK (1B: 2.2 GB in bf16; 7B: 4.2 GB, its linears as NF4
codes straight from the random numbers), NF4 with double quantisation, LoRA of rank 16 on all
linears, one rank on all cores, optimizer states in memory on both sides.
Hidden is 1 - (step on NVMe - step in memory) / walk (PERFORMANCE section 2). 7B has its
states on NVMe too and no side in memory: hidden is 1 - waited for units / walk there. Rows of shapes
and numbers of tokens gather in WORK, so that they may be made in several calls. Refuses a busy
machine; --dry allows one and leaves docs/ alone. Needs fio, Python 3.11 and a build with
SHARDTUNE_BENCH=ON.
"""
import argparse
import datetime
import json
import os
import pathlib
import statistics
import subprocess
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "memory"))
import run as memory  # noqa: E402
from run import common  # noqa: E402

WARM_UP = 1  # steps that are not counted
BEGIN, END = "<!-- offload-{}:begin -->", "<!-- offload-{}:end -->"


def configuration(work, model, nvme, tokens, steps, on_nvme):
    """`on_nvme`: of "param" and "optimizer", what lives there."""
    offload = "".join(f", offload_{part}: {{device: nvme, nvme_path: \"{nvme}\"}}"
                      for part in on_nvme)
    path = work / "run.yaml"
    path.write_text(f"""\
model: {{model_name_or_path: "{model}"}}
quantization: {{method: nf4, double_quant: true}}
adapter: {{lora_rank: 16, lora_alpha: 32}}
data:
  train: [{{path: "{work / 'text.txt'}", format: text}}]
  chat_template: none
  max_length: {tokens}
training:
  objective: pretrain
  max_steps: {WARM_UP + steps}
  micro_batch_size: 1
  global_batch_size: 1
  gradient_checkpointing: {str(tokens > 512).lower()}
parallel: {{zero_optimization: {{stage: 0{offload}}}}}
checkpoint: {{output_dir: "{work / 'run'}"}}
""")
    return path


def train(config, work):
    result, lines = common.train(config, work)
    counted = lines[WARM_UP:]
    return {"step": statistics.median(line["step_time_ms"] for line in counted),
            "wait": statistics.median(line["time_ms"]["units"] for line in counted),
            "peak": result["peak_rss_bytes"], "losses": [line["loss"] for line in lines]}


def walk(binary, config):
    done = subprocess.run([str(binary), str(config), "5"], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{binary}: code {done.returncode}\n{done.stderr}")
    return json.loads(done.stdout)


def row(tokens, in_memory, on_nvme, one_walk, fio_rates):
    rate = one_walk["read_bytes"] / (one_walk["median_ms"] / 1e3)
    in_step = one_walk["read_bytes"] / (on_nvme["step"] / 1e3)
    fio_rate = statistics.median(fio_rates)
    cells = [str(tokens), f"{in_memory['step']:.0f}" if in_memory else "-", f"{on_nvme['step']:.0f}",
             f"{on_nvme['wait']:.0f}", f"{one_walk['median_ms']:.0f}",
             f"{rate / 1e9:.2f} ({rate / fio_rate:.2f})",
             f"{in_step / 1e9:.2f} ({in_step / fio_rate:.2f})"]
    if in_memory:
        hidden = 1 - (on_nvme["step"] - in_memory["step"]) / one_walk["median_ms"]
        cells.append(f"{100 * hidden:.0f}%")
        cells.append(f"{in_memory['peak'] / 1e9:.2f}")
        if in_memory["losses"] != on_nvme["losses"]:
            sys.exit(f"{tokens} tokens: expected the same losses in memory and on NVMe, found "
                     f"{in_memory['losses']} and {on_nvme['losses']}.")
    else:
        hidden = 1 - on_nvme["wait"] / one_walk["median_ms"]
        cells += [f"{100 * hidden:.0f}% (from waiting)", "-"]
    return "| " + " | ".join(cells + [f"{on_nvme['peak'] / 1e9:.2f}"]) + " |"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--shape", choices=["1B", "7B"], default="1B")
    parser.add_argument("--tokens", default="16,128,512,1024")
    parser.add_argument("--steps", type=int, default=4, help="that are counted")
    parser.add_argument("--nvme", default="/var/tmp")
    parser.add_argument("--work", type=pathlib.Path, default=pathlib.Path("/tmp/shardtune-memory"))
    parser.add_argument("--dry", action="store_true")
    arguments = parser.parse_args()
    work = common.begin(arguments)
    model = work / {"1B": "llama-1b", "7B": "llama-7b-nf4"}[arguments.shape]
    if arguments.shape == "1B":
        memory.write_llama(model, memory.LLAMA_1B)
    else:
        memory.write_llama(model, memory.LLAMA_7B, in_nf4=True)
    memory.write_text(work / "text.txt")
    on_nvme_side = ("param",) if arguments.shape == "1B" else ("param", "optimizer")
    walk_bench = common.ROOT / "build/release/bench/parallel/walk_bench"
    record = work / f"offload-{arguments.shape}.json"
    rows = json.loads(record.read_text()) if record.exists() else {}
    for tokens in map(int, arguments.tokens.split(",")):
        fio_rates = [common.fio(arguments.nvme, 2048)["read"]]
        in_memory = None
        if arguments.shape == "1B":
            in_memory = train(configuration(work, model, arguments.nvme, tokens, arguments.steps, ()),
                              work)
        config = configuration(work, model, arguments.nvme, tokens, arguments.steps, on_nvme_side)
        on_nvme = train(config, work)
        one_walk = walk(walk_bench, config)
        fio_rates.append(common.fio(arguments.nvme, 2048)["read"])
        rows[str(tokens)] = row(tokens, in_memory, on_nvme, one_walk, fio_rates) + \
            f" {min(fio_rates) / 1e9:.2f}-{max(fio_rates) / 1e9:.2f} | {datetime.date.today()}, " + \
            f"{common.commit()}, {arguments.steps} steps |"
        record.write_text(json.dumps(rows, indent=1))
        print(rows[str(tokens)], flush=True)
    lines = ["| tokens a step | step in memory, ms | step on NVMe, ms | waited for units, ms | walk "
             "alone, ms | walk GB/s (of fio's) | GB/s over the step (of fio's) | hidden | peak in "
             "memory, GB | peak on NVMe, GB | fio GB/s | made |",
             "|---|---|---|---|---|---|---|---|---|---|---|---|"]
    lines += [rows[tokens] for tokens in sorted(rows, key=int)]
    lines += ["", f"{common.cpu()}, {os.cpu_count()} cores."]
    print("\n".join(lines))
    if not arguments.dry:
        common.write_section("benchmarks.md", BEGIN.format(arguments.shape),
                             END.format(arguments.shape), "\n".join(lines))


if __name__ == "__main__":
    main()
