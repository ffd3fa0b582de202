"""A name with several addresses is several routers: workers attach to each, and follow the name as it changes."""
import shutil
import socket
import subprocess

import pytest
from certificates import make_certs
from cluster import Cluster, Process, tls_args

NAME = "routers.test"
SMALL = ["--kv-tokens", 2048, "--threads", 1]


class Hosts:
    """A hosts file that processes started through it see as /etc/hosts, in a mount namespace of their own."""

    def __init__(self, path):
        self.path = path
        self.write()
        run = subprocess.run([*self.prefix(), "true"], capture_output=True, text=True) if shutil.which("unshare") else None
        if run is None or run.returncode:
            pytest.skip(f"no mount namespace here: {run.stderr if run else 'unshare is missing'}")

    def prefix(self):
        return ["unshare", "-rm", "sh", "-c", 'mount --bind "$0" /etc/hosts && exec "$@"', str(self.path)]

    def write(self, *addresses):
        """In place: the file that is mounted stays the same one."""
        with open(self.path, "w") as file:
            file.write("127.0.0.1 localhost\n" + "".join(f"{a} {NAME}\n" for a in addresses))


class Router(Cluster):
    """A router at one address of the name."""

    def __init__(self, baton, model, logs, address, port, certs):
        super().__init__(baton, model, logs, prefill=0, decode=0, tls=certs)
        self.router = Process(f"router-{address}", [baton, "router", "--model", model, "--port", 0, "--registry-listen",
                                                    f"{address}:{port}", "--disaggregate", "always", *self.tls_args("router")], logs)
        ready = self.router.wait_ready()
        self.host, http = ready["http"].rsplit(":", 1)
        self.port, self.registry = int(http), ready["registry"]

    def names(self):
        return sorted(w["name"] for w in self.json("/debug/workers")["workers"] if w["state"] == "up")

    def works(self):
        return len(self.complete([5, 6, 7, 8], max_tokens=3, ignore_eos=True)["token_ids"]) == 3


def free_port(addresses):
    while True:
        with socket.create_server((addresses[0], 0)) as first:
            port = first.getsockname()[1]
            try:
                for address in addresses[1:]:
                    socket.create_server((address, port)).close()
                return port
            except OSError:
                continue


def test_workers_follow_a_name(baton, tiny, tmp_path):
    hosts = Hosts(tmp_path / "hosts")
    certs = make_certs(baton, tmp_path / "certs")
    addresses = ["127.0.0.1", "127.0.0.2", "127.0.0.3"]
    port = free_port(addresses)
    both = ["decode-0", "prefill-0"]
    processes = []
    try:
        routers = [Router(baton, tiny, tmp_path, a, port, certs) for a in addresses]
        processes += [r.router for r in routers]
        workers = {}
        for name in both:
            role = name.split("-")[0]
            workers[name] = Process(name, [*hosts.prefix(), baton, role, "--name", name, "--model", tiny, "--router",
                                           f"{NAME}:{port}", *SMALL, *tls_args(certs, role)], tmp_path)
            processes.append(workers[name])
        # Nothing is known yet; then two addresses, then a third.
        for worker in workers.values():
            Cluster.wait_for(lambda: f"router {NAME}:{port} cannot be looked up" in worker.text(), worker.text())
        hosts.write(*addresses[:2])
        for router in routers[:2]:
            router.wait_for(lambda: router.names() == both and router.get("/ready")[0] == 200, "both workers attach")
            assert router.works()
        assert routers[2].names() == []
        hosts.write(*addresses)
        routers[2].wait_for(lambda: routers[2].names() == both, "the third address is found")
        # An address that leaves keeps its streams until they end.
        hosts.write(*addresses[1:])
        old, new = routers[0], Router(baton, tiny, tmp_path, "127.0.0.4", port, certs)
        processes.append(new.router)
        hosts.write(*addresses[1:], "127.0.0.4")
        new.wait_for(lambda: new.names() == both, "the workers have looked again")
        assert old.names() == both and old.works()
        assert old.router.stop() == 0
        for router in [*routers[1:], new]:
            assert router.names() == both and router.works()
        for worker in workers.values():
            assert worker.stop() == 0
    finally:
        for process in processes:
            if process.process.poll() is None:
                process.kill()
