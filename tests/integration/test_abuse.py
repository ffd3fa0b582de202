"""Hostile clients: what each may cost is bounded, and a well-behaved client is served meanwhile."""
import contextlib
import json
import re
import resource
import selectors
import socket
import ssl
import statistics
import subprocess
import threading
import time

import grpc
import pytest
import stubs
from abusers import CHUNKS, HEADERS, HTTP2_FLOODS, Flood, Held, open_many, printed_bound_kb
from front import connect, events, front, metric, post, read_all, read_until, stream_body

pb, rpc = stubs.load("inference.proto")
SLOW_LIMITS = ["--header-timeout-s", 2]


@contextlib.contextmanager
def many_descriptors(n):
    """This process may open n; skips where the system does not let it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < n:
        pytest.skip(f"only {hard} descriptors are allowed")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, n), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def answer_of(sock, timeout=30):
    """The status and the error's code of an answer behind which the server closes."""
    data = read_all(sock, timeout)
    head, body = data.split(b"\r\n\r\n", 1)
    return int(head.split()[1]), json.loads(body)["error"]["code"]


def wait_closed(socks, timeout=30):
    """Until the server has closed every one; what came from each."""
    got = {sock: b"" for sock in socks}
    deadline = time.monotonic() + timeout
    with selectors.DefaultSelector() as selector:
        for sock in socks:
            sock.setblocking(False)
            selector.register(sock, selectors.EVENT_READ)
        while selector.get_map():
            assert time.monotonic() < deadline, f"{len(selector.get_map())} of {len(socks)} are still open"
            for key, _ in selector.select(1):
                try:
                    data = key.fileobj.recv(65536)
                except ConnectionError:
                    data = b""
                got[key.fileobj] += data
                if not data:
                    selector.unregister(key.fileobj)
                    key.fileobj.close()
    return list(got.values())


def test_silent_connections(baton, tiny, logs, sanitized, n=500):
    """They cost little, disturb nobody, and are cut in time."""
    with front(baton, tiny, logs, router_args=SLOW_LIMITS) as cluster:
        events(cluster, stream_body(20))
        before = cluster.router.rss_kb()
        started = time.monotonic()
        socks = open_many(cluster, n)
        assert len(events(cluster, stream_body(20))) == 20
        grown = cluster.router.rss_kb() - before
        took = time.monotonic() - started
        assert wait_closed(socks) == [b""] * n
        print(f"{n} silent connections: RSS grew {grown} kB, {grown / n:.1f} kB each; opened in {took:.1f} s")
        if not sanitized:
            assert grown < 4 * n and grown < printed_bound_kb(cluster)
        cluster.wait_for(lambda: metric(cluster, 'baton_http_cut_total{reason="slow"}') >= n, "they are counted")


def test_slow_senders(baton, tiny, logs):
    """A byte now and then does not keep a connection: neither in the head nor in the body."""
    with front(baton, tiny, logs, router_args=SLOW_LIMITS) as cluster:
        head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 100
        body = post(b'{"prompt": "' + b"x" * 100)[:-60]
        chunks = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        socks = {name: connect(cluster) for name in ("head", "body")}
        socks["head"].sendall(head)
        socks["body"].sendall(body)
        stop = threading.Event()

        def drip():
            while not stop.wait(0.2):
                for sock in list(socks.values()):
                    with contextlib.suppress(OSError):
                        sock.send(b"a")

        dripping = threading.Thread(target=drip)
        dripping.start()
        started = time.monotonic()
        try:
            for name, sock in socks.items():
                assert answer_of(sock) == (408, "request_timeout"), name
                print(f"{name}: cut after {time.monotonic() - started:.1f} s")
        finally:
            stop.set()
            dripping.join()
        sock = connect(cluster)
        sock.sendall(chunks)  # has time for the largest body, but is not forgotten
        assert cluster.get("/health")[0] == 200
        sock.close()


def test_large_bodies_and_heads(baton, tiny, logs, sanitized):
    """A body of 1 GB is refused at once by its length, and in chunks at the limit; 100,000 headers at 64 KiB."""
    with front(baton, tiny, logs) as cluster:
        events(cluster, stream_body(20))
        before = cluster.router.rss_kb()
        start = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\n"
        sock = connect(cluster)
        sock.sendall(start + b"Content-Length: 1073741824\r\n\r\n")
        assert answer_of(sock) == (413, "request_too_large")  # no byte of the body was sent
        for attack, expected in ((CHUNKS, (413, "request_too_large")), (HEADERS, (431, "headers_too_large"))):
            sock, n_sent, state = connect(cluster), 0, 1
            with contextlib.suppress(ConnectionError):
                sock.sendall(attack.hello)
                while n_sent < 1 << 30:
                    state, part = attack.make(state)
                    if not part:
                        break
                    sock.sendall(part)
                    n_sent += len(part)
            assert n_sent < 32 << 20, "it is cut long before the end"
            with contextlib.suppress(ConnectionError):
                assert answer_of(sock) == expected
        grown = cluster.router.rss_kb() - before
        print(f"RSS grew {grown} kB")
        if not sanitized:
            assert grown < 16 * 1024
        assert cluster.get("/health")[0] == 200


def test_held_memory_is_bounded(baton, tiny, logs, sanitized):
    """Unfinished bodies together stay within --receive-memory; the one that took longest is refused, the next is served."""
    args = ["--receive-memory", "8m", "--max-body", "1m"]
    with front(baton, tiny, logs, router_args=args) as cluster:
        events(cluster, stream_body(20))
        before = cluster.router.rss_kb()
        part = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n" + b"a" * 900000
        socks = open_many(cluster, 40, part)
        assert len(events(cluster, stream_body(20))) == 20, "a well-behaved client finds room"
        refused = metric(cluster, 'baton_http_cut_total{reason="over_memory"}')
        grown = cluster.router.rss_kb() - before
        print(f"{refused:.0f} of {len(socks)} refused, RSS grew {grown} kB")
        assert 30 <= refused < 40
        assert answer_of(socks[0]) == (503, "service_unavailable"), "the oldest"
        if not sanitized:
            assert grown < 16 * 1024
        for sock in socks:
            sock.close()


def test_connections_are_bounded(baton, tiny, logs):
    """Silent ones make room; where all are busy, the next is told so and the busy ones go on."""
    with front(baton, tiny, logs, ["--hold"], ["--max-connections", 16]) as cluster:
        time.sleep(1.1)  # a connection is displaced only when it is a second old
        silent = open_many(cluster, 16)
        time.sleep(1.2)
        assert cluster.get("/health")[0] == 200, "the oldest silent one gave way"
        assert silent[0].recv(1) == b""
        busy = []
        for _ in range(16):
            sock = connect(cluster)
            sock.sendall(post(stream_body()))
            busy.append(sock)
            time.sleep(0.01)
        for sock in silent:
            sock.close()
        sock = connect(cluster)
        sock.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        data = read_all(sock)
        assert data.startswith(b"HTTP/1.1 503 ") and b"Retry-After: 1\r\n" in data
        assert b"too many connections" in data
        busy.pop().close()
        cluster.wait_for(lambda: cluster.get("/health")[0] == 200, "a place is free again")
        for sock in busy:
            sock.setblocking(False)
            with pytest.raises(BlockingIOError):
                sock.recv(1)


def test_descriptors_are_reckoned(baton, tiny, tmp_path):
    """With few descriptors allowed the bound on connections is lower, and the log says so."""
    done = subprocess.Popen(["prlimit", "--nofile=600:600", baton, "router", "--model", tiny, "--port", "0", "--registry-listen",
                             "127.0.0.1:0"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert done.stdout.readline().startswith("ready: ")
    done.terminate()
    log = done.communicate(timeout=30)[1]
    assert "max-connections is 16384, but only 600 descriptors are allowed: 344 it is" in log


def test_pipelining_is_served_in_order(baton, tiny, logs):
    """Thousands of requests in one go: each is answered, in order, and a neighbour is not starved."""
    n = 3000
    with front(baton, tiny, logs) as cluster:
        sock = connect(cluster)
        sender = threading.Thread(target=sock.sendall, args=(b"".join(
            b"GET /v1/models/none-%d HTTP/1.1\r\nHost: x\r\n\r\n" % i for i in range(n)) +
            b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",))
        sender.start()
        assert len(events(cluster, stream_body(20))) == 20
        data = read_all(sock)
        sender.join()
        assert data.count(b"HTTP/1.1 404") == n and data.endswith(b'{"status":"ok"}\n')
        asked = re.findall(rb"none-(\d+)", data)
        assert [int(i) for i in asked] == list(range(n))


def ttfts(cluster, n):
    out = []
    for _ in range(n):
        sock = connect(cluster)
        started = time.monotonic()
        sock.sendall(post(stream_body(2)))
        read_until(sock, b"data: ")
        out.append(time.monotonic() - started)
        sock.close()
    return out


def p99(values):
    return statistics.quantiles(values, n=100)[98]


@pytest.mark.slow
def test_ten_thousand_silent_connections(baton, tiny, logs):
    """Within the printed bound, and a well-behaved client is served beside them (how soon: tests/bench/bench_abuse.py)."""
    with many_descriptors(10500), front(baton, tiny, logs) as cluster:
        ttfts(cluster, 50)
        before, quiet = cluster.router.rss_kb(), ttfts(cluster, 300)
        with Held(cluster, 200, b"GET / HTTP/1.1\r\nX: ", drip_s=0.05), Held(cluster, 9800):
            loaded = ttfts(cluster, 300)
            n_open = metric(cluster, "baton_http_connections")
            grown = cluster.router.rss_kb() - before
        print(f"{n_open:.0f} connections, RSS grew {grown} kB ({grown / n_open:.2f} kB each), bound "
              f"{printed_bound_kb(cluster):.0f} kB; TTFT p50 {statistics.median(quiet) * 1e3:.2f} -> "
              f"{statistics.median(loaded) * 1e3:.2f} ms, p99 {p99(quiet) * 1e3:.2f} -> {p99(loaded) * 1e3:.2f} ms")
        assert grown < printed_bound_kb(cluster)


# ---- HTTP/2 on the gRPC port ----

def grpc_channel(cluster, folder):
    if not cluster.https:
        return stubs.channel(cluster)
    ca = grpc.ssl_channel_credentials((folder / "certs" / "ca.pem").read_bytes())
    return grpc.secure_channel(cluster.grpc, ca, options=[("grpc.ssl_target_name_override", "localhost"),
                                                          ("grpc.use_local_subchannel_pool", 1)])


@pytest.mark.slow
@pytest.mark.parametrize("https", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("attack", HTTP2_FLOODS.values(), ids=HTTP2_FLOODS)
def test_http2_floods(baton, tiny, tmp_path, attack, https):
    """On the gRPC port: workers stay, memory stays, and each client of both doors is served (how soon: bench_abuse.py)."""
    args, context = [], None
    if https:
        subprocess.run([baton, "certs", tmp_path / "certs"], check=True, capture_output=True)
        args = ["--http-tls-cert", tmp_path / "certs" / "http.pem", "--http-tls-key", tmp_path / "certs" / "http-key.pem"]
        context = ssl.create_default_context(cafile=tmp_path / "certs" / "ca.pem")
    with front(baton, tiny, tmp_path, router_args=args, https=context) as cluster:
        ttfts(cluster, 50)
        quiet, before = ttfts(cluster, 200), cluster.router.rss_kb()
        held = []
        with grpc_channel(cluster, tmp_path) as channel, Flood(cluster, attack) as flood:
            stub = rpc.InferenceStub(channel)
            loaded, deadline = [], time.monotonic() + 2.5
            while time.monotonic() < deadline:
                loaded += ttfts(cluster, 5)
                answer = stub.Generate(pb.GenerateRequest(text="x", sampling=pb.SamplingParams(max_tokens=2)), timeout=10)
                assert sum(len(part.tokens) for part in answer) == 2
                held.append(cluster.router.rss_kb())
        print(f"{flood.n_connections} connections, {flood.n_cut} cut, {flood.n_bytes >> 10} KiB sent; RSS {before} -> "
              f"{max(held)} kB; TTFT p50 {statistics.median(quiet) * 1e3:.2f} -> {statistics.median(loaded) * 1e3:.2f} ms, p99 "
              f"{p99(quiet) * 1e3:.2f} -> {p99(loaded) * 1e3:.2f} ms")
        assert max(held) - before < 64 * 1024
        assert "silent too long" not in cluster.router.log_path.read_text()
        assert len(events(cluster, stream_body(20))) == 20
