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

ROOT = pathlib.Path(__file__).resolve().parents[2]
BENCH = ROOT / "build/release/bench/io/block_file_bench"
BEGIN, END = "<!-- io:begin -->", "<!-- io:end -->"


def fio(folder, mib):
    """Bytes per second of one write and one read of a laid out file."""
    path = os.path.join(folder, "fio.bin")
    speeds = {}
    for kind in ("write", "write", "read"):  # the first write lays the file out
        out = subprocess.run(
            ["fio", "--name=x", f"--filename={path}", f"--rw={kind}", f"--size={mib}m", "--bs=1m",
             "--ioengine=io_uring", "--fixedbufs=1", "--direct=1", "--iodepth=32",
             "--output-format=json"], check=True, capture_output=True, text=True).stdout
        speeds[kind] = json.loads(out[out.index("{"):])["jobs"][0][kind]["bw_bytes"]
    os.unlink(path)
    return speeds


def ours(folder, mib):
    out = subprocess.run([BENCH, folder, str(mib)], check=True, capture_output=True, text=True).stdout
    return json.loads(out)


def spread(values, scale=1e9):
    return (f"{statistics.median(values) / scale:.2f} "
            f"({min(values) / scale:.2f}-{max(values) / scale:.2f})")


def processor():
    with open("/proc/cpuinfo") as file:
        return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", default=tempfile.gettempdir())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--dry", action="store_true")
    args = parser.parse_args()
    if not BENCH.exists():
        sys.exit(f"{BENCH} is absent. Build it with -DSHARDTUNE_BENCH=ON.")
    rows = []
    for _ in range(args.rounds):
        rows.append((ours(args.folder, args.mib), fio(args.folder, args.mib)))
    lines = ["| sequential, 1 MiB requests, O_DIRECT | block store GB/s | fio GB/s | ratio in one round |",
             "|---|---|---|---|"]
    for kind in ("write", "read"):
        own = [a[f"{kind}_bytes_per_second"] for a, _ in rows]
        peer = [b[kind] for _, b in rows]
        ratios = [a / b for a, b in zip(own, peer)]
        lines.append(f"| {kind} | {spread(own)} | {spread(peer)} | {spread(ratios, 1)} |")
    share = [a["read_bytes_per_second"] / a["crc_bytes_per_second"] for a, _ in rows]
    crc = [a["crc_bytes_per_second"] for a, _ in rows]
    version = subprocess.run(["fio", "--version"], capture_output=True, text=True).stdout.strip()
    commit = subprocess.run(["git", "-C", ROOT, "rev-parse", "--short", "HEAD"],
                            capture_output=True, text=True).stdout.strip()
    lines += ["", f"CRC-32C of the same bytes on one core: {spread(crc)} GB/s, "
              f"{statistics.median(share):.1%} of the time that reading them takes; it runs while "
              "the next transfers are under way.", "",
              f"{datetime.date.today()}, commit {commit}, {processor()}, {os.cpu_count()} threads, "
              f"{platform.platform()}; {args.mib} MiB a pass, {args.rounds} rounds in turns, median "
              f"(smallest-largest). {rows[0][0]['io']}; {version}, depth 32; the store keeps its buffers in huge pages, fio in 4 KiB pages."]
    text = "\n".join(lines)
    print(text)
    if args.dry:
        return
    page = ROOT / "docs/benchmarks.md"
    before, rest = page.read_text().split(BEGIN)
    page.write_text(before + BEGIN + "\n" + text + "\n" + END + rest.split(END)[1])


if __name__ == "__main__":
    main()
