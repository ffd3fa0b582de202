#!/usr/bin/env python3
"""Measures what the router adds to workers that cost nothing, beside a direct connection and nginx; JSON rows on stdout.

  bench_router.py [--rounds N] [--build DIR] [--model FILE]

In each round every row runs on all engines in turn: `direct` is a bare loop of one send() a token (mock_http, a worker that speaks
HTTP itself), `nginx` stands before it (proxy_buffering off), `baton` is the router with a worker that attaches to it (mock_worker);
`baton-grpc` is the same router's gRPC door, and `-https`, `-grpc-tls` are the doors under TLS 1.3. All send the same tokens at the same
pace. router_cpu_N: CPU microseconds per token of the proxy's processes less those of the bare loop (direct: the loop's own).
router_ttft_50_words: median of single requests, less direct's. router_ttft_tls: what TLS adds to it on a connection that is kept;
router_ttft_tls_fresh: on a new one for each request, handshake and its round trips included. router_connection: the router's
CPU for a new connection with one small request. streams_2000: 2,000 streams at once by
a door, a token each every 100 ms, requests and connections included; streams_2000_both: by both doors at the same moment.
"""
import argparse
import contextlib
import http.client
import json
import os
import shutil
import ssl
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import ROOT, logger, model_path

log = logger("router")
VOCAB = 40000
TICK = os.sysconf("SC_CLK_TCK")


def cpu_s(pids):
    total = 0.0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        total += (int(fields[11]) + int(fields[12])) / TICK
    return total


def rss_mb(pids, field="VmRSS"):
    """VmHWM: the most there was."""
    total = 0.0
    for pid in pids:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(field + ":"):
                total += int(line.split()[1]) / 1024
    return total


def children(pid):
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@contextlib.contextmanager
def process(args, ready=True, cpus=None, logs=None):
    """(process, the words of its ready line); ended by its own id."""
    if cpus is not None and shutil.which("taskset"):
        args = ["taskset", "-c", cpus, *args]
    done = subprocess.Popen([str(a) for a in args], stdout=subprocess.PIPE, stderr=logs or sys.stderr, text=True)
    try:
        words = {}
        if ready:
            line = done.stdout.readline()
            if not line.startswith("ready: "):
                sys.exit(f"bench router: {args[0]} said {line!r}")
            words = dict(word.split("=", 1) for word in line[7:].split())
        yield done, words
    finally:
        done.terminate()
        done.wait()


class Engine:
    """A port, what loads it, and the processes behind it."""

    def __init__(self, name, port, pids, tool="sse_load", args=()):
        self.name, self.port, self.pids, self.tool, self.args = name, port, pids, tool, list(args)


class Bench:
    def __init__(self, args, folder):
        self.args = args
        self.folder = Path(folder)
        self.build = Path(args.build)
        self.baton = self.build / "baton"
        self.tools = self.build / "tests" / "bench"
        self.rows = {}
        self.certs = self.folder / "certs"
        subprocess.run([self.baton, "certs", self.certs], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.ca = ["--ca", self.certs / "ca.pem"]

    def add(self, row, engine, unit, value):
        self.rows.setdefault((row, engine, unit), []).append(round(value, 3))
        log(f"{row:<24}{engine:<16}{value:10.2f} {unit}")

    @contextlib.contextmanager
    def direct(self, interval_us, cpus=None):
        args = [self.tools / "mock_http", "--interval-us", interval_us, "--vocab", VOCAB]
        with process(args, cpus=cpus) as (mock, words):
            yield Engine("direct", int(words["http"].rsplit(":", 1)[1]), [mock.pid])

    @contextlib.contextmanager
    def nginx(self, backend):
        """(plain, HTTPS) of one process."""
        with tempfile.TemporaryDirectory() as folder:
            folder = Path(folder)
            ports = [free_port(), free_port()]
            proxy = """location / { proxy_pass http://mock; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off; }"""
            (folder / "nginx.conf").write_text(f"""
daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/error.log; worker_rlimit_nofile 20000;
events {{ worker_connections 8192; }}
http {{ access_log off; client_body_temp_path {folder}; proxy_temp_path {folder}; fastcgi_temp_path {folder};
  uwsgi_temp_path {folder}; scgi_temp_path {folder}; keepalive_requests 1000000; tcp_nodelay on;
  upstream mock {{ server 127.0.0.1:{backend.port}; keepalive 1024; }}
  server {{ listen 127.0.0.1:{ports[0]} backlog=4096; {proxy} }}
  server {{ listen 127.0.0.1:{ports[1]} ssl backlog=4096; ssl_protocols TLSv1.3; ssl_certificate {self.certs}/http.pem;
    ssl_certificate_key {self.certs}/http-key.pem; {proxy} }} }}
""")
            with process(["nginx", "-c", folder / "nginx.conf", "-e", folder / "error.log"], ready=False) as (nginx, _):
                deadline = time.monotonic() + 10
                while time.monotonic() < deadline:
                    with contextlib.suppress(OSError), http.client.socket.create_connection(("127.0.0.1", ports[1])):
                        break
                    time.sleep(0.01)
                pids = [nginx.pid, *children(nginx.pid)]
                yield Engine("nginx", ports[0], pids), Engine("nginx-https", ports[1], pids, args=self.ca)

    @contextlib.contextmanager
    def doors(self, interval_us, cpus=None, mock_cpus=None, router_args=(), mock_extra=(), tls=False):
        """(HTTP, gRPC) of one router."""
        if tls:
            router_args = [*router_args, "--http-tls-cert", self.certs / "http.pem", "--http-tls-key", self.certs / "http-key.pem"]
        with tempfile.TemporaryFile() as logs:
            args = [self.baton, "router", "--model", self.args.model, "--port", 0, "--registry-listen", "127.0.0.1:0",
                    "--disaggregate", "always", "--log-level", "warn", *router_args]
            with process(args, cpus=cpus, logs=logs) as (router, words):
                port, grpc_port = (int(words[door].rsplit(":", 1)[1]) for door in ("http", "grpc"))
                mock_args = [self.tools / "mock_worker", "--router", words["registry"], "--model", self.args.model,
                             "--interval-us", interval_us, "--vocab", VOCAB, "--max-context", 100000, *mock_extra]
                with process(mock_args, cpus=mock_cpus):
                    wait_http(port, self.certs / "ca.pem" if tls else None)
                    ca = self.ca if tls else []
                    yield (Engine("baton-https" if tls else "baton", port, [router.pid], args=ca),
                           Engine("baton-grpc-tls" if tls else "baton-grpc", grpc_port, [router.pid], "grpc_load", ca))

    @contextlib.contextmanager
    def router(self, *args, **options):
        with self.doors(*args, **options) as (http_door, _):
            yield http_door

    @contextlib.contextmanager
    def all_engines(self, interval_us):
        """Those in the clear, then those under TLS in the same order (the first has none)."""
        with self.direct(interval_us) as direct, self.nginx(direct) as (nginx, nginx_tls), \
                self.doors(interval_us) as (door, grpc), self.doors(interval_us, tls=True) as (door_tls, grpc_tls):
            yield [direct, nginx, door, grpc], [nginx_tls, door_tls, grpc_tls]

    def load_args(self, engine, streams, requests, tokens, extra=(), seconds=60):
        return [str(a) for a in (self.tools / engine.tool, "--port", engine.port, "--streams", streams, "--requests", requests,
                                 "--tokens", tokens, "--vocab", VOCAB, "--seconds", seconds, *engine.args, *extra)]

    def load(self, engine, streams, requests, tokens, cpus=None, extra=(), seconds=60):
        """(report of the load generator, CPU seconds of the engine's processes meanwhile)"""
        args = self.load_args(engine, streams, requests, tokens, extra, seconds)
        if cpus is not None and shutil.which("taskset"):
            args = ["taskset", "-c", cpus, *args]
        before = cpu_s(engine.pids)
        done = subprocess.run(args, stdout=subprocess.PIPE, text=True)
        report = json.loads(done.stdout)
        if report["errors"]:
            log(f"{engine.name}: {report['errors']} errors: {report['error']}")
            if report["errors"] > report["requests"] / 100:
                sys.exit(1)
        return report, cpu_s(engine.pids) - before

    def round_cpu(self, streams):
        """10 ms steps, a token to every stream in each."""
        own = None
        with self.all_engines(10000) as (plain, tls):
            for engine in plain + tls:
                self.load(engine, streams, streams, 8)
                report, cpu = self.load(engine, streams, 2 * streams, 128)
                us = cpu * 1e6 / report["tokens"]
                own = us if own is None else own
                self.add(f"router_cpu_{streams}", engine.name, "us/token", us if engine is plain[0] else us - own)
                self.add(f"router_delay_p99_{streams}", engine.name, "ms", report["delay_p99_us"] / 1e3)

    def ttft_us(self, engine, requests, extra=()):
        self.load(engine, 1, 10, 2, extra=["--words", 50, *extra])
        return self.load(engine, 1, requests, 2, extra=["--words", 50, *extra])[0]["ttft_p50_us"]

    def round_ttft(self):
        """One request at a time, 2 tokens."""
        with self.all_engines(2000) as (plain, tls):
            kept = {engine.name: self.ttft_us(engine, 200) for engine in plain + tls}
            fresh = {engine.name: self.ttft_us(engine, 100, ["--fresh"]) for engine in plain[1:] + tls}
            own = kept["direct"]
            for engine in plain:
                self.add("router_ttft_50_words", engine.name, "us", kept[engine.name] - (own if engine is not plain[0] else 0))
            for clear, engine in zip(plain[1:], tls):
                self.add("router_ttft_tls", engine.name, "us", kept[engine.name] - kept[clear.name])
                self.add("router_ttft_tls_fresh", engine.name, "us", fresh[engine.name] - fresh[clear.name])

    def round_connection(self, connections=200):
        """The router's CPU for a new connection with one small request."""
        for tls in (False, True):
            with self.doors(10000, tls=tls) as (door, _):
                before = cpu_s(door.pids)
                for _ in range(connections):
                    wait_http(door.port, self.certs / "ca.pem" if tls else None)
                self.add("router_connection", door.name, "us", (cpu_s(door.pids) - before) * 1e6 / connections)

    def round_streams(self, streams=2000, tokens=24):
        """Each door alone, then both at once before a worker that takes no step until all streams have reached it."""
        own = None
        for i in range(4):
            with contextlib.ExitStack() as stack:
                if i < 2:
                    engine = stack.enter_context(self.direct(100000))
                    engine = stack.enter_context(self.nginx(engine))[0] if i else engine
                else:
                    engine = stack.enter_context(self.doors(100000))[i - 2]
                idle = rss_mb(engine.pids)
                report, cpu = self.load(engine, streams, streams, tokens)
                us = cpu * 1e6 / report["tokens"]
                own = us if own is None else own
                self.add(f"streams_{streams}_cpu", engine.name, "us/token", us if i == 0 else us - own)
                self.add(f"streams_{streams}_delay_p99", engine.name, "ms", report["delay_p99_us"] / 1e3)
                self.add(f"streams_{streams}_ttft_p99", engine.name, "ms", report["ttft_p99_us"] / 1e3)
                self.add(f"streams_{streams}_rss", engine.name, "kB/stream",
                         (rss_mb(engine.pids, "VmHWM") - idle) * 1024 / streams)
        with self.doors(20000, mock_extra=["--gather", 2 * streams]) as engines:
            loads = [subprocess.Popen(self.load_args(engine, streams, streams, tokens), stdout=subprocess.PIPE, text=True)
                     for engine in engines]
            for engine, load in zip(engines, loads):
                report = json.loads(load.communicate()[0])
                if report["errors"]:
                    log(f"{engine.name}: {report['errors']} errors: {report['error']}")
                self.add(f"streams_{streams}_both", engine.name, "complete", streams - report["errors"])

    def round_throughput(self):
        """512 streams at 172 tokens/s each (88,000 a second), the router on a core of its own."""
        last = (os.cpu_count() or 1) - 1
        others = f"0-{last - 1}" if last else "0"
        with self.router(5800, cpus=str(last), mock_cpus=others) as router:
            self.load(router, 512, 512, 8, cpus=others)
            report, cpu = self.load(router, 512, 1024, 512, cpus=others)
            self.add("router_tokens_512", "baton", "tokens/s", report["tokens_s"])
            self.add("router_tokens_512_delay_p99", "baton", "ms", report["delay_p99_us"] / 1e3)
            self.add("router_tokens_512_cpu", "baton", "us/token", cpu * 1e6 / report["tokens"])

    def round_memory(self, streams=10000):
        """Open streams that have their first token and get one more every ten seconds."""
        with self.router(10000000) as router:
            time.sleep(0.5)
            self.add("router_rss_idle", "baton", "MB", rss_mb(router.pids))
            args = [self.tools / "sse_load", "--port", router.port, "--streams", streams, "--requests", streams,
                    "--tokens", 1000, "--vocab", VOCAB, "--ramp-us", 150, "--hold"]
            load = subprocess.Popen([str(a) for a in args], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            report = json.loads(load.stdout.readline())
            if report["errors"]:
                log(f"{report['errors']} errors: {report['error']}")
            self.add(f"router_rss_{streams}", "baton", "MB", rss_mb(router.pids))
            self.add(f"router_open_{streams}", "baton", "streams", streams - report["errors"])
            load.communicate("")

    def round_start(self):
        """Exec to the first 200 of /ready's port: the router answers, whatever is attached."""
        started = time.monotonic()
        args = [self.baton, "router", "--model", self.args.model, "--port", 0, "--registry-listen", "127.0.0.1:0",
                "--log-level", "warn"]
        with process(args) as (_, words):
            connection = http.client.HTTPConnection("127.0.0.1", int(words["http"].rsplit(":", 1)[1]))
            connection.request("GET", "/ready")
            connection.getresponse().read()
            self.add("router_start", "baton", "ms", (time.monotonic() - started) * 1e3)
            connection.close()

    def round_gone(self):
        """A client that leaves while it is queued: until the router has let go of its request (a look at /metrics included)."""
        body = json.dumps({"prompt": [5, 6, 7], "max_tokens": 8, "stream": True}).encode()
        post = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body
        with self.router(1000, mock_extra=["--full"]) as router:
            looks = http.client.HTTPConnection("127.0.0.1", router.port)

            def live():
                looks.request("GET", "/metrics")
                lines = looks.getresponse().read().decode().splitlines()
                return next(float(line.split()[1]) for line in lines if line.startswith("baton_requests_live "))

            for _ in range(20):
                client = http.client.socket.create_connection(("127.0.0.1", router.port))
                client.sendall(post)
                while not live():
                    pass
                client.close()
                left = time.monotonic()
                while live():
                    pass
                self.add("router_client_gone", "baton", "ms", (time.monotonic() - left) * 1e3)
            looks.close()

    def run(self):
        parts = {"start": self.round_start, "ttft": self.round_ttft, "cpu-64": lambda: self.round_cpu(64),
                 "cpu-256": lambda: self.round_cpu(256), "connection": self.round_connection, "throughput": self.round_throughput,
                 "memory": self.round_memory, "streams": self.round_streams, "gone": self.round_gone}
        for _ in range(self.args.rounds):
            for name, part in parts.items():
                if not self.args.only or name.startswith(self.args.only):
                    started = time.monotonic()
                    part()
                    log(f"{name} took {time.monotonic() - started:.1f} s")
        for (row, engine, unit), samples in self.rows.items():
            print(json.dumps({"row": row, "engine": engine, "unit": unit, "samples": samples}))


def free_port():
    with http.client.socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


def wait_http(port, ca=None):
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5) if ca is None else http.client.HTTPSConnection(
            "localhost", port, timeout=5, context=ssl.create_default_context(cafile=ca))
        connection.request("GET", "/ready")
        if connection.getresponse().status == 200:
            connection.close()
            return
        connection.close()
        time.sleep(0.02)
    sys.exit("bench router: the router is not ready within 20 s")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--build", default=ROOT / "build")
    parser.add_argument("--model", help="GGUF file; the default model where it is not given")
    parser.add_argument("--only", help="start, ttft, cpu, cpu-64, cpu-256, connection, throughput, memory, streams or gone")
    args = parser.parse_args()
    args.model = model_path(args.model)
    if not shutil.which("nginx"):
        sys.exit("bench router: nginx is not installed")
    with tempfile.TemporaryDirectory() as folder:
        Bench(args, folder).run()


main()
