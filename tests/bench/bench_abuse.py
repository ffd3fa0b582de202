#!/usr/bin/env python3
"""Measures a well-behaved client's time to first token beside hostile clients, and the router's memory; JSON rows on stdout.

  bench_abuse.py [--rounds N] [--build DIR] [--model FILE] [--only ATTACK]

For each attack a router of its own, before a worker that costs nothing (mock_worker). The well-behaved client asks one request
after the other, by HTTP on a new connection each time (sse_load --fresh) and by gRPC on one that it keeps (grpc_load): first
alone (`alone`), then while a second router on this machine is attacked, then while its own is. abuse_*_ratio_p99: the p99 under
attack by the p99 alone before the same attack; abuse_*_elsewhere_p99: the same with the attack on the second router, so what the
hostile clients cost by sharing the processors; abuse_*_own_p99: the one by the other, so what the attacked router's own client feels
more than anybody on the machine. A request that fails counts as one that lasted to the end.
abuse_rss_grown: the most memory that the router had, less what it had before the attack. abuse_rss_bound: what its start log says
that all HTTP connections may hold.

The hostile clients are a process of their own. They stand for other machines, so it runs at low priority (nice 10): what they cost
is the router's work for them, not the processor time that they would take from it here.
"""
import argparse
import contextlib
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from common import ROOT, logger, model_path
from abusers import CHUNKS, HEADERS, HTTP2_FLOODS, Flood, Held, printed_bound_kb
from front import front

log = logger("abuse")
VOCAB = 40000
REQUESTS = 500
SECONDS = 15  # for all of them: 100 times what they take alone
SPARE_DESCRIPTORS = 200
SILENT, SLOW = 10000, 500
SLOW_HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nX: "


def n_silent():
    """As many as the descriptors allow that this machine gives to one process."""
    return min(SILENT, resource.getrlimit(resource.RLIMIT_NOFILE)[0] - SPARE_DESCRIPTORS)


ATTACKS = {
    "silent": lambda target: Held(target, n_silent()),
    "slow": lambda target: Held(target, SLOW, SLOW_HEAD, drip_s=1),
    "chunks": lambda target: Flood(target, CHUNKS),
    "headers": lambda target: Flood(target, HEADERS),
    **{name: lambda target, flood=flood: Flood(target, flood) for name, flood in HTTP2_FLOODS.items()},
}


def all_descriptors():
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


# ---- the hostile process ----

class Target:
    https = None

    def __init__(self, http, grpc):
        host, port = http.rsplit(":", 1)
        self.host, self.port, self.grpc = host, int(port), grpc


def attack_until_told(name, target):
    os.nice(10)
    with ATTACKS[name](target) as attack:
        print("ready", flush=True)
        sys.stdin.read()
        print(json.dumps(attack.counts()), flush=True)


@contextlib.contextmanager
def attacked(name, cluster):
    """A function that ends the attack and gives what it did."""
    args = [sys.executable, __file__, "--attack", name, "--target", f"{cluster.host}:{cluster.port}", cluster.grpc]
    attacker = subprocess.Popen(args, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        if attacker.stdout.readline() != "ready\n":
            sys.exit(f"bench abuse: {name} could not begin")
        yield lambda: json.loads(attacker.communicate(timeout=60)[0])
    finally:
        attacker.kill()
        attacker.wait()


# ---- the measurement ----

def memory_mb(cluster, field):
    text = Path(f"/proc/{cluster.router.pid}/status").read_text()
    return int(re.search(rf"^{field}:\s+(\d+)", text, re.M)[1]) / 1024


class Bench:
    def __init__(self, args):
        self.args = args
        self.rows = {}

    def add(self, row, engine, unit, value):
        self.rows.setdefault((row, engine, unit), []).append(round(value, 3))
        log(f"{row:<24}{engine:<16}{value:10.2f} {unit}")

    def ttft_ms(self, cluster, door, requests=REQUESTS):
        """(p50, p99)"""
        tool, port, extra = (("sse_load", cluster.port, ["--fresh"]) if door == "http" else
                             ("grpc_load", cluster.grpc.rsplit(":", 1)[1], []))
        args = [self.args.build / "tests" / "bench" / tool, "--port", port, "--requests", requests, "--tokens", 2, "--vocab", VOCAB,
                "--seconds", SECONDS, *extra]
        done = subprocess.run([str(a) for a in args], stdout=subprocess.PIPE, text=True)
        report = json.loads(done.stdout)
        if report["errors"]:
            log(f"{door}: {report['errors']} of {requests} failed: {report['error']}")
            self.n_failed += report["errors"]
            # One that is not answered has waited at least to the end.
            return report["ttft_p50_us"] / 1e3, report["wall_s"] * 1e3
        return report["ttft_p50_us"] / 1e3, report["ttft_p99_us"] / 1e3

    def both_doors(self, cluster, who):
        out = {}
        for door in ("http", "grpc"):
            p50, out[door] = self.ttft_ms(cluster, door)
            self.add(f"abuse_{door}_ttft_p50", who, "ms", p50)
            self.add(f"abuse_{door}_ttft_p99", who, "ms", out[door])
        return out

    def one(self, name, folder):
        self.n_failed = 0
        mock = ["--interval-us", 1000, "--vocab", VOCAB, "--max-context", 100000]
        binary, model = self.args.build / "baton", self.args.model
        with front(binary, model, folder, mock) as cluster, front(binary, model, folder, mock) as second:
            for door in ("http", "grpc"):
                self.ttft_ms(cluster, door, 50)
            alone = self.both_doors(cluster, "alone")
            with attacked(name, second) as ended:
                elsewhere = self.both_doors(cluster, name + " elsewhere")
                ended()
            idle = memory_mb(cluster, "VmRSS")
            with attacked(name, cluster) as ended:
                beside = self.both_doors(cluster, name)
                log(f"{name}: {cluster.metrics()['baton_http_connections']:.0f} HTTP connections are open")
                log(f"{name}: {ended()}")
            for door in beside:
                self.add(f"abuse_{door}_ratio_p99", name, "ratio", beside[door] / alone[door])
                self.add(f"abuse_{door}_elsewhere_p99", name, "ratio", elsewhere[door] / alone[door])
                self.add(f"abuse_{door}_own_p99", name, "ratio", beside[door] / elsewhere[door])
            self.add("abuse_rss_grown", name, "MB", memory_mb(cluster, "VmHWM") - idle)
            self.add("abuse_failed", name, "requests", self.n_failed)
            return printed_bound_kb(cluster) / 1024

    def run(self):
        for _ in range(self.args.rounds):
            for name in ATTACKS:
                if self.args.only in (None, name):
                    with tempfile.TemporaryDirectory() as folder:
                        bound_mb = self.one(name, folder)
            self.add("abuse_rss_bound", "printed", "MB", bound_mb)
        for (row, engine, unit), samples in self.rows.items():
            print(json.dumps({"row": row, "engine": engine, "unit": unit, "samples": samples}))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--build", type=lambda folder: Path(folder).resolve(), default=ROOT / "build")
    parser.add_argument("--model", help="GGUF file; the default model where it is not given")
    parser.add_argument("--only", choices=ATTACKS)
    parser.add_argument("--attack", choices=ATTACKS, help=argparse.SUPPRESS)
    parser.add_argument("--target", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    all_descriptors()
    if args.attack:
        attack_until_told(args.attack, Target(*args.target))
        return
    args.model = model_path(args.model)
    Bench(args).run()


main()
