#!/usr/bin/env python3
"""LoRA and QLoRA NF4 on SmolLM2-135M, rows of equal length: shardtune and transformers + PEFT
(+ bitsandbytes) in turns, one process each, on the same weights, rows, threads and learning rate.
Both compute in bfloat16 where the CPU multiplies it in hardware, else in float32: elsewhere torch's
bfloat16 is many times slower than its float32. Prints medians, spread and peak memory, checks that
the loss curve is the one of the peer in float32, and writes the section of docs/benchmarks.md.
Results of cases and shapes gather in build/peers-bench/results.json, so that they may be made in
several calls. Refuses to start on a busy machine.

    PYTHON bench/peers/run.py [--case NAME]... [--shape 512x4] [--rounds 3] [--steps 6] [--dry]
    PYTHON: see tests/parity/setup.sh. --case: a name of CASES below (default: the first three).
    --shape: tokens x rows of a step.
    --dry allows a busy machine and leaves docs/benchmarks.md as it is: its figures mean nothing.
"""
import argparse
import importlib.metadata
import json
import multiprocessing
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/parity"))
sys.path.insert(0, str(ROOT / "bench"))
import common  # noqa: E402

WORK = ROOT / "build/peers-bench"
CORPUS = ROOT.parent / "shared/corpora/gsm8k_train.jsonl"
WARM_UP = 2  # steps that are not counted: first touch of memory, primitive creation
# Both sides draw their own lora_A; after some steps on the same rows our losses still agree to this
# with the peer's in float32. Its bfloat16 is no reference: it rounds the base's output before the
# adapter's is added, which loses small updates (the table shows by how much).
MAX_LOSS_DIFFERENCE = 0.01
CASES = {
    "lora": dict(title="LoRA, {dtype}"),
    "qlora": dict(title="QLoRA NF4 (double quantisation), {dtype}", method="nf4"),
    "int8": dict(title="LoRA, frozen linears in int8 beside the peer in {dtype}", compute="int8"),
    "compiled": dict(title="LoRA, {dtype}, the peer with torch.compile", compile=True),
    "lora-1b": dict(title="LoRA, {dtype}, 1.1B shape with random weights", model="1b"),
    "qlora-1b": dict(title="QLoRA NF4 (double quantisation), {dtype}, 1.1B shape with random weights",
                     method="nf4", model="1b"),
}
COMMON = {"lora_rank": 16, "lora_alpha": 32, "learning_rate": 1e-4, "seed": 42}


def prepare_1b():
    sys.path.insert(0, str(ROOT / "bench/memory"))
    import run as memory
    import tokenizers
    model = WORK / "llama-1b"
    memory.write_llama(model, memory.LLAMA_1B)
    return model, tokenizers.Tokenizer.from_file(str(model / "tokenizer.json"))


def save_smollm2(path, folder):
    import peers
    folder.mkdir(parents=True, exist_ok=True)
    peers.load_model(path).save_pretrained(folder)
    peers.load_tokenizer(path).save(str(folder / "tokenizer.json"))


def prepare_smollm2():
    import peers
    path = peers.model_path()
    if path is None:
        sys.exit("SmolLM2-135M-Instruct.Q4_1.gguf is absent. Run launch/quickstart.sh first, or "
                 "set SHARDTUNE_MODEL.")
    tokenizer = peers.load_tokenizer(path)
    model = WORK / "model"
    if not (model / "tokenizer.json").exists():
        # In a process of its own: what this one has held counts for the peak of those it starts.
        child = multiprocessing.get_context("spawn").Process(target=save_smollm2,
                                                             args=(path, model))
        child.start()
        child.join()
        if child.exitcode != 0:
            sys.exit(f"{model} could not be written")
    return model, tokenizer


def prepare(case, length, num_rows):
    """The base as a Hugging Face folder for both sides, and rows of exactly `length` tokens."""
    if not CORPUS.exists():
        sys.exit(f"{CORPUS} is absent: the benchmark needs its text.")
    model, tokenizer = prepare_1b() if CASES[case].get("model") == "1b" else prepare_smollm2()
    problems = [json.loads(line) for line in CORPUS.read_text().splitlines()]
    texts, text = [], ""
    for problem in problems:
        text += problem["question"] + "\n" + problem["answer"] + "\n\n"
        if len(tokenizer.encode(text).ids) > length:  # both sides cut there
            texts.append(text)
            text = ""
        if len(texts) == num_rows:
            break
    (WORK / "rows.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    return model, [tokenizer.encode(t).ids[:length] for t in texts]


def run_process(command, log):
    """Peak resident bytes of one child; its output goes to the log."""
    with open(log, "w") as stream:
        child = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(child.pid, 0)
    if status != 0:
        sys.exit(f"{command[0]} failed; the last lines of {log}:\n" +
                 "\n".join(log.read_text().splitlines()[-15:]))
    return usage.ru_maxrss * 1024


def fast_dtype():
    flags = pathlib.Path("/proc/cpuinfo").read_text()
    return "bfloat16" if "avx512_bf16" in flags or "amx_bf16" in flags else "float32"


def run_ours(case, model, shape, steps, threads, binary):
    length, num_rows = shape
    out = WORK / f"run-{case}-{time.monotonic_ns()}"
    config = {
        "model": {"model_name_or_path": str(model),
                  "compute_dtype": CASES[case].get("compute", fast_dtype())},
        "quantization": ({"method": "nf4", "block_size": 64, "double_quant": True}
                         if CASES[case].get("method") == "nf4" else {"method": "none"}),
        "adapter": {"method": "lora", "lora_rank": COMMON["lora_rank"],
                    "lora_alpha": COMMON["lora_alpha"], "target_modules": "all-linear"},
        "data": {"train": [{"path": str(WORK / "rows.jsonl"), "format": "text"}],
                 "chat_template": "none", "max_length": length, "packing": False,
                 "train_on": "all"},
        "training": {"objective": "pretrain", "max_steps": steps, "micro_batch_size": num_rows,
                     "global_batch_size": num_rows, "learning_rate": COMMON["learning_rate"],
                     "lr_scheduler_type": "constant", "seed": COMMON["seed"]},
        "parallel": {"threads": threads},
        "checkpoint": {"output_dir": str(out)},
    }
    path = WORK / f"{case}.yaml"
    path.write_text(json.dumps(config, indent=1))
    memory = run_process([binary, "train", str(path)], WORK / f"ours-{case}.log")
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert all(line["tokens"] for line in lines)
    return {"losses": [line["loss"] for line in lines],
            "seconds": [line["step_time_ms"] / 1000 for line in lines], "memory": memory}


def run_peer(case, model, rows, steps, threads, dtype):
    settings = {**COMMON, "dtype": dtype, "model": str(model), "rows": rows, "steps": steps, "threads": threads,
                "quantization": CASES[case].get("method", "none"),
                "compile": CASES[case].get("compile", False) and dtype != "float32",
                "result": str(WORK / f"peer-{case}.json")}
    path = WORK / f"peer-{case}-settings.json"
    path.write_text(json.dumps(settings))
    memory = run_process([sys.executable, str(ROOT / "bench/peers/peer_train.py"), str(path)],
                         WORK / f"peer-{case}.log")
    return {**json.loads(pathlib.Path(settings["result"]).read_text()), "memory": memory}


def speeds(results, shape):
    """Tokens per second of each round: the median of its counted steps."""
    return [shape[0] * shape[1] / statistics.median(r["seconds"][WARM_UP:]) for r in results]


def check_losses(case, ours, theirs, reference):
    """Largest relative distance of each side's losses from the peer's in float32."""
    def worst(losses):
        return max(abs(a - b) / b for a, b in zip(losses, reference["losses"], strict=True))
    distances = worst(ours[0]["losses"]), worst(theirs[0]["losses"])
    verdict = "agree" if distances[0] <= MAX_LOSS_DIFFERENCE else "DISAGREE"
    print(f"{case}: losses {verdict}, largest difference {100 * distances[0]:.2f}%")
    for name, run in (("ours", ours[0]), ("theirs", theirs[0]), ("float32", reference)):
        print(f"  {name:8}", " ".join(f"{x:.4f}" for x in run["losses"]))
    for results in (ours, theirs):  # rounds repeat each other
        assert len({len(r["losses"]) for r in results}) == 1
    return distances


def section(results, binary, threads):
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}"
                         for name in ("torch", "transformers", "peft", "bitsandbytes"))
    ours = subprocess.run([binary, "version"], capture_output=True, text=True).stdout
    lines = [
        "SmolLM2-135M (where no other model is named), rows of GSM8K text, every token trained, LoRA rank "
        f"{COMMON['lora_rank']} on all linears, no recompute, one process of {threads} threads; "
        f"rounds in turns, the first {WARM_UP} steps of each not counted. Median over rounds "
        "(smallest-largest). Peak memory: resident set of the whole process, loading included.", "",
        "Loss: largest distance over the steps from the peer's losses in float32, ours and the "
        "peer's.", "",
        "| run | tokens x rows | shardtune tokens/s | peer tokens/s | ratio | shardtune peak | peer "
        "peak | loss, ours | loss, peer | made |", "|---|---|---|---|---|---|---|---|---|---|",
        *(results[key] for key in sorted(results)), "",
        f"{common.cpu()}, {threads} threads, {platform.platform()}. Peers: Python "
        f"{platform.python_version()}, {versions}. {ours.splitlines()[0] if ours else ''}",
    ]
    return "\n".join(lines)


def table_row(name, shape, ours, theirs, distances):
    a, b = speeds(ours, shape), speeds(theirs, shape)
    ratios = [x / y for x, y in zip(a, b)]
    memory = [max(r["memory"] for r in results) / 1e9 for results in (ours, theirs)]
    return (f"| {name} | {shape[0]} x {shape[1]} | {common.spread(a, 0)} | {common.spread(b, 0)} | "
            f"{common.spread(ratios, 2)} | {memory[0]:.2f} GB | {memory[1]:.2f} GB | "
            f"{100 * distances[0]:.2f}% | {100 * distances[1]:.2f}% | {time.strftime('%Y-%m-%d')}, "
            f"{common.commit()}, {len(ours)} x {len(ours[0]['losses'])} steps |")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--shape", default="512x4")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--dry", action="store_true")
    parser.add_argument("--case", choices=list(CASES), action="append")
    parser.add_argument("--binary", default=os.environ.get(
        "SHARDTUNE_BINARY", str(ROOT / "build/release/launch/shardtune")))
    arguments = parser.parse_args()
    if arguments.steps <= WARM_UP:
        sys.exit(f"--steps: expected more than {WARM_UP}, found {arguments.steps}.")
    if not arguments.dry:
        common.refuse_busy_machine()
    if not os.access(arguments.binary, os.X_OK):
        sys.exit(f"{arguments.binary} is not there. Build the release preset, or name another one "
                 "with --binary.")
    WORK.mkdir(parents=True, exist_ok=True)
    shape = tuple(map(int, arguments.shape.split("x")))
    threads = len(os.sched_getaffinity(0))
    record = WORK / "results.json"
    results = json.loads(record.read_text()) if record.exists() else {}
    disagree = False
    for case in arguments.case or list(CASES)[:3]:
        model, rows = prepare(case, *shape)
        ours, theirs = [], []
        for number in range(arguments.rounds):
            ours.append(run_ours(case, model, shape, arguments.steps, threads, arguments.binary))
            theirs.append(run_peer(case, model, rows, arguments.steps, threads, fast_dtype()))
            print(f"{case} round {number + 1}: shardtune {speeds(ours, shape)[-1]:.0f}, peer "
                  f"{speeds(theirs, shape)[-1]:.0f} tokens/s", flush=True)
        reference = theirs[0]
        if fast_dtype() != "float32":
            reference = run_peer(case, model, rows, arguments.steps, threads, "float32")
        distances = check_losses(case, ours, theirs, reference)
        disagree = disagree or distances[0] > MAX_LOSS_DIFFERENCE
        results[f"{arguments.shape} {case}"] = table_row(CASES[case]["title"].format(dtype=fast_dtype()),
                                                        shape, ours, theirs, distances)
        if not arguments.dry:
            record.write_text(json.dumps(results, indent=1))
    text = section(results, arguments.binary, threads)
    print(text)
    if disagree:
        sys.exit("The loss curves disagree: the two sides do not compute the same thing.")
    if not arguments.dry:
        common.write_section("benchmarks.md", "<!-- peers:begin -->", "<!-- peers:end -->", text)


if __name__ == "__main__":
    main()
