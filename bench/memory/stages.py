#!/usr/bin/env python3
"""Peak memory per rank for 1, 2 and 4 ranks and ZeRO stages 0 to 3, DeepSpeed on CPUs beside it, as a
table in docs/memory.md.

    bench/memory/stages.py --program build/release/launch/shardtune --smollm2 FILE.gguf \\
        [--peers build/peers/bin/python] [--only WORD]

The peers' environment is that of tests/parity/setup.sh plus bench/memory/requirements.txt. Results
gather in WORK/stages.json, so that the runs may be made in several calls; the table holds those
that were made. A peer that fails is recorded with the last line of its error.
"""
import argparse
import datetime
import json
import os
import pathlib
import shutil
import subprocess
import sys

import run as memory
from run import common

ROOT = common.ROOT
BEGIN, END = "<!-- bench/memory/stages.py -->", "<!-- end stages -->"
RANK = 16
LENGTHS = {"smollm2": (256, False), "llama": (128, True)}  # tokens, recompute
SHAPES = {
    "smollm2": dict(vocab_size=49152, hidden_size=576, intermediate_size=1536,
                    num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3,
                    tie_word_embeddings=True),
    "llama": dict(vocab_size=32000, hidden_size=2048, intermediate_size=5632,
                  num_hidden_layers=22, num_attention_heads=32, num_key_value_heads=4,
                  tie_word_embeddings=False)}
TITLES = {"smollm2": "SmolLM2-135M", "llama": "1.1B"}


def sizes(model):
    """Bytes of the frozen base (bf16, norms fp32) and number of trained values."""
    s = SHAPES[model]
    hidden, inner = s["hidden_size"], s["intermediate_size"]
    kv = hidden // s["num_attention_heads"] * s["num_key_value_heads"]
    linears = [(hidden, hidden), (kv, hidden), (kv, hidden), (hidden, hidden), (inner, hidden),
               (inner, hidden), (hidden, inner)]
    layers = s["num_hidden_layers"]
    tables = s["vocab_size"] * hidden * (1 if s["tie_word_embeddings"] else 2)
    matrices = layers * sum(out * into for out, into in linears) + tables
    norms = (2 * layers + 1) * hidden
    trained = layers * sum(RANK * (out + into) for out, into in linears)
    return 2 * matrices + 4 * norms, trained


def formula(model, ranks, stage):
    base, trained = sizes(model)
    weights = base / ranks + 4 * trained / ranks if stage == 3 and ranks > 1 else base + 6 * trained
    return weights + 8 * trained / (ranks if stage >= 1 else 1)


def own_run(arguments, work, models, model, ranks, stage):
    length, recompute = LENGTHS[model]
    options = dict(stage=stage, method="none", length=length, micro=1, rank=RANK,
                   recompute=recompute)
    config = work / "stages.yaml"
    config.write_text(memory.configuration(work, models, model, ranks, options))
    command = [str(ROOT / "launch/run"), "-n", str(ranks), "train", str(config), "--resume",
               "never", "--json"]
    done = subprocess.run(command, capture_output=True, text=True,
                          env=dict(os.environ, SHARDTUNE_BINARY=str(arguments.program.resolve())))
    shutil.rmtree(work / "run", ignore_errors=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}: code {done.returncode}\n{done.stderr}")
    result = json.loads(done.stdout)
    return {"peak": max(result["rank_peak_rss_bytes"]), "held": max(result["rank_held_bytes"])}


def peer_run(arguments, work, models, model, ranks, stage):
    length, recompute = LENGTHS[model]
    result = work / "peer_result.json"
    result.unlink(missing_ok=True)
    settings = work / "peer_settings.json"
    settings.write_text(json.dumps(dict(
        model=SHAPES[model], lora_rank=RANK, stage=stage, recompute=recompute, threads=1, micro=1,
        length=length, steps=2, result=str(result))))
    processes = []
    for rank in range(ranks):
        environment = dict(os.environ, RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(ranks),
                           LOCAL_SIZE=str(ranks), MASTER_ADDR="127.0.0.1", MASTER_PORT="29517")
        with open(work / f"peer_{rank}.log", "w") as log:
            processes.append(subprocess.Popen(
                [str(arguments.peers), str(ROOT / "bench/memory/peer_stages.py"), str(settings)],
                env=environment, stdout=log, stderr=log))
    codes = [process.wait(timeout=900) for process in processes]
    if not any(codes):
        return {"peak": max(json.loads(result.read_text()))}
    failed = next(rank for rank, code in enumerate(codes) if code)
    lines = (work / f"peer_{failed}.log").read_text().strip().splitlines()
    return {"error": f"code {codes[failed]}: {lines[-1] if lines else 'no output'}"}


def cases():
    """(model, ranks, stage): one rank has nothing to share, so its stages are one."""
    return [(model, ranks, stage) for model in SHAPES for ranks in (1, 2, 4)
            for stage in ((0,) if ranks == 1 else (0, 1, 2, 3))]


def key_of(side, case):
    return "{}, {}, ranks={}, stage={}".format(side, *case)


def mib(value):
    return f"{value / (1 << 20):.0f}"


def table(results):
    lines = [f"Measured {datetime.date.today()} on {common.cpu()}, {os.cpu_count()} cores.", "",
             "| shape | ranks | stage | held MiB | formula | held / formula | of stage 0 | "
             "peak MiB | DeepSpeed + PEFT peak MiB | peak ratio |",
             "|---|---|---|---|---|---|---|---|---|---|"]
    for case in cases():
        own = results.get(key_of("own", case))
        if own is None:
            continue
        model, ranks, stage = case
        whole = results.get(key_of("own", (model, ranks, 0)), own)
        peer = results.get(key_of("peer", case), {"error": "not made"})
        other = mib(peer["peak"]) if "peak" in peer else peer["error"]
        ratio = f"{own['peak'] / peer['peak']:.2f}" if "peak" in peer else ""
        expected = formula(model, ranks, stage)
        lines.append(
            f"| {TITLES[model]} | {ranks} | {stage if ranks > 1 else 'any'} | {mib(own['held'])} | "
            f"{mib(expected)} | {own['held'] / expected:.3f} | {own['held'] / whole['held']:.2f} | "
            f"{mib(own['peak'])} | {other} | {ratio} |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--program", type=pathlib.Path, required=True)
    parser.add_argument("--smollm2", type=pathlib.Path, required=True)
    parser.add_argument("--peers", type=pathlib.Path)
    parser.add_argument("--work", type=pathlib.Path, default=pathlib.Path("/tmp/shardtune-memory"))
    parser.add_argument("--only", default="", help="runs whose name contains this")
    arguments = parser.parse_args()
    work = arguments.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    models = {"smollm2": arguments.smollm2.resolve(), "llama": work / "llama-1b"}
    memory.write_text(work / "text.txt")
    memory.write_llama(models["llama"], memory.LLAMA_1B)
    record = work / "stages.json"
    results = json.loads(record.read_text()) if record.exists() else {}
    sides = {"own": own_run} | ({"peer": peer_run} if arguments.peers else {})
    for side, measure in sides.items():
        for case in cases():
            key = key_of(side, case)
            if arguments.only not in key or key in results:
                continue
            results[key] = measure(arguments, work, models, *case)
            record.write_text(json.dumps(results, indent=1))
            print(key, results[key], flush=True)
    common.write_section("memory.md", BEGIN, END, table(results))


if __name__ == "__main__":
    main()
