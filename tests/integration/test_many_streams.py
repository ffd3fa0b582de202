"""Thousands of streams at once by both doors: every one gets every token, in order, and nothing of them stays."""
import json
import resource
import subprocess

import pytest
from front import front, live

TOKENS = 24
VOCAB = 40000


@pytest.fixture
def descriptors():
    """As many as the system lets this process and its children have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield hard
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def start_load(cluster, name, port, n, seconds):
    """The generator checks that token i of each stream has the id that the worker gave it."""
    tool = cluster.baton.parent / "tests" / "bench" / name
    args = [tool, "--port", port, "--streams", n, "--requests", n, "--tokens", TOKENS, "--vocab", VOCAB, "--by-index",
            "--seconds", seconds]
    return subprocess.Popen([str(a) for a in args], stdout=subprocess.PIPE, text=True)


def all_complete(baton, model, logs, n, seconds):
    """n streams by each door. The worker takes no step before all of them have reached it."""
    mock = ["--by-index", "--vocab", VOCAB, "--interval-us", 20000, "--max-context", 100000, "--gather", 2 * n]
    with front(baton, model, logs, mock) as cluster:
        fds, rss = cluster.router.n_fds(), cluster.router.rss_kb()
        grpc_port = int(cluster.grpc.rsplit(":", 1)[1])
        loads = {"HTTP": start_load(cluster, "sse_load", cluster.port, n, seconds),
                 "gRPC": start_load(cluster, "grpc_load", grpc_port, n, seconds)}
        try:
            reports = {door: json.loads(load.communicate(timeout=2 * seconds)[0]) for door, load in loads.items()}
        finally:
            for load in loads.values():
                load.kill()
                load.wait()
        for door, report in reports.items():
            print(f"{door}: {report}")
            assert report["errors"] == report["unfinished"] == report["unordered"] == 0, (door, report)
            assert report["requests"] == n and report["tokens"] == n * TOKENS, door
        print(f"the router's RSS: {rss} kB before, {cluster.router.rss_kb()} kB after")
        cluster.wait_for(lambda: live(cluster) == 0, "no request is left")
        cluster.wait_for(lambda: cluster.router.n_fds() <= fds, "every descriptor came back")


def test_four_hundred(baton, tiny, logs, descriptors):
    all_complete(baton, tiny, logs, 200, 60)


@pytest.mark.slow
def test_four_thousand(baton, tiny, logs, descriptors):
    if descriptors < 2600:
        pytest.skip(f"only {descriptors} descriptors are allowed")
    all_complete(baton, tiny, logs, 2000, 60)
