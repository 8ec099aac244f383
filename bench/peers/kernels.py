#!/usr/bin/env python3
"""Attention, head with cross-entropy, and AdamW: our kernels and torch's in turns, one process each,
on the same shapes and threads, bfloat16 (AdamW float32). Writes a section of docs/benchmarks.md.
Refuses a busy machine.

    PYTHON bench/peers/kernels.py [--only WORD] [--rounds 3] [--dry]
    PYTHON: see tests/parity/setup.sh. Needs a build with SHARDTUNE_BENCH=ON.
    --dry allows a busy machine and leaves docs/benchmarks.md as it is: its figures mean nothing.

Attention: torch's scaled_dot_product_attention, causal, grouped heads expanded by it; samples of S
tokens, 2,048 in all, 9 heads, 3 of keys and values, of 64. Head: logits in bfloat16, cross-entropy
of them in float32, as transformers has it; the gradient of the hidden states, the table frozen.
AdamW: torch.optim.AdamW(fused=True).
"""
import argparse
import datetime
import json
import os
import pathlib
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "bench"))
import common  # noqa: E402

BEGIN, END = "<!-- kernels:begin -->", "<!-- kernels:end -->"
TOKENS, HIDDEN = 2048, 576
SECONDS = 1.0  # of each side and round


def attention(length):
    return {"name": f"attention, S {length}", "peer": ["attention", length],
            "ours": [("kernels", f"attention_{way}_bench/S:{length}/bf16:1/real_time")
                     for way in ("forward", "backward")]}


def head(vocabulary, percent):
    return {"name": f"head, V {vocabulary:,}, {percent}% trained",
            "peer": ["head", vocabulary, percent],
            "ours": [("models", f"head_loss_bench/V:{vocabulary}/percent:{percent}/real_time")]}


def adamw(count):
    return {"name": f"AdamW, {count:,} values", "peer": ["adamw", count],
            "ours": [("optim", f"adamw_bench/N:{count}/real_time")]}


CASES = [attention(128), attention(512), attention(2048), head(49152, 100), head(49152, 50),
         head(49152, 10), head(128256, 100), adamw(4884480), adamw(1 << 26)]


def ours(case):
    """Milliseconds of a call, and bytes that memory grew by (None where not measured)."""
    total, grown = 0.0, None
    for program, name in case["ours"]:
        done = subprocess.run(
            [str(ROOT / f"build/release/bench/{program}/{program}_bench"),
             f"--benchmark_filter=^{name}$", f"--benchmark_min_time={SECONDS}",
             "--benchmark_format=json"], capture_output=True, text=True, check=True)
        found = json.loads(done.stdout)["benchmarks"][0]
        total += found["real_time"] * {"us": 1e-3, "ms": 1.0}[found["time_unit"]]
        grown = found.get("grown_bytes", grown)
    return total, grown


def peer_body(kind, *sizes):
    """A function that makes one call."""
    import torch
    import torch.nn.functional as functional
    generator = torch.Generator().manual_seed(1)

    def random(*shape, grad=False, scale=1.0):
        values = torch.randn(*shape, generator=generator) * scale
        return values.to(torch.bfloat16).requires_grad_(grad)
    if kind == "attention":
        rows = TOKENS // sizes[0]
        q, k, v = (random(rows, heads, sizes[0], 64, grad=True) for heads in (9, 3, 3))
        dout = random(rows, 9, sizes[0], 64)

        def attend():
            q.grad = k.grad = v.grad = None
            functional.scaled_dot_product_attention(
                q, k, v, is_causal=True, enable_gqa=True).backward(dout)
        return attend
    if kind == "head":
        weight = random(sizes[0], HIDDEN, scale=0.02)
        hidden = random(TOKENS, HIDDEN, grad=True)
        labels = torch.full((TOKENS,), -100)
        for t in range(TOKENS):
            if t * sizes[1] // 100 != (t + 1) * sizes[1] // 100:
                labels[t] = t * 7919 % sizes[0]

        def go():
            hidden.grad = None
            functional.cross_entropy((hidden @ weight.T).float(), labels).backward()
        return go
    parameter = torch.randn(sizes[0], generator=generator).requires_grad_(True)
    parameter.grad = torch.randn(sizes[0], generator=generator)
    return torch.optim.AdamW([parameter], lr=1e-4, weight_decay=0.01, fused=True).step


def resident_bytes():
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE")


def run_peer(arguments):
    call = peer_body(arguments[0], *map(int, arguments[1:]))
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    before = resident_bytes()
    call()
    begin, count = time.perf_counter(), 0
    while time.perf_counter() - begin < SECONDS or count < 3:
        call()
        count += 1
    seconds = (time.perf_counter() - begin) / count
    status = pathlib.Path("/proc/self/status").read_text()
    peak = int(status.split("VmHWM:")[1].split()[0]) * 1024
    print(json.dumps([1e3 * seconds, max(0, peak - before)]))


def peer(case):
    command = [sys.executable, __file__, "--peer", *map(str, case["peer"])]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def row(case, rounds):
    found, theirs = [], []
    for _ in range(rounds):
        found.append(ours(case))
        theirs.append(peer(case))
    times = [[t for t, _ in side] for side in (found, theirs)]
    ratios = [b / a for a, b in zip(*times)]
    memory = "- | -"
    if found[0][1] is not None:
        memory = " | ".join(f"{max(grown for _, grown in side) / 1e6:.0f}"
                            for side in (found, theirs))
    return (f"| {case['name']} | {common.spread(times[0])} | {common.spread(times[1])} | "
            f"{common.spread(ratios)} | {memory} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dry", action="store_true")
    parser.add_argument("--peer", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peer:
        return run_peer(arguments.peer)
    if not arguments.dry:
        common.refuse_busy_machine()
    import torch
    lines = ["| what | shardtune ms | torch ms | torch / shardtune | shardtune grew MB | torch grew MB |",
             "|---|---|---|---|---|---|"]
    for case in CASES:
        if arguments.only in case["name"]:
            lines.append(row(case, arguments.rounds))
            print(lines[-1], flush=True)
    lines.append(f"\n{common.cpu()}, {os.cpu_count()} threads, torch {torch.__version__}, "
                 f"{arguments.rounds} rounds, {common.commit()}, {datetime.date.today()}.")
    if not arguments.dry and not arguments.only:
        common.write_section("benchmarks.md", BEGIN, END, "\n".join(lines))


if __name__ == "__main__":
    main()
