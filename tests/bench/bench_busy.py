"""What is left of the engine's speed when another process keeps one of its cores busy.

    bench_busy.py [--build DIR] [--model FILE] [--rounds N] [--row ROW ...]

Runs bench_engine with two threads on two cores: alone, then beside a process that never sleeps, of the same priority and pinned to the
second and to the first of these cores, in turn. Threads are free to move, as a worker's are by default, and once more each pinned to its
core. Prints a row for each: the speed beside it as a share of the speed alone.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

from common import ROOT, model_path, two_cores

ROWS = ["prefill_512", "decode_d0", "batch_16"]
SECONDS_MAX = 300  # of a run and of the busy process


def measure(args, cores, threads, busy_core):
    """Samples of each row, in tokens/s, beside a process that keeps busy_core busy (None: alone)."""
    busy = None
    if busy_core is not None:
        program = f"import time\nend = time.monotonic() + {SECONDS_MAX}\nwhile time.monotonic() < end: pass"
        busy = subprocess.Popen([sys.executable, "-c", program], preexec_fn=lambda: os.sched_setaffinity(0, {busy_core}))
    try:
        done = subprocess.run([args.engine, args.model, threads, str(args.repetitions), "fast", *args.row], check=True, text=True, timeout=SECONDS_MAX,
                              stdout=subprocess.PIPE, preexec_fn=lambda: os.sched_setaffinity(0, cores))
    finally:
        if busy:
            busy.kill()
            busy.wait()
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    return {row["row"]: row["samples"] for row in rows}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", type=Path, default=ROOT / "build", help="the build to measure")
    parser.add_argument("--model", help="GGUF file; the default model otherwise")
    parser.add_argument("--rounds", type=int, default=3, help="so many times")
    parser.add_argument("--repetitions", type=int, default=3, help="samples of a row in each run")
    parser.add_argument("--row", action="append", help=f"rows of bench_engine (default: {' '.join(ROWS)})")
    args = parser.parse_args()
    args.row = args.row or ROWS
    args.engine = args.build / "tests" / "bench" / "bench_engine"
    args.model = model_path(args.model)
    cores = two_cores("busy")
    places = [None, cores[1], cores[0]]
    samples = {}
    for _ in range(args.rounds):
        for threads in ("2,unpinned", "2"):
            for place in places:
                for row, found in measure(args, cores, threads, place).items():
                    samples.setdefault((threads, place, row), []).extend(found)
    for (threads, place, row), found in samples.items():
        if place is None:
            continue
        alone = statistics.median(samples[threads, None, row])
        name = f"busy_core_share_{row}_{'second' if place == cores[1] else 'first'}{'' if 'unpinned' in threads else '_pinned'}"
        print(json.dumps({"row": name, "engine": "baton", "threads": 2, "unit": "share", "samples": [busy / alone for busy in found]}), flush=True)


if __name__ == "__main__":
    main()
