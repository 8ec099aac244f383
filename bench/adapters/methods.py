#!/usr/bin/env python3
"""Every configuration of configs/adapters trained on the sample task, as a table in docs/adapters.md.

    bench/adapters/methods.py --model FILE.gguf [--only WORD] [--speed STEPS] [--dry]

Each run: the configuration as it stands on one rank of all cores, then exact match and loss on
data/samples/eval.jsonl. Results gather in WORK/results.json, so that the runs may be made in several
calls; those that are there are not made again. --speed N makes N steps of each instead, in one go,
and keeps their tokens/s (the rest of a result does not depend on other work on the machine, speed
does: refuses a busy machine; --dry allows one and leaves docs/ alone). Needs Python 3.11 and a
Release build.

`peers` are test accuracies of PEFT's own comparison (method_comparison/MetaMathQA of its repository,
results of 5d602fdbf, 2026-08-21): Llama-3.2-3B trained on MetaMathQA for 5,000 steps, tested on
GSM8K. Another task and model: the order may be compared, the numbers not.
"""
import argparse
import json
import os
import pathlib
import statistics
import struct
import subprocess
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
import common  # noqa: E402

BEGIN, END = "<!-- methods:begin -->", "<!-- methods:end -->"
WARM_UP = 2  # steps that speed does not count
# From `peers`: (trainable parameters, test accuracy), by the name of our configuration.
PEERS = {
    "adalora": (18353664, 0.373), "adaption_prompt": (8601628, 0.384), "boft": (802816, 0.343),
    "full": (3212749824, 0.472), "ia3": (286720, 0.398), "loha": (18350080, 0.393),
    "lokr": (2294656, 0.466), "lora": (9175040, 0.478), "dora": (9289728, 0.469),
    "oft": (8171520, 0.491), "prefix_tuning": (11468800, 0.186), "prompt_tuning": (614400, 0.234),
    "p_tuning": (28382208, 0.350), "vera": (129024, 0.354),
}


class Refused(Exception):
    """A configuration that does not go with the model; the program's message."""


def run(command):
    done = subprocess.run([str(part) for part in command], cwd=common.ROOT, capture_output=True,
                          text=True)
    if done.returncode == 64:
        raise Refused(done.stderr.strip().splitlines()[-1])
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}: code {done.returncode}\n{done.stderr}")
    return done.stdout


def train(config, work, model, *settings):
    out = work / config.stem
    command = ["launch/run", "-n", "1", "train", config, "--resume", "never", "--json"]
    for setting in (f"model.model_name_or_path={model}", f"checkpoint.output_dir={out}", *settings):
        command += ["--set", setting]
    result = json.loads(run(command))
    lines = (out / "metrics.jsonl").read_text().splitlines()
    return result, [json.loads(line) for line in lines]


def made():
    return common.made(run(["launch/run", "-n", "1", "version"]))


def saved_values(folder):
    """Values of the safetensors files of an adapter folder, and their names."""
    total = 0
    for path in folder.glob("*.safetensors"):
        with open(path, "rb") as file:
            header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
        for name, tensor in header.items():
            if name != "__metadata__":
                count = 1
                for extent in tensor["shape"]:
                    count *= extent
                total += count
    return total


def quality(config, work, model):
    result, _ = train(config, work, model)
    out = work / config.stem
    task = ["--task-id", "0"] if "task_id" in config.read_text() else []
    found = json.loads(run([
        "launch/run", "-n", "1", "eval", "--model", model, "--adapter", out / "adapter", "--data",
        "data/samples/eval.jsonl", "--metric", "exact_match", "--max-new-tokens", "48",
        "--batch-size", "50", "--json", *task]))
    subprocess.run(["rm", "-rf", str(out / "checkpoint-200")], check=True)
    return {"exact_match": found["exact_match"], "loss": found["loss"],
            "saved": saved_values(out / "adapter"), "peak": result["peak_rss_bytes"],
            "steps": result["steps"], "made": made()}


def speed(config, work, model, steps):
    _, lines = train(config, work, model, f"training.max_steps={WARM_UP + steps}",
                     "checkpoint.save_steps=0")
    counted = lines[WARM_UP:]
    return {"tokens_per_second": statistics.median(l["tokens_per_second"] for l in counted),
            "speed_made": made()}


def table(results):
    lora = results.get("lora", {}).get("tokens_per_second")
    lines = ["| configuration | exact match | loss | values saved | tokens/s | of LoRA's | peak MB | "
             "PEFT's comparison: parameters, accuracy |", "|---|---|---|---|---|---|---|---|"]
    for name, r in sorted(results.items(), key=lambda item: -item[1].get("exact_match", -1)):
        if "exact_match" not in r:
            continue
        rate = r.get("tokens_per_second")
        peer = PEERS.get(name)
        lines.append(
            f"| {name} | {100 * r['exact_match']:.0f}% | {r['loss']:.4f} | {r['saved']:,} | "
            f"{f'{rate:.0f}' if rate else '-'} | {f'{rate / lora:.2f}' if rate and lora else '-'} | "
            f"{r['peak'] / 1e6:.0f} | {f'{peer[0]:,}, {peer[1]:.3f}' if peer else '-'} |")
    made = sorted({r["made"] for r in results.values() if "made" in r})
    lines.append(f"\nMade {'; '.join(made)}; {common.cpu()}, {os.cpu_count()} threads.")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=pathlib.Path, required=True)
    parser.add_argument("--only", default="", help="configurations whose name contains this")
    parser.add_argument("--speed", type=int, default=0, metavar="STEPS")
    parser.add_argument("--work", type=pathlib.Path,
                        default=common.ROOT / "build/methods-bench")
    parser.add_argument("--dry", action="store_true")
    arguments = parser.parse_args()
    work = common.begin(arguments)
    kept = work / "results.json"
    results = json.loads(kept.read_text()) if kept.exists() else {}
    for config in sorted((common.ROOT / "configs/adapters").glob("*.yaml")):
        result = results.setdefault(config.stem, {})
        if arguments.only not in config.stem or (not arguments.speed and "exact_match" in result):
            continue
        try:
            result.update(speed(config, work, arguments.model, arguments.speed)
                          if arguments.speed else quality(config, work, arguments.model))
        except Refused as refused:
            print(config.stem, refused, flush=True)
            continue
        kept.write_text(json.dumps(results, indent=1))
        print(config.stem, {k: v for k, v in result.items() if "made" not in k}, flush=True)
    print(table(results))
    if not arguments.dry:
        common.write_section("adapters.md", BEGIN, END, table(results))


if __name__ == "__main__":
    main()
