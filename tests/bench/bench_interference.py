#!/usr/bin/env python3
"""Measures the decode worker's step time while long prompts keep arriving, against unloaded; JSON rows on stdout.

  bench_interference.py [--rounds N] [--build DIR] [--model FILE]

16 streams run at one prefill and one decode worker, each with one thread. Loaded: prompts of 1,500 tokens that ask for one
token keep arriving, two at a time. The decode worker has a core of its own; the prefill worker, the router and this program
share another. A window is 1,064 steps from the moment all streams decode; the step times are those that the worker itself keeps
of its last 1,024 steps. Steps get longer as the streams do, alike in both kinds of window, so the mean (`period`: the window's
time by its steps) stands beside the quantiles. Loaded and unloaded windows take turns, N pairs (5 by default). The ratio is
loaded by unloaded within a pair.
"""
import argparse
import http.client
import json
import os
import random
import tempfile
import threading
import time
from pathlib import Path

from common import ROOT, PinnedCluster, logger, model_path, two_cores
from cluster import Cluster

log = logger("interference")

STREAMS = 16
STEPS = 1100  # of a stream within a window: more than the worker keeps
PROMPT = 1500
PROMPTS_AT_ONCE = 2
KV_TOKENS = 28672  # 16 streams and some prompts
VOCAB = 40000


class Stream(threading.Thread):
    """One streamed completion; `n` tokens have come so far."""

    def __init__(self, cluster, seed, max_tokens):
        super().__init__(daemon=True)
        self.n, self.error = 0, None
        self.cluster, self.max_tokens = cluster, max_tokens
        self.prompt = [random.Random(seed).randrange(VOCAB) for _ in range(64)]
        self.connection = http.client.HTTPConnection(cluster.host, cluster.port, timeout=300)
        self.start()

    def run(self):
        try:
            body = {"prompt": self.prompt, "max_tokens": self.max_tokens, "ignore_eos": True, "stream": True,
                    "temperature": 0}
            self.connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
            answer = self.connection.getresponse()
            if answer.status != 200:
                raise RuntimeError(answer.read())
            for line in answer:
                if line.startswith(b"data: {"):
                    self.n += 1
                elif line.startswith(b"event: error"):
                    raise RuntimeError("the stream failed")
        except Exception as error:  # told by the main thread
            self.error = error


class Load:
    """Long prompts that keep arriving until `stop`."""

    def __init__(self, cluster, seed):
        self.cluster, self.random = cluster, random.Random(seed)
        self.stopping, self.n, self.error = False, 0, None
        self.lock = threading.Lock()
        self.threads = [threading.Thread(target=self.run, daemon=True) for _ in range(PROMPTS_AT_ONCE)]
        for thread in self.threads:
            thread.start()

    def run(self):
        while not self.stopping:
            with self.lock:  # no two alike: nothing is found in a cache
                prompt = [self.random.randrange(VOCAB) for _ in range(PROMPT)]
            body = {"prompt": prompt, "max_tokens": 1, "ignore_eos": True, "temperature": 0}
            try:
                status, _, data = self.cluster.request("POST", "/v1/completions", body, timeout=300)
                if status != 200:
                    raise RuntimeError(data)
            except Exception as error:
                self.error = error
                return
            with self.lock:
                self.n += 1

    def stop(self):
        self.stopping = True
        for thread in self.threads:
            thread.join()
        if self.error:
            raise self.error


def touch_cache(cluster):
    """Fills both caches once: the first use of a page is paid by the system, which zeroes it, and belongs to no window."""
    load = Load(cluster, -1)
    Cluster.wait_for(lambda: load.n * PROMPT > KV_TOKENS + 2 * PROMPT or load.error, "the caches are full", timeout_s=300)
    load.stop()


def decode_worker(cluster):
    return next(w for w in cluster.json("/debug/workers")["workers"] if w["role"] == "decode")


def window(cluster, seed, loaded):
    """(p50, p99) in ms over the worker's last 1,024 steps, all of them in the window; prompts and steps per second."""
    cluster.request("POST", "/debug/flush", {})
    streams = [Stream(cluster, seed * STREAMS + i, STEPS + 200) for i in range(STREAMS)]

    def wait(condition, what):
        Cluster.wait_for(lambda: condition() or any(s.error for s in streams), what, timeout_s=300)
        for stream in streams:
            if stream.error:
                raise stream.error
    wait(lambda: all(s.n > 0 for s in streams), "all streams decode")
    load = Load(cluster, seed) if loaded else None
    # Each step gives each stream a token, so a stream counts the window's steps. The first ones may still belong to the
    # streams' own prompts.
    first = streams[0].n + 20
    wait(lambda: streams[0].n >= first, "20 steps")
    first, started = streams[0].n, time.monotonic()
    wait(lambda: streams[0].n >= first + 1044, "1,044 steps")
    n_steps = streams[0].n - first
    if any(not s.is_alive() for s in streams):
        raise RuntimeError("a stream ended within the window")
    worker = decode_worker(cluster)
    seconds = time.monotonic() - started
    rate = 0
    if load:
        rate = load.n / seconds
        load.stop()
    for stream in streams:
        stream.connection.sock and stream.connection.sock.shutdown(2)
    for stream in streams:
        stream.join()
    Cluster.wait_for(lambda: not any(w["requests"] for w in cluster.json("/debug/workers")["workers"]), "all is idle")
    return worker["step_p50_us"] / 1000, worker["step_p99_us"] / 1000, rate, n_steps / seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="pairs of windows; at least 5 where the run asks for fewer")
    parser.add_argument("--pairs", type=int, help="exactly this many pairs")
    parser.add_argument("--build", default=str(ROOT / "build"))
    parser.add_argument("--model", help="default: scripts/get-model")
    args = parser.parse_args()
    pairs = args.pairs or max(5, args.rounds)
    model = model_path(args.model)
    cores = two_cores("interference")
    os.sched_setaffinity(0, {cores[0]})
    samples = {"p50": ([], []), "p99": ([], []), "period": ([], [])}
    with tempfile.TemporaryDirectory() as logs, \
            PinnedCluster(cores, Path(args.build) / "baton", model, logs,
                          worker_args=["--threads", 1, "--kv-tokens", KV_TOKENS, "--log-level", "warn"]) as cluster:
        touch_cache(cluster)
        for pair in range(pairs):
            for loaded in ((False, True) if pair % 2 == 0 else (True, False)):
                p50, p99, rate, steps = window(cluster, 2 * pair + loaded, loaded)
                samples["p50"][loaded].append(p50)
                samples["p99"][loaded].append(p99)
                samples["period"][loaded].append(1000 / steps)
                log(f"pair {pair + 1} {'loaded' if loaded else 'unloaded':<8} p50 {p50:.2f} ms, p99 {p99:.2f} ms, "
                    f"{steps:.0f} steps/s, {rate:.2f} prompts/s")

    def row(name, unit, values):
        print(json.dumps({"row": name, "engine": "baton", "threads": 1, "unit": unit, "samples": values}))
    for quantile, (unloaded, loaded) in samples.items():
        row(f"interference_step_{quantile}_ratio", "ratio", [a / b for a, b in zip(loaded, unloaded)])
        row(f"interference_step_{quantile}_unloaded", "ms", unloaded)
        row(f"interference_step_{quantile}_loaded", "ms", loaded)


main()
