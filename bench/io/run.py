#!/usr/bin/env python3
"""The block store of io/ beside fio on one file system, in turns: io_uring, O_DIRECT, 1 MiB requests,
registered buffers on both sides; fio at depth 32 and with its buffers in 4 KiB pages, the store with
huge pages. Each side writes and reads the same number of bytes in sequence. Prints medians and
writes the section of docs/benchmarks.md.

    python3 bench/io/run.py [--folder DIR] [--rounds 5] [--mib 1024] [--dry]
    --dry leaves docs/benchmarks.md as it is. Needs fio (apt-get install fio) and
    build/release/bench/io/block_file_bench (cmake -DSHARDTUNE_BENCH=ON).
"""
import argparse
import datetime
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
import common  # noqa: E402

BENCH = common.ROOT / "build/release/bench/io/block_file_bench"
BEGIN, END = "<!-- io:begin -->", "<!-- io:end -->"


def ours(folder, mib):
    out = subprocess.run([BENCH, folder, str(mib)], check=True, capture_output=True, text=True).stdout
    return json.loads(out)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", default=tempfile.gettempdir())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--dry", action="store_true")
    args = parser.parse_args()
    if not BENCH.exists():
        sys.exit(f"{BENCH} is absent. Build it with -DSHARDTUNE_BENCH=ON.")
    if not args.dry:
        common.refuse_busy_machine()
    rows = []
    for _ in range(args.rounds):
        rows.append((ours(args.folder, args.mib), common.fio(args.folder, args.mib)))
    lines = ["| sequential, 1 MiB requests, O_DIRECT | block store GB/s | fio GB/s | ratio in one round |",
             "|---|---|---|---|"]
    for kind in ("write", "read"):
        own = [a[f"{kind}_bytes_per_second"] for a, _ in rows]
        peer = [b[kind] for _, b in rows]
        ratios = [a / b for a, b in zip(own, peer)]
        lines.append(f"| {kind} | {common.spread(own, scale=1e9)} | {common.spread(peer, scale=1e9)} | {common.spread(ratios)} |")
    share = [a["read_bytes_per_second"] / a["crc_bytes_per_second"] for a, _ in rows]
    crc = [a["crc_bytes_per_second"] for a, _ in rows]
    version = subprocess.run(["fio", "--version"], capture_output=True, text=True).stdout.strip()
    lines += ["", f"CRC-32C of the same bytes on one core: {common.spread(crc, scale=1e9)} GB/s, "
              f"{statistics.median(share):.1%} of the time that reading them takes; it runs while "
              "the next transfers are under way.", "",
              f"{datetime.date.today()}, commit {common.commit()}, {common.cpu()}, {os.cpu_count()} threads, "
              f"{platform.platform()}; {args.mib} MiB a pass, {args.rounds} rounds in turns, median "
              f"(smallest-largest). {rows[0][0]['io']}; {version}, depth 32; the store keeps its buffers in huge pages, fio in 4 KiB pages."]
    text = "\n".join(lines)
    print(text)
    if args.dry:
        return
    common.write_section("benchmarks.md", BEGIN, END, text)


if __name__ == "__main__":
    main()
