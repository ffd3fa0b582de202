"""SIGTERM drains: no new work, streams finish or move with the same tokens, exit code 0; a second one ends at once."""
import contextlib
import http.client
import signal
import subprocess
import threading

import pytest
from cluster import Cluster
from test_worker_death import stream

ARGS = ["--kv-tokens", 16384, "--threads", 1]
LONG = 900  # tokens of a stream; the model's context is 1,024


def live_worker(cluster):
    """Where the one request that runs is decoded."""
    live = [r for r in cluster.json("/debug/requests")["requests"] if r["state"] != "ended"]
    assert len(live) == 1, live
    return live[0]["decode_worker"]


@contextlib.contextmanager
def paused(cluster):
    """Decode workers stand still, for less than makes them suspect, so that a stream does not end meanwhile."""
    workers = [w for name, w in cluster.workers.items() if name.startswith("decode")]
    for worker in workers:
        worker.process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        for worker in workers:
            worker.process.send_signal(signal.SIGCONT)


def signals_at(cluster, at, *numbers):
    """For stream(): sends these to the stream's worker once that many tokens have come. Answers a list with its name."""
    names = []

    def on_token(n):
        if n >= at and not names:
            with paused(cluster):
                names.append(live_worker(cluster))
                for number in numbers:
                    cluster.workers[names[0]].process.send_signal(number)
    return on_token, names


def wait_up(cluster, n):
    cluster.wait_for(lambda: sum(w["state"] == "up" and not w["draining"]
                                 for w in cluster.json("/debug/workers")["workers"]) == n, f"{n} workers are up")


@pytest.mark.parametrize("sampling", [{"temperature": 0}, {"temperature": 1, "seed": 7}])
@pytest.mark.parametrize("seconds", [30, 0])
def test_decode_worker_drains(baton, tiny, logs, sampling, seconds):
    """With time its stream finishes where it is; without, it moves."""
    moved_total = 'baton_requests_moved_total{reason="drained"}'
    with Cluster(baton, tiny, logs, decode=2, worker_args=[*ARGS, "--drain-seconds", seconds]) as cluster:
        expected = stream(cluster, max_tokens=LONG, **sampling)
        on_token, names = signals_at(cluster, 20, signal.SIGTERM)
        before = cluster.metrics()[moved_total]
        got = stream(cluster, on_token, max_tokens=LONG, **sampling)
        assert names, "the stream ended before its worker could be told"
        assert got == expected
        moved = cluster.metrics()[moved_total] - before
        assert moved == (1 if seconds == 0 else 0)
        worker = cluster.workers.pop(names[0])
        assert worker.process.wait(60) == 0, worker.text()
        assert "drained" in worker.text()
        # The other one serves, and nobody was called dead over it.
        wait_up(cluster, 2)
        assert stream(cluster, max_tokens=LONG, **sampling) == expected


def test_prefill_worker_drains(baton, tiny, logs):
    """A prompt that it computes is handed over before it goes; those that wait go to the other one."""
    prompts = [[7 + (i * k) % 400 for k in range(900)] for i in range(1, 9)]
    with Cluster(baton, tiny, logs, prefill=2, worker_args=ARGS) as cluster:
        expected = [cluster.complete(p, max_tokens=8, ignore_eos=True, temperature=0) for p in prompts]
        cluster.request("POST", "/debug/flush", {})
        got = [None] * len(prompts)

        def ask(i):
            got[i] = cluster.complete(prompts[i], max_tokens=8, ignore_eos=True, temperature=0)
        threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(prompts))]
        for thread in threads:
            thread.start()
        worker = cluster.workers.pop("prefill-0")
        worker.process.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join()
        for a, b in zip(got, expected):
            assert a["token_ids"] == b["token_ids"] and a["logits_hashes"] == b["logits_hashes"]
        assert worker.process.wait(60) == 0, worker.text()


@pytest.mark.parametrize("role", ["decode", "prefill"])
def test_idle_worker_drains(baton, tiny, logs, role):
    with Cluster(baton, tiny, logs, prefill=2, decode=2, worker_args=ARGS) as cluster:
        worker = cluster.workers.pop(f"{role}-0")
        assert worker.stop() == 0, worker.text()
        wait_up(cluster, 3)
        assert len(cluster.complete([5, 6, 7], max_tokens=4, ignore_eos=True)["token_ids"]) == 4
        # It has left: that is no death.
        Cluster.wait_for(lambda: cluster.metrics()["baton_worker_leaves_total"] == 1, "it has left")
        assert cluster.metrics()["baton_worker_deaths_total"] == 0


@pytest.mark.parametrize("role", ["decode", "prefill"])
def test_worker_without_router_drains(baton, tiny, logs, role):
    with Cluster(baton, tiny, logs, worker_args=ARGS) as cluster:
        cluster.router.kill()
        assert cluster.workers[f"{role}-0"].stop() == 0, cluster.workers[f"{role}-0"].text()


def test_second_signal_ends_at_once(baton, tiny, logs):
    """The stream's tokens are the same all the same: it is a death, and the other worker goes on."""
    with Cluster(baton, tiny, logs, decode=2, worker_args=ARGS) as cluster:
        expected = stream(cluster, max_tokens=LONG, temperature=0)
        on_token, names = signals_at(cluster, 20, signal.SIGTERM, signal.SIGINT)
        got = stream(cluster, on_token, max_tokens=LONG, temperature=0)
        assert names and got == expected
        worker = cluster.workers[names[0]]
        assert worker.process.wait(20) == 1, worker.text()  # its drain would take 30 s
        assert "ending at once" in worker.text()
        assert sum(v for k, v in cluster.metrics().items() if k.startswith("baton_requests_moved_total")) == 1


def test_router_drains(baton, tiny, logs):
    """Its open streams finish, new requests and connections are refused, exit code 0; its workers stay and wait."""
    with Cluster(baton, tiny, logs, worker_args=ARGS) as cluster:
        expected = stream(cluster, max_tokens=LONG, temperature=0)
        told = []

        def on_token(n):
            if n >= 20 and not told:
                with paused(cluster):
                    cluster.router.process.send_signal(signal.SIGTERM)
                    Cluster.wait_for(lambda: "no new work" in cluster.router.text(), "the signal was heard")
                told.append(n)
        got = stream(cluster, on_token, max_tokens=LONG, temperature=0)
        assert told and got == expected
        assert cluster.router.process.wait(60) == 0, cluster.router.text()
        assert all(worker.process.poll() is None for worker in cluster.workers.values())


def test_second_signal_to_router(baton, tiny, logs):
    with Cluster(baton, tiny, logs, worker_args=ARGS) as cluster:
        told = []

        def on_token(n):
            if n >= 20 and not told:
                told.append(n)
                with paused(cluster):
                    cluster.router.process.send_signal(signal.SIGTERM)
                    Cluster.wait_for(lambda: "no new work" in cluster.router.text(), "the first signal was heard")
                    cluster.router.process.send_signal(signal.SIGTERM)
                    assert cluster.router.process.wait(20) == 1, cluster.router.text()
        with pytest.raises((AssertionError, OSError, http.client.HTTPException)) as cut:
            stream(cluster, on_token, max_tokens=LONG, temperature=0)
        assert told and "Sanitizer" not in cluster.router.text(), cut


def test_signal_while_the_model_loads(baton, tiny, logs):
    """Before it serves there is nothing to drain: it ends."""
    worker = subprocess.Popen([str(baton), "decode", "--model", str(tiny), "--router", "127.0.0.1:1"],
                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(60) in (0, -signal.SIGTERM)
