#!/usr/bin/env python3
"""What LoRA, DoRA and a base in NF4 cost beside a step that has next to no adapter, in turns, as a
section of docs/adapters.md.

    bench/adapters/overhead.py --model FILE.gguf [--turns 3] [--steps 6] [--dry]

The step beside which they are measured trains one linear of the first layer: its gradient goes
through every layer as that of any adapter does. A share of a step is (step - that step) / step; the
share of operations is that of the program's own count (docs/metrics.md). Refuses a busy machine;
--dry allows one and leaves docs/ alone. Needs Python 3.11 and a Release build.
"""
import argparse
import pathlib
import re
import statistics
import subprocess
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
import common  # noqa: E402

BEGIN, END = "<!-- overhead:begin -->", "<!-- overhead:end -->"
WARM_UP = 2  # steps that are not counted
ONE, LORA, NF4 = "LoRA on one linear", "LoRA", "LoRA, base in NF4"
SIDES = {  # adapter, quantization
    ONE: ("target_modules: 'model\\.layers\\.0\\.self_attn\\.q_proj'", "method: none"),
    LORA: ("target_modules: all-linear", "method: none"),
    "DoRA": ("target_modules: all-linear, use_dora: true", "method: none"),
    NF4: ("target_modules: all-linear", "method: nf4, double_quant: true"),
}


def train(options, work, adapter, quantization):
    """Seconds of each counted step, and millions of operations per token."""
    config = work / "overhead.yaml"
    config.write_text(f"""\
model: {{model_name_or_path: "{options.model}"}}
quantization: {{{quantization}}}
adapter: {{lora_rank: 16, lora_alpha: 32, {adapter}}}
data: {{train: [{{path: "{work / 'text.txt'}", format: text}}], chat_template: none, max_length: 512}}
training: {{objective: pretrain, max_steps: {WARM_UP + options.steps}, micro_batch_size: 4,
           global_batch_size: 4}}
checkpoint: {{output_dir: "{work / 'run'}"}}
""")
    result, lines = common.train(config, work)
    operations = re.search(r"needs ([0-9.]+) MFLOP per token", result["log"])
    return [line["step_time_ms"] / 1000 for line in lines[WARM_UP:]], float(operations[1])


def table(seconds, operations, options):
    base = statistics.median(seconds[ONE])
    lora = statistics.median(seconds[LORA])
    version = subprocess.run([str(common.ROOT / "launch/run"), "-n", "1", "version"], check=True,
                             capture_output=True, text=True).stdout.splitlines()[0]
    lines = ["| a step of 512 x 4 tokens, rank 16 | seconds | share of the step | share of its "
             "operations | of LoRA's step |", "|---|---|---|---|---|"]
    for name, values in seconds.items():
        median = statistics.median(values)
        share = f"{1 - base / median:.1%}" if name != ONE else "-"
        of_operations = f"{1 - operations[ONE] / operations[name]:.1%}" if name != ONE else "-"
        lines.append(f"| {name} | {common.spread(values)} | {share} | {of_operations} | "
                     f"{median / lora:.3f} |")
    lines += ["", f"Medians over {options.turns} turns of {options.steps} steps, bfloat16, "
              f"{common.made(version)}, {common.cpu()}."]
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=pathlib.Path, required=True)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--work", type=pathlib.Path,
                        default=common.ROOT / "build/methods-bench")
    parser.add_argument("--dry", action="store_true")
    options = parser.parse_args()
    work = common.begin(options)
    (work / "text.txt").write_text("The quick brown fox jumps over the lazy dog. " * 8000)
    seconds = {name: [] for name in SIDES}
    operations = {}
    for _ in range(options.turns):
        for name, (adapter, quantization) in SIDES.items():
            values, operations[name] = train(options, work, adapter, quantization)
            seconds[name] += values
            print(f"{name}: {common.spread(values)} s", flush=True)
    text = table(seconds, operations, options)
    print(text)
    if not options.dry:
        common.write_section("adapters.md", BEGIN, END, text)


if __name__ == "__main__":
    main()
