"""What is left of the engine's speed when another process keeps one of its cores busy.

    bench_busy.py BENCH_ENGINE MODEL [--rounds N] [--row ROW ...] [--json FILE]

Runs bench_engine with two threads on two cores: alone, then beside a process that never sleeps, of the same priority and pinned to the
second and to the first of these cores, in turn. Prints a row for each: the speed beside it as a share of the speed alone.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys

ROWS = ["prefill_512", "decode_d0", "batch_16"]
GOAL = 0.45
SECONDS_MAX = 300  # of a run and of the busy process


def measure(args, cores, busy_core):
    """Samples of each row, in tokens/s, beside a process that keeps busy_core busy (None: alone)."""
    busy = None
    if busy_core is not None:
        program = f"import time\nend = time.monotonic() + {SECONDS_MAX}\nwhile time.monotonic() < end: pass"
        busy = subprocess.Popen([sys.executable, "-c", program], preexec_fn=lambda: os.sched_setaffinity(0, {busy_core}))
    try:
        done = subprocess.run([args.engine, args.model, "2", str(args.repetitions), "fast", *args.row], check=True, text=True, timeout=SECONDS_MAX,
                              stdout=subprocess.PIPE, preexec_fn=lambda: os.sched_setaffinity(0, cores))
    finally:
        if busy:
            busy.kill()
            busy.wait()
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    return {row["row"]: row["samples"] for row in rows}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engine", help="build/tests/bench/bench_engine")
    parser.add_argument("model", help="GGUF file")
    parser.add_argument("--rounds", type=int, default=3, help="alone, busy, busy: so many times")
    parser.add_argument("--repetitions", type=int, default=3, help="samples of a row in each run")
    parser.add_argument("--row", action="append", help=f"rows of bench_engine (default: {' '.join(ROWS)})")
    parser.add_argument("--json", help="also write the rows to this file")
    args = parser.parse_args()
    args.row = args.row or ROWS
    cores = sorted(os.sched_getaffinity(0))[:2]
    if len(cores) < 2:
        sys.exit("bench_busy.py: it takes two cores, this process may use one")
    places = [None, cores[1], cores[0]]
    samples = {place: {row: [] for row in args.row} for place in places}
    for _ in range(args.rounds):
        for place in places:
            for row, found in measure(args, cores, place).items():
                samples[place][row] += found
    rows = []
    for row in args.row:
        alone = statistics.median(samples[None][row])
        for place in places[1:]:
            busy = statistics.median(samples[place][row])
            rows.append({"row": f"busy_core_share.{row}", "engine": "baton", "threads": 2, "busy": "second" if place == cores[1] else "first",
                         "alone": round(alone, 1), "median": round(busy / alone, 3), "min": round(min(samples[place][row]) / alone, 3),
                         "max": round(max(samples[place][row]) / alone, 3), "unit": "share", "n": len(samples[place][row]), "goal": GOAL})
            print(json.dumps(rows[-1]), flush=True)
    if args.json:
        with open(args.json, "w") as file:
            json.dump(rows, file, indent=1)


if __name__ == "__main__":
    main()
