"""Starts routers and workers as processes on loopback ports that the system chooses, and ends them."""
import http.client
import json
import os
import queue
import signal
import subprocess
import threading
import time
from pathlib import Path

START_S = 120


class Process:
    """One baton process. Its ready line is parsed, its log goes to a file that is shown when a test fails."""

    def __init__(self, name, args, log_dir, env=None):
        self.name = name
        self.args = [str(a) for a in args]
        self.log_path = Path(log_dir) / f"{name}-{time.monotonic_ns()}.log"
        self.log = open(self.log_path, "wb")
        self.process = subprocess.Popen(self.args, stdout=subprocess.PIPE, stderr=self.log, stdin=subprocess.DEVNULL,
                                        env={**os.environ, **(env or {})})
        self.lines = queue.Queue()
        self.ready = None
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        for line in self.process.stdout:
            self.lines.put(line.decode(errors="replace").rstrip("\n"))
        self.lines.put(None)

    def wait_ready(self):
        """The `key=value` words of the ready line."""
        deadline = time.monotonic() + START_S
        while self.ready is None:
            line = self.lines.get(timeout=max(0.01, deadline - time.monotonic()))
            if line is None:
                raise RuntimeError(f"{self.name} ended with {self.process.wait()} before it was ready:\n{self.text()}")
            if line.startswith("ready: "):
                self.ready = dict(word.split("=", 1) for word in line[7:].split())
        return self.ready

    def text(self):
        self.log.flush()
        return self.log_path.read_text(errors="replace")[-8000:]

    @property
    def pid(self):
        return self.process.pid

    def kill(self):
        self.process.kill()
        self.process.wait()

    def stop(self, timeout_s=60):
        """SIGTERM; the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout_s)

    def rss_kb(self):
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1])
        raise RuntimeError(f"{self.name} has no VmRSS")

    def n_fds(self):
        return len(os.listdir(f"/proc/{self.pid}/fd"))


def tls_args(directory, role):
    """The options that name a role's files in a directory of `baton certs`."""
    return ["--tls-cert", f"{directory}/{role}.pem", "--tls-key", f"{directory}/{role}-key.pem",
            "--tls-ca", f"{directory}/ca.pem"]


class Cluster:
    """A router, prefill workers and decode workers; a context manager."""

    def __init__(self, baton, model, log_dir, prefill=1, decode=1, disaggregate="always", router_args=(),
                 worker_args=(), prefill_args=(), decode_args=(), env=None, tls=None, https=None):
        """tls: a directory of `baton certs`; routers and workers then speak TLS. https: the SSLContext of clients where
        router_args make the router speak HTTPS."""
        self.baton, self.model, self.log_dir, self.env, self.tls = baton, model, log_dir, env, tls
        self.worker_args = {"prefill": [*worker_args, *prefill_args], "decode": [*worker_args, *decode_args]}
        self.workers = {}
        self.router = None
        self.https = https
        self.n_workers = {"prefill": prefill, "decode": decode}
        self.router_args = ["--disaggregate", disaggregate, *router_args]

    def tls_args(self, role):
        return tls_args(self.tls, role) if self.tls else []

    def __enter__(self):
        try:
            self.start_router()
            for role, count in self.n_workers.items():
                for i in range(count):
                    self.start_worker(role, f"{role}-{i}")
            for worker in self.workers.values():
                worker.wait_ready()
            if self.n_workers["decode"]:
                self.wait_for(lambda: self.get("/ready")[0] == 200, "the cluster is ready")
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def start_router(self):
        self.router = Process("router", [self.baton, "router", "--model", self.model, "--port", 0,
                                         "--registry-listen", "127.0.0.1:0", *self.tls_args("router"),
                                         *self.router_args], self.log_dir, self.env)
        ready = self.router.wait_ready()
        self.host, port = ready["http"].rsplit(":", 1)
        self.port = int(port)
        self.registry, self.grpc = ready["registry"], ready["grpc"]
        self.url = f"{'https' if self.https else 'http'}://{self.host}:{self.port}"

    def start_worker(self, role, name, extra=(), model=None):
        self.workers[name] = Process(name, [self.baton, role, "--name", name, "--model", model or self.model,
                                            "--router", self.registry, *self.tls_args(role),
                                            *self.worker_args[role], *extra],
                                     self.log_dir, self.env)
        return self.workers[name]

    def restart_worker(self, name):
        old = self.workers[name]
        old.kill()
        return self.start_worker(name.split("-")[0], name)

    def __exit__(self, kind, value, trace):
        if kind is not None:
            for process in self.processes():
                print(f"--- {process.name}\n{process.text()[-3000:]}")
        for process in self.processes():
            if process.process.poll() is None:
                process.kill()

    def processes(self):
        return [p for p in [self.router, *self.workers.values()] if p]

    def http(self, timeout=120):
        if self.https:
            return http.client.HTTPSConnection(self.host, self.port, timeout=timeout, context=self.https)
        return http.client.HTTPConnection(self.host, self.port, timeout=timeout)

    def request(self, method, path, body=None, headers=None, timeout=120):
        """(status, headers, bytes) of one exchange on a connection of its own."""
        connection = self.http(timeout)
        try:
            data = json.dumps(body).encode() if body is not None else None
            connection.request(method, path, data, {"Content-Type": "application/json", **(headers or {})})
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()
        finally:
            connection.close()

    def get(self, path):
        return self.request("GET", path)

    def json(self, path):
        status, _, body = self.get(path)
        assert status == 200, (path, status, body[:300])
        return json.loads(body)

    def complete(self, prompt, timeout=120, **fields):
        """The choice of one /v1/completions, with its token ids and the logits hash of each step."""
        body = {"prompt": prompt, "return_token_ids": True, "return_logits_hash": True, **fields}
        status, headers, data = self.request("POST", "/v1/completions", body, timeout=timeout)
        answer = json.loads(data)
        assert status == 200, (status, answer)
        choice = answer["choices"][0]
        choice["request_id"] = {k.lower(): v for k, v in headers.items()}.get("x-request-id")
        choice["usage"] = answer["usage"]
        return choice

    def metrics(self):
        return self.parse_metrics(self.get("/metrics")[2])

    @staticmethod
    def parse_metrics(text):
        """{name{labels}: value} of what /metrics answers."""
        out = {}
        for line in text.decode().splitlines():
            if line and not line.startswith("#"):
                name, value = line.rsplit(" ", 1)
                out[name] = float(value)
        return out

    def fds_at_rest(self):
        """{process: open descriptors}, once every KV link is up and the router has no client but the one who asks."""
        peers = {"prefill": self.n_workers["decode"], "decode": self.n_workers["prefill"]}
        links = {f'baton_links{{worker="{name}",role="{role}"}}': peers[role]
                 for name in self.workers for role in [name.split("-")[0]]}
        connection = self.http()
        try:
            def rests():
                connection.request("GET", "/metrics")
                now = self.parse_metrics(connection.getresponse().read())
                return now["baton_http_connections"] == 1 and all(now.get(k) == n for k, n in links.items())

            self.wait_for(rests, "links are up and clients gone")
            return {p.name: p.n_fds() for p in self.processes()}
        finally:
            connection.close()

    @staticmethod
    def wait_for(condition, what, timeout_s=60):
        deadline = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline:
                raise AssertionError(f"not within {timeout_s} s: {what}")
            time.sleep(0.01)
