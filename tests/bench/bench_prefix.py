#!/usr/bin/env python3
"""Measures what a prefix hit saves: a prompt of 1,500 tokens whose first 1,400 are cached, against one that is new; JSON rows.

  bench_prefix.py [--rounds N] [--build DIR] [--model FILE] [--only alone|split]

Each round sends a new prompt of 1,500 tokens, then one that shares its first 1,400 with it, and streams 64 tokens after each; one
request at a time. Rows prefix_...: one decode worker that does all itself; prefix_split_...: one prefill and one decode worker. Each
worker has a thread per CPU. ..._new_ms and ..._hit_ms are the client's times to the first token, ..._ttft_share is hit by new within
a round, ..._decode_share the tokens/s of the answer after a hit by those after the new prompt. The first round only warms up.
"""
import argparse
import http.client
import json
import os
import random
import sys
import tempfile
import time
from pathlib import Path

from common import ROOT, logger, model_path
from cluster import Cluster

log = logger("prefix")
PROMPT, SHARED, ANSWER = 1500, 1400, 64
VOCAB = 40000
TOPOLOGIES = {"alone": ("prefix", {"prefill": 0, "decode": 1, "disaggregate": "never"}),
              "split": ("prefix_split", {"prefill": 1, "decode": 1, "disaggregate": "always"})}


def stream(cluster, prompt):
    """(ms to the first token, tokens/s of those after it, the stages that the server names)"""
    connection = http.client.HTTPConnection(cluster.host, cluster.port, timeout=120)
    body = json.dumps({"prompt": prompt, "max_tokens": ANSWER, "ignore_eos": True, "stream": True, "temperature": 0})
    start = time.perf_counter()
    connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json", "X-Baton-Timings": "1"})
    answer = connection.getresponse()
    if answer.status != 200:
        sys.exit(f"bench prefix: {answer.status} {answer.read()[:300]}")
    times, timings = [], None
    for line in answer:
        if line.startswith(b"data: {"):
            event = json.loads(line[6:])
            timings = event.get("baton", timings)
            if event.get("choices"):
                times.append(time.perf_counter())
    connection.close()
    return (times[0] - start) * 1e3, (len(times) - 1) / (times[-1] - times[0]), timings


def measure(args, name, topology, samples):
    def tokens(seed, n):
        rng = random.Random(f"{name} {seed}")
        return [rng.randrange(3, VOCAB) for _ in range(n)]

    with tempfile.TemporaryDirectory() as logs, Cluster(args.build / "baton", args.model, logs, **topology) as cluster:
        for number in range(args.rounds + 1):
            shared = tokens(number, SHARED)
            new_ms, new_rate, new_stages = stream(cluster, shared + tokens(f"{number} new", PROMPT - SHARED))
            hit_ms, hit_rate, hit_stages = stream(cluster, shared + tokens(f"{number} hit", PROMPT - SHARED))
            if args.stages:
                log("new", new_stages)
                log("hit", hit_stages)
            if not number:
                continue
            log(f"{name:<14} new {new_ms:7.1f} ms, hit {hit_ms:6.1f} ms; then {new_rate:.0f} and {hit_rate:.0f} tokens/s")
            for part, unit, value in (("new_ms", "ms", new_ms), ("hit_ms", "ms", hit_ms), ("ttft_share", "share", hit_ms / new_ms),
                                      ("decode_share", "share", hit_rate / new_rate)):
                samples.setdefault((f"{name}_{part}", unit), []).append(round(value, 4))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--build", type=lambda folder: Path(folder).resolve(), default=ROOT / "build")
    parser.add_argument("--model")
    parser.add_argument("--only", choices=TOPOLOGIES)
    parser.add_argument("--stages", action="store_true", help="log the stages of each request too")
    args = parser.parse_args()
    args.model = model_path(args.model)
    samples = {}
    for key, (name, topology) in TOPOLOGIES.items():
        if args.only in (None, key):
            measure(args, name, topology, samples)
    for (row, unit), values in samples.items():
        print(json.dumps({"row": row, "engine": "baton", "threads": len(os.sched_getaffinity(0)), "unit": unit, "samples": values}))


main()
