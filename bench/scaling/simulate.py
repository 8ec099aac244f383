#!/usr/bin/env python3
"""Step time of runs on more ranks than this machine can hold, from the engine's own calls.

    bash bench/scaling/calibrate.sh CONFIG CALIBRATION          # on an idle machine
    bench/scaling/simulate.py --schedule build/release/bench/scaling/scaling_schedule \\
        --config CONFIG --calibration CALIBRATION [--check-only]

Measured: seconds between the leases of one rank of one thread; N ranks that do not talk; the time of
collectives in shared memory; steps of 2, 4 and 8 ranks, which only check. Everything else is
simulated. CONFIG needs text for 4,096 rows, see docs/scaling.md, which is written here.
"""
import argparse
import datetime
import json
import pathlib
import statistics
import subprocess

ROOT = pathlib.Path(__file__).resolve().parents[2]
RANKS_PER_HOST = 8
LATENCY = 10e-6  # seconds of a message between hosts
GBITS = (10, 25, 100, 400)


def events_of(path):
    return [dict(zip(("kind", "main", "id", "messages", "sent", "received", "at"), event))
            for event in json.loads(pathlib.Path(path).read_text())["events"]]


def micro_batches(events):
    """Seconds from each lease to the next, for every micro-batch of a measured run, and what a step
    takes beside them."""
    rounds, leases, rest = [], [], 0.0
    for event, later in zip(events, events[1:]):
        seconds = later["at"] - event["at"]
        if event["kind"] == "unit":
            if later["kind"] == "unit":
                leases.append(seconds)
                continue
            # The last lease's work ends before the calls of the step's end.
            leases.append(min(seconds, statistics.median(leases)))
            rest += seconds - leases[-1]
        if event["kind"] == "unit":
            rounds.append(leases)
            leases = []
        else:
            rest += seconds
    return rounds, rest


def seconds_per_micro_batch(folder, ranks):
    """Of ranks that run at once and do not talk, the update of weights included."""
    rounds = []
    for first in sorted(folder.glob(f"alone-{ranks}-0-*.json")):
        totals = []
        for rank in range(ranks):
            events = events_of(folder / first.name.replace("-0-", f"-{rank}-"))
            totals.append((events[-1]["at"] - events[0]["at"]) / len(micro_batches(events)[0]))
        rounds.append(max(totals))  # calls wait for the slowest
    return statistics.mean(rounds)


def seconds_of_steps(folder, ranks, stage):
    """Steps of real runs, each run's first one left out."""
    return [json.loads(line)["step_time_ms"] * 1e-3
            for path in folder.glob(f"run-{ranks}-{stage}-*.jsonl")
            for line in path.read_text().splitlines()[1:]]


class SharedMemory:
    """Calls among the ranks of one host: a + b x bytes that a rank sends, by number of ranks."""

    def __init__(self, folder):
        self.costs = {}
        for ranks in (2, 4, 8):
            rows = {}
            for line in (folder / f"collectives-{ranks}.txt").read_text().splitlines():
                cells = [cell.strip() for cell in line.strip("| ").split("|")]
                if len(cells) > 4 and cells[0] in ("exchange", "all_gather"):
                    amount, unit = cells[2].split()
                    size = int(amount) << {"KiB": 10, "MiB": 20}[unit]
                    rows[cells[0], size] = float(cells[3]) * 1e-6
            smallest, largest = 1 << 10, max(size for _, size in rows)
            start = rows["exchange", smallest]
            sent = largest * (ranks - 1) / ranks
            self.costs[ranks] = (start, (rows["exchange", largest] - start) / sent,
                                 rows["all_gather", smallest])

    def seconds(self, event, ranks):
        start, per_byte, gather = self.costs[ranks]
        return gather if event["kind"] == "all_gather" else start + per_byte * mean_bytes(event)


def mean_bytes(event):
    """What a rank sends in an exchange, the mean of all ranks: rank 0 may hold more or less of a
    unit than others, but receives what they do. Leaves go both ways alike."""
    if not event["main"]:
        return event["received"]
    return (event["sent"] + event["received"]) / 2


def schedule(arguments, ranks, stage, model=None, batch=None):
    command = [str(arguments.schedule), "record", str(arguments.config), str(ranks),
               "--set", f"parallel.zero_optimization.stage={stage}"]
    if model:
        command += ["--set", f"model.model_name_or_path={model}"]
    if batch:
        command += ["--set", f"training.global_batch_size={batch}"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    path = arguments.calibration / "schedule.json"
    path.write_text(text)
    return events_of(path)


def seconds_per_walk(folder, ranks):
    """What bringing the units of a micro-batch takes on one host, where nothing is gathered."""
    return json.loads((folder / f"walk-{ranks}.json").read_text())["median_ms"] * 1e-3


def check(arguments, memory):
    """(ranks, stage, predicted, measured seconds): all ranks on this machine's cores, which are
    busy throughout, so that nothing is hidden behind anything. On one host stage 3 maps units and
    gathers none."""
    rows = []
    for stage in (2, 3):
        for ranks in (2, 4, 8):
            events = schedule(arguments, ranks, stage)
            talk = sum(memory.seconds(event, ranks) for event in events
                       if event["main"] and event["kind"] in ("exchange", "all_gather"))
            rounds = sum(event["kind"] == "round" and event["id"] >= 0 for event in events)
            if stage == 3:
                talk += rounds * seconds_per_walk(arguments.calibration, ranks)
            compute = rounds * seconds_per_micro_batch(arguments.calibration, ranks)
            measured = seconds_of_steps(arguments.calibration, ranks, stage)
            rows.append((ranks, stage, compute + talk, statistics.mean(measured), talk))
    return rows


def gather_ahead(gathers, ranks):
    """Units that a rank gathers ahead (parallel/unit_residency.h)."""
    largest = max((event["received"] * ranks / (ranks - 1) for event in gathers), default=0)
    return min(max(int((64 << 20) // max(largest, 1)), 1), 8)


def cluster_seconds(events, intervals, rest, memory, ranks, gbits, gathers_once_per_host):
    """One step of a cluster: a core for each rank, hosts of 8 that share one network interface. Gathers
    run ahead, one after another, beside the units; other calls wait. Ranks are alike, so one stands for all."""
    bytes_per_second = gbits * 1e9 / 8
    hosts = ranks // RANKS_PER_HOST
    away = (ranks - RANKS_PER_HOST) / (ranks - 1)  # part of a rank's messages that leave its host

    def cost(event):
        start, per_byte, gather = memory.costs[RANKS_PER_HOST]
        if hosts <= 1:
            return memory.seconds(event, RANKS_PER_HOST)
        inside = start + per_byte * mean_bytes(event) * (1 - away)
        if event["kind"] == "all_gather":
            return gather + LATENCY * (hosts - 1) + event["received"] / bytes_per_second
        if gathers_once_per_host and not event["main"]:
            # Every host takes the unit in once and hands it on through its memory.
            return (start + per_byte * event["received"] + LATENCY * (hosts - 1) +
                    event["received"] / bytes_per_second)
        return (inside + LATENCY * event["messages"] * away +
                RANKS_PER_HOST * mean_bytes(event) * away / bytes_per_second)

    gathers = [event for event in events if event["kind"] == "exchange" and not event["main"]]
    costs = iter([cost(event) for event in gathers])
    ahead = gather_ahead(gathers, ranks)
    now, waiting, unit = 0.0, 0.0, 0
    free = 0.0  # when the thread that gathers is through with what it was asked for
    arrivals = []  # of this walk's units
    for event in events:
        if event["kind"] == "round":
            unit = 0
            arrivals = []
        elif event["kind"] == "unit":
            while gathers and len(arrivals) < min(unit + max(ahead, 1), len(intervals)):
                free = max(free, now) + next(costs)
                arrivals.append(free)
            if gathers:
                waiting += max(0.0, arrivals[unit] - now)
                now = max(now, arrivals[unit])
                if len(arrivals) < min(unit + 1 + ahead, len(intervals)):
                    free = max(free, now) + next(costs)
                    arrivals.append(free)
            now += intervals[unit]
            unit += 1
        elif event["main"] and event["kind"] in ("exchange", "all_gather"):
            seconds = cost(event)
            now += seconds
            waiting += seconds
    return now + rest, waiting


def curve_svg(title, curves, counts):
    width, height, left, bottom = 560, 340, 60, 50
    colours = ("#3465a4", "#c4421a", "#4e7d0a", "#75507b")
    x = {n: left + i * (width - left - 130) / (len(counts) - 1) for i, n in enumerate(counts)}

    def y(value):
        return height - bottom - value * (height - bottom - 40)

    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
             'font-family="sans-serif" font-size="12">',
             f'<rect width="{width}" height="{height}" fill="white"/>',
             f'<text x="{left}" y="22" font-size="14">{title}</text>']
    for tick in (0, 0.25, 0.5, 0.75, 1):
        parts.append(f'<line x1="{left}" y1="{y(tick)}" x2="{x[counts[-1]]}" y2="{y(tick)}" '
                     'stroke="#ddd"/>')
        parts.append(f'<text x="{left - 8}" y="{y(tick) + 4}" text-anchor="end">{tick}</text>')
    for n in counts:
        parts.append(f'<text x="{x[n]}" y="{height - bottom + 18}" text-anchor="middle">{n}</text>')
    parts.append(f'<text x="{(left + x[counts[-1]]) / 2}" y="{height - 12}" text-anchor="middle">'
                 'ranks, 8 a host</text>')
    for i, (name, dashed, values) in enumerate(curves):
        points = " ".join(f"{x[n]:.1f},{y(v):.1f}" for n, v in zip(counts, values))
        dash = ' stroke-dasharray="5 4"' if dashed else ""
        colour = colours[i // 2 % len(colours)]
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" '
                     f'stroke-width="2"{dash}/>')
        row = 50 + 18 * i
        parts.append(f'<line x1="{width - 120}" y1="{row}" x2="{width - 96}" y2="{row}" '
                     f'stroke="{colour}" stroke-width="2"{dash}/>')
        parts.append(f'<text x="{width - 90}" y="{row + 4}">{name}</text>')
    return "\n".join(parts) + "\n</svg>\n"


def simulate(arguments, memory):
    """Efficiency (1 rank = 1) of one micro-batch a rank, by stage, rate and number of ranks."""
    rounds, rest = micro_batches(events_of(arguments.calibration / "alone-1-0-0.json"))
    intervals = [statistics.median(values) for values in zip(*rounds)]
    compute = sum(intervals)
    rest = rest / 2  # two steps
    counts = [8, 64, 512, 4096]
    results = {}
    for stage in (2, 3):
        for ranks in counts:
            events = schedule(arguments, ranks, stage, batch=ranks)
            for gbits in GBITS:
                for once in ((False, True) if stage == 3 else (False,)):
                    seconds, waiting = cluster_seconds(events, intervals, rest / ranks, memory,
                                                       ranks, gbits, once)
                    results[stage, gbits, once, ranks] = (compute / seconds, seconds, waiting)
    return counts, results


def document(arguments, rows, counts, results):
    lines = ["# Scaling beyond one machine", "",
             f"Made by `bench/scaling/simulate.py`, {datetime.date.today()}, calibrated "
             f"{(arguments.calibration / 'date.txt').read_text().strip()} on 2 cores (AMD EPYC): "
             "SmolLM2-135M, NF4 with double quantisation, LoRA rank 16, 256 tokens a micro-batch, "
             "one thread a rank.", "", "## Checked on this machine", "",
             "Measured: steps of real runs, 8 micro-batches each. Predicted: seconds a micro-batch "
             "of as many ranks that do not talk, plus the recorded calls at the cost that the "
             "collectives have alone, at stage 3 also a walk that maps the units and computes "
             "nothing (on one host no unit is gathered). Ranks that talk and ranks that do not ran "
             "in turns.", "",
             "| ranks | stage | predicted s | of it calls | measured s | predicted / measured |",
             "|---|---|---|---|---|---|"]
    for ranks, stage, predicted, measured, talk in rows:
        lines.append(f"| {ranks} | {stage} | {predicted:.2f} | {talk:.3f} | {measured:.2f} | "
                     f"{predicted / measured:.3f} |")
    lines += ["", "## Simulated", "",
              "Not measured: no cluster was at hand. One micro-batch of 256 tokens a rank and step "
              f"(weak scaling), a core for each rank, hosts of {RANKS_PER_HOST} ranks that share "
              f"one network interface, {LATENCY * 1e6:.0f} microseconds a message between hosts; "
              "inside a host the measured cost of 8 ranks on 2 cores, which is too slow for a host "
              "that has a core for each. Efficiency is compute time by step time. \"Direct\" "
              "exchanges move every message by itself, as the engine did before "
              "Communicator::all_gather_blocks; \"once\" brings each gathered unit into a host "
              "once, as it does now.", "",
              "![efficiency](scaling.svg)", "",
              "| stage | Gbit/s | gathers | " + " | ".join(f"{n} ranks" for n in counts) + " |",
              "|---|---|---|" + "---|" * len(counts)]
    for stage, gbits, once in sorted({key[:3] for key in results}):
        cells = [f"{results[stage, gbits, once, n][0]:.2f} ({results[stage, gbits, once, n][1]:.2f} s)"
                 for n in counts]
        name = "-" if stage == 2 else "once a host" if once else "direct"
        lines.append(f"| {stage} | {gbits} | {name} | " + " | ".join(cells) + " |")
    (ROOT / "docs/scaling.md").write_text("\n".join(lines) + "\n")
    curves = []
    for gbits in GBITS:
        curves.append((f"stage 3, {gbits} G", False,
                       [results[3, gbits, True, n][0] for n in counts]))
        curves.append((f"stage 2, {gbits} G", True,
                       [results[2, gbits, False, n][0] for n in counts]))
    (ROOT / "docs/scaling.svg").write_text(
        curve_svg("Simulated efficiency, SmolLM2-135M QLoRA (stage 3: once a host)", curves, counts))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--schedule", type=pathlib.Path, required=True)
    parser.add_argument("--config", type=pathlib.Path, required=True)
    parser.add_argument("--calibration", type=pathlib.Path, required=True)
    parser.add_argument("--check-only", action="store_true")
    arguments = parser.parse_args()
    memory = SharedMemory(arguments.calibration)
    rows = check(arguments, memory)
    for row in rows:
        print("ranks {} stage {}: predicted {:.3f} s, measured {:.3f} s (calls {:.3f} s)".format(*row), flush=True)
    if not arguments.check_only:
        document(arguments, rows, *simulate(arguments, memory))


if __name__ == "__main__":
    main()
