#!/usr/bin/env python3
"""What offload_param to NVMe costs a step, and how much of the reading is hidden, as a table in
docs/benchmarks.md: the base in memory and on NVMe in turns, the walk without computing
(bench/parallel/walk_bench) and fio beside them.

    bench/offload/run.py [--shape 1B|7B] [--tokens 16,128,512,1024] [--nvme DIR] [--dry]

A Llama shape with random weights (2.2 or 13.5 GB on disk, kept in WORK), NF4 with double
quantisation, LoRA of rank 16 on all linears, one rank on all cores. Hidden is 1 - (step on NVMe -
step in memory) / walk (PERFORMANCE section 2). 7B runs on NVMe alone: its table tells peak memory
and the share of a step that was waited for units. Refuses a busy machine; --dry allows one and
leaves docs/ alone. Needs fio, Python 3.11 and a build with SHARDTUNE_BENCH=ON.
"""
import argparse
import datetime
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "bench/memory"))
import run as memory  # noqa: E402

MAX_LOAD = 0.3
WARM_UP = 2  # steps that are not counted
BEGIN, END = "<!-- offload-{}:begin -->", "<!-- offload-{}:end -->"


def configuration(work, model, nvme, tokens, on_nvme):
    offload = f", offload_param: {{device: nvme, nvme_path: \"{nvme}\"}}" if on_nvme else ""
    states = f", offload_optimizer: {{device: nvme, nvme_path: \"{nvme}\"}}" if on_nvme else ""
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
  max_steps: {WARM_UP + 4}
  micro_batch_size: 1
  global_batch_size: 1
  gradient_checkpointing: {str(tokens > 512).lower()}
parallel: {{zero_optimization: {{stage: 0{offload}{states}}}}}
checkpoint: {{output_dir: "{work / 'run'}"}}
""")
    return path


def train(config, work):
    shutil.rmtree(work / "run", ignore_errors=True)
    command = [str(ROOT / "launch/run"), "-n", "1", "train", str(config), "--resume", "never",
               "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}: code {done.returncode}\n{done.stderr}")
    lines = [json.loads(line) for line in (work / "run/metrics.jsonl").read_text().splitlines()]
    counted = lines[WARM_UP:]
    return {"step": statistics.median(line["step_time_ms"] for line in counted),
            "wait": statistics.median(line["unit_wait_ms"] for line in counted),
            "peak": json.loads(done.stdout)["peak_rss_bytes"], "losses": [x["loss"] for x in lines]}


def walk(binary, config):
    done = subprocess.run([str(binary), str(config), "5"], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{binary}: code {done.returncode}\n{done.stderr}")
    return json.loads(done.stdout)


def fio(nvme):
    """Bytes per second of sequential reads with O_DIRECT."""
    target = pathlib.Path(nvme) / "fio.bin"
    done = subprocess.run(
        ["fio", "--name=read", f"--filename={target}", "--size=2G", "--rw=read", "--bs=1M",
         "--direct=1", "--ioengine=io_uring", "--iodepth=32", "--output-format=json"],
        capture_output=True, text=True, check=True)
    target.unlink()
    return json.loads(done.stdout[done.stdout.index("{"):])["jobs"][0]["read"]["bw_bytes"]


def row(tokens, in_memory, on_nvme, one_walk, fio_rates):
    rate = one_walk["read_bytes"] / (one_walk["median_ms"] / 1e3)
    in_step = one_walk["read_bytes"] / (on_nvme["step"] / 1e3)
    fio_rate = statistics.median(fio_rates)
    cells = [str(tokens), f"{in_memory['step']:.0f}" if in_memory else "-", f"{on_nvme['step']:.0f}",
             f"{on_nvme['wait']:.0f}", f"{one_walk['median_ms']:.0f}",
             f"{rate / 1e9:.2f} ({rate / fio_rate:.2f})", f"{in_step / 1e9:.2f}"]
    if in_memory:
        hidden = 1 - (on_nvme["step"] - in_memory["step"]) / one_walk["median_ms"]
        cells.append(f"{100 * hidden:.0f}%")
        cells.append(f"{in_memory['peak'] / 1e9:.2f}")
        assert in_memory["losses"] == on_nvme["losses"], "the losses must have the same bits"
    else:
        hidden = 1 - on_nvme["wait"] / one_walk["median_ms"]
        cells += [f"{100 * hidden:.0f}% (from waiting)", "-"]
    return "| " + " | ".join(cells + [f"{on_nvme['peak'] / 1e9:.2f}"]) + " |"


def write_section(name, lines):
    path = ROOT / "docs/benchmarks.md"
    begin, end = BEGIN.format(name), END.format(name)
    head, rest = path.read_text().split(begin)
    path.write_text(head + begin + "\n" + "\n".join(lines) + "\n" + end + rest.split(end)[1])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--shape", choices=["1B", "7B"], default="1B")
    parser.add_argument("--tokens", default="16,128,512,1024")
    parser.add_argument("--nvme", default="/var/tmp")
    parser.add_argument("--work", type=pathlib.Path, default=pathlib.Path("/tmp/shardtune-memory"))
    parser.add_argument("--dry", action="store_true")
    arguments = parser.parse_args()
    load = os.getloadavg()[0]
    if load > MAX_LOAD and not arguments.dry:
        sys.exit(f"The load is {load:.2f}, above {MAX_LOAD}: figures would mean nothing. Wait until "
                 "the machine is idle.")
    work = arguments.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    model = work / {"1B": "llama-1b", "7B": "llama-7b"}[arguments.shape]
    memory.write_llama(model, memory.LLAMA_1B if arguments.shape == "1B" else memory.LLAMA_7B)
    memory.write_text(work / "text.txt")
    walk_bench = ROOT / "build/release/bench/parallel/walk_bench"
    rows, fio_rates = [], [fio(arguments.nvme)]
    for tokens in map(int, arguments.tokens.split(",")):
        in_memory = None
        if arguments.shape == "1B":
            in_memory = train(configuration(work, model, arguments.nvme, tokens, False), work)
        config = configuration(work, model, arguments.nvme, tokens, True)
        on_nvme = train(config, work)
        one_walk = walk(walk_bench, config)
        fio_rates.append(fio(arguments.nvme))
        rows.append((tokens, in_memory, on_nvme, one_walk))
        print(row(*rows[-1], fio_rates), flush=True)
    commit = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"],
                            capture_output=True, text=True).stdout.strip()
    lines = ["| tokens a step | step in memory, ms | step on NVMe, ms | waited for units, ms | walk "
             "alone, ms | walk GB/s (of fio's) | GB/s over the step | hidden | peak in memory, GB | "
             "peak on NVMe, GB |", "|---|---|---|---|---|---|---|---|---|---|"]
    lines += [row(*measured, fio_rates) for measured in rows]
    lines += ["", f"fio: {min(fio_rates) / 1e9:.2f} to {max(fio_rates) / 1e9:.2f} GB/s. "
              f"{datetime.date.today()}, commit {commit}, {memory.cpu()}, {os.cpu_count()} cores."]
    print("\n".join(lines))
    if not arguments.dry:
        write_section(arguments.shape, lines)


if __name__ == "__main__":
    main()
