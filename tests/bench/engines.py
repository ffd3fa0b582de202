"""The engine bench: every row by every engine, interleaved in one run with the machine's own limits."""
import collections
import json
import statistics
import subprocess
import sys
import time

import limits
import peers

ALL = {row.name for row in limits.ROWS}
Engine = collections.namedtuple("Engine", "name profile rows threads repetitions")
OURS = [Engine("baton", "fast", ALL, (1, 2), 2),
        Engine("baton-int8kv", "fast+int8", {"decode_d2048", "decode_d4096"}, (2,), 2),
        Engine("baton-bf16", "bf16", {"prefill_512", "decode_d0", "batch_16"}, (2,), 1)]
PEERS = [Engine("llama.cpp", None, ALL, (1, 2), 1),
         Engine("openvino", None, {"prefill_128", "prefill_512", "prefill_2048", "decode_d0", "decode_d2048"}, (1, 2), 2)]

# Seconds that a first measurement takes, roughly; only for the time left that is shown until all have been measured once.
ROUGHLY = {"prefill_128": 1, "prefill_512": 3, "prefill_2048": 14, "decode_d0": 3, "decode_d2048": 14, "decode_d4096": 30, "batch_4": 6,
           "batch_16": 18, "batch_32": 36}
KEPT = 0.9  # a peer's setting slower than this share of its best one in the first round is not measured again


def tasks(row, engines, round_i):
    """The engines that do a row, another one first in each round."""
    able = [e for e in engines if row.name in e.rows and row.threads in e.threads]
    start = round_i % len(able) if able else 0
    return able[start:] + able[:start]


def kept_settings(samples):
    """Of a peer's {setting: samples}: those worth measuring again."""
    medians = {setting: statistics.median(values) for setting, values in samples.items()}
    return [setting for setting, median in medians.items() if median >= KEPT * max(medians.values())]


def best_setting(samples):
    return max(samples, key=lambda setting: statistics.median(samples[setting]))


class Progress:
    """Tells on stderr what was measured and how long the rest takes, by what the same took before."""

    def __init__(self, plan):
        self.left = collections.Counter(plan)
        self.took = {}
        self.start = time.monotonic()

    def seconds_left(self):
        known = [(self.took[key] / self.guess(key)) for key in self.took]
        scale = statistics.median(known) if known else 1
        return sum(n * self.took.get(key, scale * self.guess(key)) for key, n in self.left.items())

    @staticmethod
    def guess(key):
        engine, row, _ = key
        return ROUGHLY[row] / (1 if engine == "llama.cpp" else 6)

    def done(self, key, seconds, text):
        self.left[key] -= 1
        self.took[key] = seconds
        left = self.seconds_left()
        print(f"bench engine: {text}; about {int(left // 60)} min {int(left % 60):02} s left", file=sys.stderr, flush=True)


class Bench:
    def __init__(self, model, tools, rounds, with_peers):
        self.model, self.tools, self.rounds = model, tools, rounds
        self.engines = OURS + (PEERS if with_peers else [])
        self.missing = [] if with_peers else ["llama.cpp and openvino: left out as asked (--no-peers)"]
        self.peers = {}
        self.samples = collections.defaultdict(lambda: collections.defaultdict(list))  # (row, threads, engine): {setting: samples}
        self.limits = collections.defaultdict(list)  # (limit, threads): samples
        self.kv_bytes = {}
        self.limits_by = {}  # limit: the instructions that it was measured with, or None

    def run_tool(self, name, *words):
        done = subprocess.run([str(self.tools / name), *map(str, words)], stdout=subprocess.PIPE, text=True)
        if done.returncode:
            raise RuntimeError(f"{name} ended with {done.returncode}")
        return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]

    def drop(self, engine, reason):
        self.missing.append(str(reason))
        print(f"bench engine: {reason}", file=sys.stderr, flush=True)
        self.engines = [e for e in self.engines if e.name != engine]

    def measure_limits(self):
        threads = sorted({row.threads for row in limits.ROWS})
        for line in self.run_tool("machine_limits", 1, *threads):
            self.limits_by[line["row"]] = line["by"]
            if line["samples"]:
                self.limits[line["row"], line["threads"]] += line["samples"]

    def measure(self, engine, row):
        samples = self.samples[row.name, row.threads, engine.name]
        if engine.profile:
            for line in self.run_tool("bench_engine", self.model, row.threads, engine.repetitions, engine.profile, row.name):
                self.kv_bytes[engine.name] = line["kv_bytes"]
                samples[line["setting"]] += line["samples"]
            return
        key = (engine.name, row.threads)
        if key not in self.peers:
            self.peers[key] = peers.Program(engine.name, self.model, row.threads)
        for setting, values in self.peers[key].ask(row.name, engine.repetitions, kept_settings(samples) if samples else ()).items():
            samples[setting] += values

    def do(self, round_i, row, engine, progress):
        start = time.monotonic()
        try:
            self.measure(engine, row)
        except peers.Missing as reason:
            self.drop(engine.name, reason)
            return
        samples = self.samples[row.name, row.threads, engine.name]
        best = samples[best_setting(samples)][-1]
        progress.done((engine.name, row.name, row.threads), time.monotonic() - start,
                      f"round {round_i + 1}/{self.rounds}, {row.name} with {row.threads} threads by {engine.name}: {best:,.0f} tokens/s")

    def run(self):
        for engine in [e for e in self.engines if not e.profile]:
            try:
                peers.interpreter(engine.name)
            except peers.Missing as reason:
                self.drop(engine.name, reason)
        plan = [(e.name, row.name, row.threads) for row in limits.ROWS for e in tasks(row, self.engines, 0)] * self.rounds
        progress = Progress(plan)
        try:
            for round_i in range(self.rounds):
                self.do_round(round_i, progress)
        except KeyboardInterrupt:
            self.missing.append(f"what round {round_i + 1} of {self.rounds} and later ones had to add: the run was ended early")
        finally:
            for peer in self.peers.values():
                peer.close()
        return self

    def do_round(self, round_i, progress):
        for row in limits.ROWS:
            self.measure_limits()
            for engine in tasks(row, self.engines, round_i):
                if engine in self.engines:
                    self.do(round_i, row, engine, progress)

    def settings(self):
        """Each engine's best setting of each row."""
        return {f"{engine} {row} {threads}": best_setting(samples)
                for (row, threads, engine), samples in self.samples.items() if samples}

    def rows(self):
        """Rows of latest.json, with each row's limit."""
        model = limits.read_model(self.model)
        out = []
        for row in limits.ROWS:
            machine = limits.machine_from(self.limits, row.threads)
            for engine in OURS + PEERS:
                samples = self.samples.get((row.name, row.threads, engine.name))
                if not samples:
                    continue
                bound = limits.limit(row, model, machine, "bf16" if engine.profile == "bf16" else "int8", self.kv_bytes.get(engine.name))
                out.append({"row": row.name, "engine": engine.name, "threads": row.threads, "unit": "tokens/s",
                            "samples": samples[best_setting(samples)], "limit": bound and round(bound, 1)})
        for (name, threads), samples in sorted(self.limits.items()):
            out.append({"row": name, "engine": "machine", "threads": threads, "samples": samples,
                        "unit": "GB/s" if name == "limit_read" else "GOP/s"})
        return out
