"""Many requests, half of them cut by the client at random moments: nothing is left behind."""
import http.client
import json
import random
import socket
from concurrent.futures import ThreadPoolExecutor

from cluster import Cluster

VOCAB = 512


def census(cluster):
    """{worker: {state: pages}}"""
    out = {}
    for name, value in cluster.metrics().items():
        if name.startswith("baton_kv_pages{"):
            labels = dict(part.split("=") for part in name[15:-1].replace('"', "").split(","))
            out.setdefault(labels["worker"], {})[labels["state"]] = value
    return out


def idle(cluster):
    pages = census(cluster)
    return len(pages) == len(cluster.workers) and all(
        p["free"] + p["cached"] == sum(p.values()) for p in pages.values())


def send(cluster, rng):
    """One request; with even odds the client goes away at some moment. True if it ran to its end."""
    tokens = [rng.randrange(3, VOCAB) for _ in range(rng.choice([3, 40, 200, 600]))]
    body = json.dumps({"prompt": tokens, "max_tokens": rng.choice([1, 8, 40]), "stream": True, "ignore_eos": True})
    cut = rng.random() < 0.5
    connection = http.client.HTTPConnection(cluster.host, cluster.port, timeout=120)
    connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
    if cut:
        connection.sock.settimeout(rng.random() * 0.05 + 0.001)
        try:
            while connection.sock.recv(4096):
                if rng.random() < 0.1:
                    break
        except (socket.timeout, TimeoutError):
            pass
        connection.close()
        return False
    answer = connection.getresponse()
    assert answer.status == 200, answer.read()
    data = answer.read()
    connection.close()
    assert data.endswith(b"data: [DONE]\n\n"), data[-200:]
    return True


def test_nothing_is_left(baton, tiny, logs, sanitized):
    n = 200 if sanitized else 1000
    seeds = iter(range(10 * n))
    with Cluster(baton, tiny, logs, prefill=1, decode=1, worker_args=["--kv-tokens", 16384, "--threads", 1]) as cluster:
        with ThreadPoolExecutor(8) as pool:
            def wave(count):
                return sum(pool.map(lambda s: send(cluster, random.Random(s)), [next(seeds) for _ in range(count)]))

            def settle():
                cluster.wait_for(lambda: idle(cluster), "every page is free or cached")

            fds = cluster.fds_at_rest()  # nobody has asked for a token yet
            wave(20)
            settle()
            whole = wave(n // 2)
            settle()
            half = {p.name: p.rss_kb() for p in cluster.processes()}
            whole += wave(n // 2)
            settle()
        assert n * 0.4 < whole < n * 0.6
        assert cluster.fds_at_rest() == fds
        if not sanitized:  # the sanitizer's quarantine grows by design
            for process in cluster.processes():
                grown = process.rss_kb() - half[process.name]
                print(f"{process.name}: RSS grew {grown} KiB over the second half")
                assert grown < 2048, process.name
        assert cluster.request("POST", "/debug/flush", {})[0] == 200
        cluster.wait_for(lambda: all(p["free"] == sum(p.values()) for p in census(cluster).values()),
                         "a flush leaves every page free")
        for process in cluster.processes():
            assert process.stop() == 0, process.text()
