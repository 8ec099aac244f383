#!/usr/bin/env python3
"""What is left of a training after its weights were merged into 4 bits, as a table in
docs/merging.md: QLoRA as trained, merged and quantised in both ways, and merge-aware training with
every form of the kept weights.

    bench/merging/run.py --model SmolLM2.gguf [--steps 30] [--batch 8] [--rows qlora,bf16,int8,residual] [--dry]
    bench/merging/run.py --model SmolLM2.gguf --data TRAIN EVAL   # loss of other data (GSM8K)
    bench/merging/run.py --model SmolLM2.gguf --step-cost         # time of a step at 512 x 4 beside QLoRA's

The sample task of configs/quickstart.yaml with NF4 in blocks of 64. Losses and exact match do not
depend on what else the machine does; --step-cost refuses a busy one. --dry leaves docs/ alone.
"""
import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
import common  # noqa: E402

BEGIN, END = "<!-- merging-{}:begin -->", "<!-- merging-{}:end -->"
FORMS = ("bf16", "int8", "residual")
NAMES = {
    "qlora": "QLoRA as trained",
    "requantised": "QLoRA, merged onto the dequantised base, quantised to NF4",
    "original": "QLoRA, merged onto the original weights, quantised to NF4",
    "bf16": "merge-aware, W in bf16",
    "int8": "merge-aware, W in int8 rows",
    "residual": "merge-aware, W in NF4 + 2 bits",
}
WARM_UP, MEASURED = 2, 5


def program():
    return os.environ.get("SHARDTUNE_BINARY", str(common.ROOT / "build/release/launch/shardtune"))


def shardtune(*arguments):
    command = [program(), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=common.ROOT)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}: code {done.returncode}\n{done.stderr}")
    return done.stdout


def train(options, form):
    run = options.work / (form or "qlora")
    settings = [f"model.model_name_or_path={options.model}", f"training.max_steps={options.steps}",
                f"training.global_batch_size={options.batch}",
                f"checkpoint.output_dir={run}", "checkpoint.save_steps=0",
                "quantization.double_quant=false",
                f"data.train=[{{path: {options.data[0]}, format: completion}}]",
                f"data.max_length={options.max_length}"]
    if form:
        settings += ["adapter.merge_aware=true", f"adapter.merge_aware_weights={form}"]
    arguments = [part for setting in settings for part in ("--set", setting)]
    shardtune("train", "configs/quickstart.yaml", "--resume", "never", *arguments)
    return run / "adapter"


def as_completions(path, work):
    """GSM8K's question and answer under the names of the format completion."""
    records = [json.loads(line) for line in path.read_text().splitlines()]
    if "question" not in records[0]:
        return path
    converted = work / path.name
    converted.write_text("".join(
        json.dumps({"prompt": record["question"], "completion": record["answer"]}) + "\n"
        for record in records))
    return converted


def evaluate(options, model, adapter=None):
    """Loss, exact match (None where only losses are asked for)."""
    with_adapter = ["--adapter", adapter] if adapter else []
    metric = ["--metric", "exact_match", "--max-new-tokens", 48, "--batch-size", 50]
    result = json.loads(shardtune(
        "eval", "--model", model, *with_adapter, "--data", options.data[1],
        "--max-length", options.max_length, "--max-samples", options.max_samples,
        *(metric if options.exact_match else []), "--json"))
    return {"loss": result["loss"], "exact_match": result.get("exact_match")}


def export(options, adapter, name, *more):
    folder = options.work / name
    shardtune("export", "--model", options.model, "--adapter", adapter, "--to", "hf", "--dtype",
              "nf4", "--out", folder, "--overwrite", "--data", options.data[0], *more)
    return folder


def rows_of(options):
    rows = {}
    if "qlora" in options.rows:
        adapter = train(options, None)
        rows["qlora"] = evaluate(options, options.model, adapter)
        rows["requantised"] = evaluate(options, export(options, adapter, "requantised"))
        rows["original"] = evaluate(
            options, export(options, adapter, "original", "--merge-base", "original"))
    for form in FORMS:
        if form not in options.rows:
            continue
        adapter = train(options, form)
        rows[form] = evaluate(options, options.model, adapter)
        rows[form]["exported"] = evaluate(options, export(options, adapter, form + "-nf4"))
    return rows


def gathered(options, rows):
    """Rows of several calls stand together."""
    path = options.work / f"rows-{options.name}-{options.steps}-{options.batch}.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    known.update(rows)
    path.write_text(json.dumps(known, indent=1) + "\n")
    return known


def cells(row):
    match = row["exact_match"]
    return f"{row['loss']:.4f} | {'-' if match is None else f'{match:.2f}'}"


def table(options, rows):
    lines = [f"{pathlib.Path(options.data[1]).name}, {options.steps} steps of {options.batch} rows, NF4 in blocks of 64, "
             f"{common.made(shardtune('version'))}, {common.cpu()}:", "",
             "| | loss | exact match | loss of the exported checkpoint | its exact match |",
             "|---|---|---|---|---|"]
    for key, name in NAMES.items():
        if key in rows:
            exported = rows[key].get("exported")
            lines.append(f"| {name} | {cells(rows[key])} | "
                         f"{cells(exported) if exported else '- | -'} |")
    return "\n".join(lines)


def step_cost(options):
    """Seconds of a step, both sides in turns in one process each."""
    sides = {"QLoRA": "", **{f"merge-aware, {form}": f", merge_aware: true, merge_aware_weights: {form}"
                             for form in FORMS}}
    seconds = {name: [] for name in sides}
    config = options.work / "cost.yaml"
    (options.work / "text.txt").write_text("The quick brown fox jumps over the lazy dog. " * 4000)
    for _ in range(options.turns):
        for name, more in sides.items():
            config.write_text(f"""\
model: {{model_name_or_path: "{options.model}"}}
quantization: {{method: nf4, double_quant: true}}
adapter: {{lora_rank: 16, lora_alpha: 32, target_modules: all-linear{more}}}
data: {{train: [{{path: "{options.work / 'text.txt'}", format: text}}], chat_template: none, max_length: 512}}
training: {{objective: pretrain, max_steps: {WARM_UP + MEASURED}, micro_batch_size: 4, global_batch_size: 4}}
checkpoint: {{output_dir: "{options.work / 'run'}"}}
""")
            _, lines = common.train(config, options.work, program=program())
            seconds[name].append(
                statistics.median(line["step_time_ms"] / 1000 for line in lines[WARM_UP:]))
    base = statistics.median(seconds["QLoRA"])
    lines = [f"SmolLM2 shape, 512 x 4 tokens, rank 16 on all linears, {options.turns} turns, "
             f"{common.made(shardtune('version'))}, {common.cpu()}:", "",
             "| | seconds of a step | of QLoRA's |", "|---|---|---|"]
    for name, values in seconds.items():
        lines.append(f"| {name} | {common.spread(values)} | "
                     f"{statistics.median(values) / base:.3f} |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, type=pathlib.Path)
    parser.add_argument("--work", type=pathlib.Path, default=pathlib.Path("runs/merging"))
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--batch", type=int, default=8, help="rows of a step")
    parser.add_argument("--rows", default="qlora," + ",".join(FORMS))
    parser.add_argument("--data", nargs=2, metavar=("TRAIN", "EVAL"))
    parser.add_argument("--max-samples", type=int, default=100)
    parser.add_argument("--step-cost", action="store_true")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--dry", action="store_true")
    options = parser.parse_args()
    options.exact_match = options.data is None
    options.name = "sample" if options.data is None else "gsm8k"
    options.max_length = 256 if options.data is None else 512
    samples = common.ROOT / "data/samples"
    options.data = options.data or [samples / "train.jsonl", samples / "eval.jsonl"]
    options.data = [pathlib.Path(path).resolve() for path in options.data]
    options.work.mkdir(parents=True, exist_ok=True)
    options.data = [as_completions(path, options.work.resolve()) for path in options.data]
    if options.step_cost:
        options.work = common.begin(options)
        name, text = "step-cost", step_cost(options)
    else:
        options.work = options.work.resolve()
        name, text = options.name, table(options, gathered(options, rows_of(options)))
    print(text)
    if not options.dry:
        common.write_section("merging.md", BEGIN.format(name), END.format(name), text)


if __name__ == "__main__":
    main()
