"""What the benchmark scripts share: the machine, an idle one, and sections of pages in docs/."""
import datetime
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
MAX_BUSY = 0.05  # of all cores, over the seconds before a measurement


def cpu():
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return "an unknown processor"


def commit():
    """Of the tree the script stands in; with -dirty when it differs from it."""
    return subprocess.run(["git", "-C", str(ROOT), "describe", "--always", "--dirty"],
                          capture_output=True, text=True).stdout.strip()


def made(version):
    """Today and the program that ran, of what `shardtune version` printed: it is not always the one
    of this tree."""
    return f"{datetime.date.today()}, {version.splitlines()[0]}"


def busy_share(seconds=3.0):
    """Share of all cores' time that anything took during the next seconds (Linux, /proc/stat)."""
    def read():
        times = list(map(int, pathlib.Path("/proc/stat").read_text().split("\n")[0].split()[1:9]))
        return sum(times), times[3] + times[4]  # idle and waiting for disks
    total, idle = read()
    time.sleep(seconds)
    total_then, idle_then = read()
    return 1 - (idle_then - idle) / (total_then - total)


def refuse_busy_machine():
    busy = busy_share()
    if busy > MAX_BUSY:
        sys.exit(f"Other work took {100 * busy:.0f}% of the cores just now, expected at most "
                 f"{100 * MAX_BUSY:.0f}%: figures would mean nothing. Wait until the machine is idle.")


def begin(arguments):
    """The folder of a script's --work, on an idle machine unless --dry."""
    if not arguments.dry:
        refuse_busy_machine()
    work = arguments.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    return work


def spread(values, digits=2, scale=1.0):
    """Median (smallest-largest)."""
    return (f"{statistics.median(values) / scale:.{digits}f} "
            f"({min(values) / scale:.{digits}f}-{max(values) / scale:.{digits}f})")


def write_section(page, begin, end, text):
    """Replaces what stands between two marks of a page of docs/."""
    path = ROOT / "docs" / page
    head, rest = path.read_text().split(begin, 1)
    path.write_text(f"{head}{begin}\n{text}\n{end}{rest.split(end, 1)[1]}")
    print(f"written to {path}")


def train(config, work, ranks=1, program=None):
    """Runs launch/run train with a configuration whose output_dir is WORK/run, from the beginning.
    The program's JSON result, with what it logged as "log", and the lines of its metrics."""
    subprocess.run(["rm", "-rf", str(work / "run")], check=True)
    command = [str(ROOT / "launch/run"), "-n", str(ranks), "train", str(config), "--resume",
               "never", "--json"]
    environment = dict(os.environ, **({"SHARDTUNE_BINARY": str(program)} if program else {}))
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}: code {done.returncode}\n{done.stderr}")
    lines = (work / "run/metrics.jsonl").read_text().splitlines()
    subprocess.run(["rm", "-rf", str(work / "run")], check=True)
    result = dict(json.loads(done.stdout), log=done.stderr)
    return result, [json.loads(line) for line in lines]


def fio(folder, mib):
    """Bytes per second of one write and one read of a laid out file, with O_DIRECT."""
    path = pathlib.Path(folder) / "fio.bin"
    speeds = {}
    for kind in ("write", "write", "read"):  # the first write lays the file out
        out = subprocess.run(
            ["fio", "--name=x", f"--filename={path}", f"--rw={kind}", f"--size={mib}m", "--bs=1m",
             "--ioengine=io_uring", "--fixedbufs=1", "--direct=1", "--iodepth=32",
             "--output-format=json"], check=True, capture_output=True, text=True).stdout
        speeds[kind] = json.loads(out[out.index("{"):])["jobs"][0][kind]["bw_bytes"]
    path.unlink()
    return speeds
