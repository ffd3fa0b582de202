#!/usr/bin/env python3
"""Measures goodput on two cores: llama.cpp's server, Baton colocated, Baton split; JSON rows on stdout, a table on stderr.

  bench_goodput.py [--mixes NAME,...] [--systems NAME,...] [--seconds N] [--slower FACTOR] [--build DIR] [--model FILE] [--no-peers]

The load is `baton bench`, open loop, on the same two cores. Requests arrive at a Poisson rate and are of two classes: `chat`, 64 tokens
that ask for 200, and `long`, 1,500 tokens that ask for 4. A mix is the share of long ones among all: chat 0, mix_10, mix_50, long 1.

Systems:
  llama.cpp        its server: 2 threads, 16 slots, continuous batching; mixes with long prompts are also tried with its batch at 64
                   tokens (llama.cpp_b64), so that they stall streams less
  baton_colocated  a router and one decode worker with 2 threads, which computes prompts in chunks beside its streams
  baton_split      a router, one prefill and one decode worker with 1 thread each; the decode worker has a core of its own, all others
                   and the load share the other one

A chat request is good when its first token came within 1 s and 99 % of *its* gaps between tokens are at most 25 ms (nearest rank: of
199 gaps one may be longer). A long one has too few gaps for a p99 and is good when its first token came within --long-ttft-ms: 4 s by
default, because no single core computes 1,500 tokens in 1 s. --slower multiplies all three, for a machine on which no system keeps
them. Goodput of a system in a mix is the highest rate found at which 95 % of each class are good; what fails or is not answered in
time is not good. The search doubles or halves the rate until it is bracketed, then bisects; it is bounded, so 0 means: not at the
lowest rate tried, a request in 4 s.
"""
import argparse
import json
import math
import os
import random
import signal
import socket
import subprocess
import tempfile
import time
import urllib.request
from pathlib import Path

import peers
from common import ROOT, PinnedCluster, logger, model_path, two_cores
from cluster import Cluster, Process

log = logger("goodput")

MIXES = {"chat": 0.0, "mix_10": 0.1, "mix_50": 0.5, "long": 1.0}
CLASSES = {"chat": (64, 200), "long": (1500, 4)}  # tokens in, out
TTFT_MS, ITL_MS, SHARE = 1000, 25, 0.95
SLOTS = 16
KV_TOKENS = 49152
RATE_MIN, RATE_MAX = 0.25, 16.0
REQUESTS_MIN, SECONDS_MAX = 20, 60  # of a probe
BISECTIONS = 3


# ---- systems: each is a context manager with a url ----

class Llama:
    """llama.cpp's server with two threads."""

    def __init__(self, args, logs, batch=None):
        self.args, self.logs, self.batch = args, logs, batch

    def __enter__(self):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        words = [peers.llama_server(), "--model", self.args.model, "--host", "127.0.0.1", "--port", port, "--threads", 2,
                 "--threads-batch", 2, "--parallel", SLOTS, "--ctx-size", KV_TOKENS, "--kv-unified", "--cache-ram", 0, "--no-webui"]
        if self.batch:
            words += ["--batch-size", self.batch, "--ubatch-size", self.batch]
        self.process = Process("llama-server", words, self.logs)
        self.url = f"http://127.0.0.1:{port}"
        Cluster.wait_for(self.is_up, "llama.cpp's server answers", timeout_s=120)
        return self

    def is_up(self):
        if self.process.process.poll() is not None:
            raise RuntimeError(self.process.text())
        try:
            return urllib.request.urlopen(self.url + "/health", timeout=1).status == 200
        except OSError:
            return False

    def __exit__(self, *why):
        self.process.kill()


class Colocated(Cluster):
    def __init__(self, args, logs):
        super().__init__(args.build / "baton", args.model, logs, prefill=0, disaggregate="never", router_args=["--log-requests=no"],
                         worker_args=["--threads", 2, "--kv-tokens", KV_TOKENS, "--log-level", "warn"])


class Split(PinnedCluster):
    """Every prompt is the prefill worker's, which takes short ones first."""

    def __init__(self, args, logs):
        super().__init__(args.cores, args.build / "baton", args.model, logs, disaggregate="always",
                         router_args=["--log-requests=no", "--prefill-backlog-tokens", 1 << 16],
                         worker_args=["--threads", 1, "--kv-tokens", KV_TOKENS, "--log-level", "warn"])


SYSTEMS = {"llama.cpp": Llama, "llama.cpp_b64": lambda args, logs: Llama(args, logs, 64), "baton_colocated": Colocated,
           "baton_split": Split}


# ---- load ----

def write_trace(path, mix, rate, seconds, seed):
    """Arrivals of a Poisson process; one seed gives every system and rate the same gaps, by the rate, and the same classes."""
    source, at_s, n = random.Random(seed), 0.0, 0
    with open(path, "w") as out:
        while at_s < seconds or not n:
            name = "long" if source.random() < MIXES[mix] else "chat"
            n_in, n_out = CLASSES[name]
            out.write(json.dumps({"timestamp": at_s * 1000, "input_length": n_in, "output_length": n_out, "class": name}) + "\n")
            at_s += source.expovariate(rate)
            n += 1


class Probe:
    """One rate, sent for so many seconds; judged by class."""

    def __init__(self, out, args):
        self.classes, self.shares = out["classes"], {}
        for name in CLASSES:
            rows = [r for r in out["results"] if r.get("class") == name]
            if rows:
                ttft_ms = TTFT_MS * args.slower if name == "chat" else args.long_ttft_ms
                self.shares[name] = sum(self.good(r, ttft_ms, ITL_MS * args.slower) for r in rows) / len(rows)
        self.n, self.failed = out["requests"], out["failed"]

    @staticmethod
    def good(row, ttft_ms, itl_ms):
        return row["ok"] and row["ttft_ms"] <= ttft_ms and (row["class"] == "long" or row["itl_p99_ms"] <= itl_ms)

    def is_good(self):
        return min(self.shares.values()) >= SHARE

    def __str__(self):
        words = []
        for name, c in self.classes.items():
            words.append(f"{name}: {100 * self.shares[name]:.0f} % good, TTFT {c['ttft_ms']['p50']:.0f}/{c['ttft_ms']['p99']:.0f}, "
                         f"ITL {c['itl_ms']['p50']:.1f}/{c['itl_ms']['p99']:.1f}")
        return f"{self.n} requests, {self.failed} failed; " + "; ".join(words)


class Search:
    def __init__(self, args, system, url, mix, work):
        self.args, self.system, self.url, self.mix, self.work = args, system, url, mix, work
        self.probes = {}  # by rate

    def probe(self, rate):
        if rate in self.probes:
            return self.probes[rate]
        seconds = min(max(self.args.seconds, REQUESTS_MIN / rate), SECONDS_MAX)
        trace, out = self.work / "trace.jsonl", self.work / "out.json"
        write_trace(trace, self.mix, rate, seconds, self.args.seed)
        out.unlink(missing_ok=True)
        words = [self.args.build / "baton", "bench", "--url", self.url, "--trace", trace, "--seed", random.randrange(1 << 32), "--json", out,
                 "--progress", "off"]
        bench = subprocess.Popen([str(w) for w in words], stdout=subprocess.DEVNULL)
        try:  # what is not done by then is not good, whatever comes
            bench.wait(seconds + self.args.long_ttft_ms / 1000 + 3)
        except subprocess.TimeoutExpired:
            bench.send_signal(signal.SIGINT)
            bench.wait(10)
        probe = self.probes[rate] = Probe(json.loads(out.read_text()), self.args)
        log(f"{self.system:<16} {self.mix:<7} {rate:6.2f}/s {'good' if probe.is_good() else 'missed':<7}{probe}")
        self.settle()
        return probe

    def settle(self):
        """Until what was left of the last probe is done or dropped: a request of one token is answered at once."""
        body = json.dumps({"prompt": "time", "max_tokens": 1}).encode()
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            asked = time.monotonic()
            try:
                urllib.request.urlopen(urllib.request.Request(self.url + "/v1/completions", body,
                                                              {"Content-Type": "application/json"}), timeout=30).read()
                if time.monotonic() - asked < 0.1:
                    return
            except TimeoutError:
                pass
            time.sleep(0.2)
        raise RuntimeError(f"{self.system} is not idle after 60 s")

    def run(self, start):
        """The highest good rate found; 0: none."""
        good, bad, rate = 0.0, math.inf, start
        while RATE_MIN <= rate <= RATE_MAX and (not good or bad == math.inf):
            if self.probe(rate).is_good():
                good, rate = rate, rate * 2
            else:
                bad, rate = rate, rate / 2
        for _ in range(BISECTIONS if good and bad < math.inf else 0):
            rate = round(math.sqrt(good * bad), 3)
            if self.probe(rate).is_good():
                good = rate
            else:
                bad = rate
        return good


# ---- the whole ----

def row(name, engine, unit, value):
    threads = 1 if engine == "baton_split" else 2
    print(json.dumps({"row": name, "engine": engine, "threads": threads, "unit": unit, "samples": [value]}), flush=True)


def warm(url, work, args):
    """Each class once or twice, so that nothing is used for the first time in a probe."""
    trace = work / "warm.jsonl"
    write_trace(trace, "mix_50", 4, 2, 1)
    subprocess.run([str(w) for w in (args.build / "baton", "bench", "--url", url, "--trace", trace, "--progress", "off", "--seed", 77)],
                   stdout=subprocess.DEVNULL, check=False)


def show(name, search, rate):
    probe = search.probes.get(rate)
    for kind, c in (probe.classes if probe else {}).items():
        for figure in ("ttft_ms", "itl_ms"):
            for quantile in ("p50", "p99"):
                if kind == "chat" or figure == "ttft_ms":
                    row(f"{name}_{kind}_{figure[:4].strip('_')}_{quantile}", search.system, "ms", c[figure][quantile])


def run_system(system, args, mixes, work, found):
    with tempfile.TemporaryDirectory() as logs, SYSTEMS[system](args, logs) as served:
        warm(served.url, work, args)
        start = {"chat": 2.0, "mix_10": 2.0, "mix_50": 1.0, "long": 0.5}
        for mix in mixes:
            if system == "llama.cpp_b64" and not MIXES[mix]:
                continue
            search = Search(args, system, served.url, mix, work)
            began = time.monotonic()
            rate = search.run(start[mix])
            found[system, mix] = rate
            log(f"{system} {mix}: goodput {rate:.2f} requests/s ({time.monotonic() - began:.0f} s, {len(search.probes)} probes)")
            row(f"goodput_{mix}", system, "requests/s", rate)
            show(f"goodput_{mix}", search, rate)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mixes", default=",".join(MIXES))
    parser.add_argument("--systems", default=",".join(SYSTEMS))
    parser.add_argument("--seconds", type=float, default=20, help="of a probe; longer where fewer than 20 requests would come")
    parser.add_argument("--long-ttft-ms", type=float, default=4000)
    parser.add_argument("--slower", type=float, default=1, help="what all bounds are multiplied with")
    parser.add_argument("--seed", type=int, default=1, help="of arrivals")
    parser.add_argument("--no-peers", action="store_true", help="only Baton")
    parser.add_argument("--build", type=lambda folder: Path(folder).resolve(), default=ROOT / "build")
    parser.add_argument("--model", help="default: scripts/get-model")
    args = parser.parse_args()
    mixes, systems = args.mixes.split(","), args.systems.split(",")
    for name, known in [(m, MIXES) for m in mixes] + [(s, SYSTEMS) for s in systems]:
        if name not in known:
            parser.error(f"there is no {name!r}; there are {', '.join(known)}")
    if args.no_peers:
        systems = [s for s in systems if not s.startswith("llama.cpp")]
    args.long_ttft_ms *= args.slower
    args.model = model_path(args.model)
    args.cores = two_cores("goodput")
    os.sched_setaffinity(0, args.cores)
    found = {}
    with tempfile.TemporaryDirectory() as work:
        for system in systems:
            run_system(system, args, mixes, Path(work), found)
    log(f"{'requests/s':<18}" + "".join(f"{m:>9}" for m in mixes))
    for system in systems:
        log(f"{system:<18}" + "".join(f"{found.get((system, m), math.nan):>9.2f}" for m in mixes))


main()
