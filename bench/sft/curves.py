#!/usr/bin/env python3
"""Writes docs/sft.md and its curves from the metrics of runs: curves.py RUNS_FOLDER COMMIT

RUNS_FOLDER holds what the configurations configs/sft_*.yaml wrote (their checkpoint.output_dir,
runs/ by default). A run that was stopped or is missing says so on the page. COMMIT: of the program
that ran ("shardtune version" tells)."""
import datetime
import json
import os
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
import common

DOCS = common.ROOT / "docs"
RUNS = {
    "sft_gsm8k": "SmolLM2-135M-Instruct (Q4_1), LoRA on NF4: GSM8K",
    "sft_glaive": "SmolLM2-135M-Instruct (Q4_1), LoRA on NF4: tool calls of glaive",
    "sft_gsm8k_gpt2": "gpt2 of 6 million weights from nothing, all trained: GSM8K",
    "sft_glaive_gpt2": "gpt2 of 6 million weights from nothing, all trained: tool calls of glaive",
}
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 640, 300, 52, 16, 34, 40


def read_run(folder):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    config = (folder / "resolved_config.yaml").read_text()
    steps = next(int(line.split(":")[1]) for line in config.splitlines() if "max_steps:" in line)
    return rows, steps


def curve_svg(title, rows):
    losses = [(row["step"], row["loss"]) for row in rows if "loss" in row]
    evals = [(row["step"], row["eval_loss"]) for row in rows if "eval_loss" in row]
    low = min(value for _, value in losses + evals)
    high = max(value for _, value in losses + evals)
    last = max(step for step, _ in losses + evals)

    def place(step, value):
        x = LEFT + (WIDTH - LEFT - RIGHT) * step / last
        y = TOP + (HEIGHT - TOP - BOTTOM) * (high - value) / max(high - low, 1e-9)
        return f"{x:.1f},{y:.1f}"

    def line(points, colour, width):
        return (f'<polyline fill="none" stroke="{colour}" stroke-width="{width}" points="'
                + " ".join(place(*point) for point in points) + '"/>')

    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" '
             'font-family="sans-serif" font-size="12">',
             f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
             f'<text x="{LEFT}" y="18">{title}</text>']
    for i in range(5):
        value = low + (high - low) * i / 4
        y = float(place(0, value).split(",")[1])
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}" stroke="#ddd"/>')
        parts.append(f'<text x="6" y="{y + 4}">{value:.2f}</text>')
    for i in range(5):
        step = round(last * i / 4)
        x = float(place(step, low).split(",")[0])
        parts.append(f'<text x="{x - 8}" y="{HEIGHT - 22}">{step}</text>')
    parts.append(f'<text x="{LEFT}" y="{HEIGHT - 6}">steps; grey: loss of training, '
                 'blue: loss of the held-out samples</text>')
    parts += [line(losses, "#999", 1), line(evals, "#1a5fb4", 2)]
    parts += [f'<circle cx="{place(*e).split(",")[0]}" cy="{place(*e).split(",")[1]}" r="3" '
              'fill="#1a5fb4"/>' for e in evals]
    return "\n".join(parts) + "\n</svg>\n"


def section(name, title, rows, steps):
    done = max(row["step"] for row in rows)
    evals = [row for row in rows if "eval_loss" in row]
    tokens = sum(row["tokens"] for row in rows if "tokens" in row)
    text = [f"## {title}", "", f"`configs/{name}.yaml`, {done} of {steps} steps"
            + ("." if done == steps else ": stopped there, not run to its end."), ""]
    if evals:
        text += [f"![loss]({name}.svg)", "",
                 "| step | " + " | ".join(str(row["step"]) for row in evals) + " |",
                 "|---" * (len(evals) + 1) + "|",
                 "| held-out loss | " + " | ".join(f"{row['eval_loss']:.3f}" for row in evals) + " |",
                 "", f"Tokens of the logged steps: {tokens:,}.", ""]
    return text


def main():
    runs = pathlib.Path(sys.argv[1])
    text = ["# Fine-tuning on real sets", "",
            f"Made by `bench/sft/curves.py`, {datetime.date.today()}, from runs of commit {sys.argv[2]}, "
            f"{os.cpu_count()} cores ({common.cpu()}), one rank of one thread. The losses do not "
            "depend on ranks, threads or stage.", "",
            "GSM8K: gsm8k_train.jsonl of openai/grade-school-math. Tool calls: LLaMA-Factory's "
            "glaive_toolcall_en_demo.json, without the one record whose first answer begins behind "
            "3,000 characters. No pretrained model of another family than llama was at hand: the gpt2 "
            "begins from nothing, with a vocabulary of 4,096 tokens made from both sets, so its "
            "losses are those of another tokenizer and not to be held against SmolLM2's.", "",
            "```", "PYTHON bench/sft/prepare.py CORPORA .      # glaive.json and gpt2 (PYTHON: "
            "tests/parity/setup.sh)",
            "launch/run train configs/sft_gsm8k.yaml --set model.model_name_or_path=FILE.gguf",
            "launch/run train configs/sft_glaive.yaml --set model.model_name_or_path=FILE.gguf",
            "launch/run train configs/sft_gsm8k_gpt2.yaml",
            "launch/run train configs/sft_glaive_gpt2.yaml",
            "PYTHON bench/sft/curves.py runs COMMIT", "```", ""]
    for name, title in RUNS.items():
        if not (runs / name / "metrics.jsonl").exists():
            text += [f"## {title}", "", f"`configs/{name}.yaml`: not run yet.", ""]
            continue
        rows, steps = read_run(runs / name)
        text += section(name, title, rows, steps)
        if any("eval_loss" in row for row in rows):
            (DOCS / f"{name}.svg").write_text(curve_svg(title, rows))
    (DOCS / "sft.md").write_text("\n".join(text).rstrip() + "\n")


if __name__ == "__main__":
    main()
