"""The HTTP front under clients that leave, flood, pipeline, do not read, or come all at once."""
import http.client
import json
import random
import resource
import select
import socket
import struct
import threading
import time

import pytest
from front import cancelled, connect, events, front, live, metric, post, read_all, read_until, stream_body


@pytest.mark.parametrize("state", ["queued", "prefill", "stream"])
@pytest.mark.parametrize("how", ["close", "reset", "half-close"])
def test_client_gone_is_seen(baton, tiny, logs, state, how):
    """In every state, before any further token is sent; a half-close counts as leaving."""
    mock = {"queued": ["--full"], "prefill": ["--hold"], "stream": ["--by-index"]}[state]
    with front(baton, tiny, logs, mock) as cluster:
        sock = connect(cluster)
        sock.sendall(post(stream_body(8000)))
        if state == "stream":
            read_until(sock, b"data: ")
        else:
            cluster.wait_for(lambda: live(cluster) == 1, "the request is in the router")
        if how == "reset":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        started = time.monotonic()
        if how == "half-close":
            sock.shutdown(socket.SHUT_WR)
        else:
            sock.close()
        cluster.wait_for(lambda: cancelled(cluster) == 1, "the client's leaving is seen")
        print(f"seen within {(time.monotonic() - started) * 1e3:.1f} ms, one look at /metrics included")
        assert live(cluster) == 0
        if state != "stream":
            assert metric(cluster, "baton_generated_tokens_total") == 0
            assert metric(cluster, "baton_sse_sends_total") == 0
        sock.close()


def test_pipelined_while_queued(baton, tiny, logs):
    """Bytes behind a request that waits neither end the process nor get lost."""
    with front(baton, tiny, logs, ["--full"], ["--queue-ms", 700]) as cluster:
        sock = connect(cluster)
        sock.sendall(post(stream_body()))
        cluster.wait_for(lambda: live(cluster) == 1, "the request waits")
        sock.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        data = read_all(sock)
        assert data.count(b"HTTP/1.1 ") == 2, data
        assert data.startswith(b"HTTP/1.1 504") or data.startswith(b"HTTP/1.1 503"), data
        assert b'{"status":"ok"}' in data
        assert cluster.get("/health")[0] == 200


def test_pipelined_behind_a_stream(baton, tiny, logs):
    with front(baton, tiny, logs) as cluster:
        sock = connect(cluster)
        sock.sendall(post(stream_body(5)) + post(stream_body(3)) +
                     b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        data = read_all(sock)
        assert data.count(b"HTTP/1.1 200") == 3
        assert data.count(b"data: [DONE]") == 2
        assert data.count(b'"text"') == 8
        assert data.endswith(b'{"status":"ok"}\n')


def test_large_body_after_a_stream(baton, tiny, logs):
    """What bounds a client while it is answered does not bound its next request."""
    with front(baton, tiny, logs, ["--by-index", "--max-context", 200000]) as cluster:
        connection = http.client.HTTPConnection(cluster.host, cluster.port, timeout=60)
        for prompt in ([5, 6], [5] * 100000, [7]):
            connection.request("POST", "/v1/completions", json.dumps({**stream_body(4), "prompt": prompt}))
            answer = connection.getresponse()
            assert answer.status == 200
            assert answer.read().endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize("state", ["queued", "stream"])
def test_flood_is_bounded(baton, tiny, logs, state, sanitized):
    """A client that sends without end while it is answered is cut; its neighbour notices nothing."""
    with front(baton, tiny, logs, ["--by-index"] if state == "stream" else ["--full"]) as cluster:
        cluster.get("/health")
        before = cluster.router.rss_kb()
        neighbour = []
        if state == "stream":
            thread = threading.Thread(target=lambda: neighbour.extend(events(cluster, stream_body(50))))
            thread.start()
        sock = connect(cluster)
        sock.sendall(post(stream_body(8000)))
        if state == "stream":
            read_until(sock, b"data: ")
        n_sent, cut = 0, False
        sock.settimeout(10)
        try:
            while n_sent < 200 << 20:
                n_sent += sock.send(b"A" * 65536)
        except (ConnectionError, TimeoutError) as error:
            cut = isinstance(error, ConnectionError)
        assert cut, f"{n_sent} bytes were taken"
        cluster.wait_for(lambda: cancelled(cluster) == 1, "the request has ended")
        grown = cluster.router.rss_kb() - before
        print(f"cut after {n_sent >> 10} KiB, RSS grew {grown} KiB")
        if not sanitized:
            assert grown < 4096
        if state == "stream":
            thread.join()
            assert len(neighbour) == 50


def slow_client(cluster, max_tokens):
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
    sock.connect((cluster.host, cluster.port))
    sock.sendall(post(stream_body(max_tokens, return_token_ids=True)))
    return sock


FAST = ["--by-index", "--interval-us", 200, "--max-context", 100000]


def test_client_that_never_reads(baton, tiny, logs, sanitized):
    """Its stream stops at a bound and is cut after a limit; nobody else notices."""
    with front(baton, tiny, logs, FAST, ["--client-stuck-ms", 1500]) as cluster:
        events(cluster, stream_body(50))
        before = cluster.router.rss_kb()
        socks = [slow_client(cluster, 90000) for _ in range(4)]
        cluster.wait_for(lambda: metric(cluster, "baton_streams_blocked") == 4, "all four are blocked")
        held = []
        watch = threading.Thread(target=lambda: cluster.wait_for(
            lambda: held.append(cluster.router.rss_kb()) or metric(cluster, "baton_sse_stuck_total") == 4, "cut"))
        watch.start()
        assert len(events(cluster, stream_body(200))) == 200
        cluster.wait_for(lambda: metric(cluster, "baton_sse_stuck_total") == 4, "all four are cut")
        watch.join()
        grown = max(held) - before
        cluster.wait_for(lambda: live(cluster) == 0, "their requests have ended")
        print(f"RSS grew {grown} KiB at most for four")
        if not sanitized:
            assert grown < 4 * 1024
        for sock in socks:
            sock.close()


def test_slow_client_gets_everything(baton, tiny, logs):
    """A client that pauses long enough for its stream to be held back reads every token, in order, when it goes on."""
    n = 12000
    with front(baton, tiny, logs, FAST) as cluster:
        sock = slow_client(cluster, n)
        cluster.wait_for(lambda: metric(cluster, "baton_generated_tokens_total") >= n, "all is generated")
        assert metric(cluster, "baton_streams_blocked") == 1
        data = read_until(sock, b"0\r\n\r\n")
        ids = [json.loads(line[6:])["choices"][0]["token_ids"][0] for line in data.split(b"\n")
               if line.startswith(b"data: {")]
        assert ids == [100 + i % 400 for i in range(n)]
        assert b"data: [DONE]" in data
        sock.close()


def test_a_thousand_connect_at_once(baton, tiny, logs):
    """None waits for a SYN retry, which takes a second."""
    with front(baton, tiny, logs) as cluster:
        cluster.get("/health")
        poll = select.poll()
        socks = {}
        started = time.monotonic()
        for _ in range(1000):
            sock = socket.socket()
            sock.setblocking(False)
            sock.connect_ex((cluster.host, cluster.port))
            socks[sock.fileno()] = sock
            poll.register(sock, select.POLLOUT)
        open_fds = set(socks)
        while open_fds:
            for fd, _ in poll.poll(5000):
                open_fds.discard(fd)
                poll.unregister(fd)
        took = time.monotonic() - started
        print(f"1,000 connected in {took * 1e3:.0f} ms")
        for sock in socks.values():
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
            info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 8)
            assert info[2] == 0, "a SYN was sent again"  # tcpi_retransmits
            sock.setblocking(True)
            sock.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        for sock in socks.values():
            assert read_until(sock, b'{"status":"ok"}').startswith(b"HTTP/1.1 200")
            sock.close()


def test_out_of_descriptors(baton, tiny, logs):
    """Connections past the limit wait without spinning, and are served when others end."""
    with front(baton, tiny, logs) as cluster:
        limit = cluster.router.n_fds() + 16
        resource.prlimit(cluster.router.pid, resource.RLIMIT_NOFILE, (limit, limit))
        socks = [connect(cluster) for _ in range(48)]
        for sock in socks:
            sock.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        cluster.wait_for(lambda: cluster.router.n_fds() == limit, "every descriptor is in use")
        cluster.wait_for(lambda: "cannot accept" in cluster.router.text(), "the router waits")
        for sock in socks:  # each that is closed makes room for one that waits
            assert read_until(sock, b'{"status":"ok"}').startswith(b"HTTP/1.1 200")
            sock.close()
        assert cluster.router.text().count("cannot accept") < 100
        assert cluster.get("/health")[0] == 200


def test_nothing_is_left_of_cut_streams(baton, tiny, logs, sanitized, long):
    """Streams cut at a random byte, by FIN or RST, queued and streaming: no request, descriptor or memory stays."""
    rng = random.Random(4)
    n = 4000 if long else 200 if sanitized else 800
    with front(baton, tiny, logs, ["--by-index", "--interval-us", 2000]) as cluster:
        def one():
            sock = connect(cluster)
            sock.sendall(post(stream_body(40), extra=b"Connection: close\r\n"))
            left = rng.randrange(12000)
            while left > 0 and rng.random() < 0.8:
                chunk = sock.recv(min(left, 2048))
                if not chunk:
                    break
                left -= len(chunk)
            if rng.random() < 0.5:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.close()

        def wave(count):
            threads = [threading.Thread(target=lambda: [one() for _ in range(count // 8)]) for _ in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            cluster.wait_for(lambda: live(cluster) == 0, "every request has ended")

        wave(n // 2)
        fds, rss = cluster.router.n_fds(), cluster.router.rss_kb()
        wave(n // 2)
        cluster.wait_for(lambda: cluster.router.n_fds() <= fds, "every descriptor is closed")
        grown = cluster.router.rss_kb() - rss
        print(f"RSS grew {grown} KiB over {n // 2} streams")
        if not sanitized:
            assert grown < 1024
        assert cluster.router.stop() == 0, cluster.router.text()


def test_keep_alive_and_framing(baton, tiny, logs):
    """Every chunk is whole and the connection serves the next request."""
    with front(baton, tiny, logs, ["--by-index", "--interval-us", 500]) as cluster:
        sock = connect(cluster)
        for _ in range(3):
            sock.sendall(post(stream_body(30)))
            data = read_until(sock, b"\r\n0\r\n\r\n")
            head, body = data.split(b"\r\n\r\n", 1)
            assert b"Transfer-Encoding: chunked" in head and b"X-Request-Id: " in head
            text = b""
            while True:
                size, body = body.split(b"\r\n", 1)
                size = int(size, 16)
                text, end, body = text + body[:size], body[size:size + 2], body[size + 2:]
                assert end == b"\r\n"
                if not size:
                    break
            assert body == b"" and text.endswith(b"data: [DONE]\n\n")
            assert text.count(b"data: {") == 30


def test_http_1_0(baton, tiny, logs):
    """No chunks, and the end of the connection ends the answer."""
    with front(baton, tiny, logs) as cluster:
        sock = connect(cluster)
        sock.sendall(post(stream_body(5), version="1.0"))
        data = read_all(sock)
        head, body = data.split(b"\r\n\r\n", 1)
        assert b"chunked" not in head and b"Connection: close" in head
        assert body.startswith(b"data: {") and body.endswith(b"data: [DONE]\n\n")


def test_drain(baton, tiny, logs):
    """SIGTERM: streams finish, new work is refused, exit 0. A second one ends at once."""
    with front(baton, tiny, logs, ["--by-index", "--interval-us", 20000]) as cluster:
        sock = connect(cluster)
        sock.sendall(post(stream_body(60)))
        data = read_until(sock, b"data: ")
        cluster.router.process.terminate()
        cluster.wait_for(lambda: cluster.get("/ready")[0] == 503, "the router drains")
        status, headers, body = cluster.request("POST", "/v1/completions", stream_body())
        assert status == 503 and "Retry-After" in headers, (status, headers, body)
        data += read_all(sock)
        assert data.count(b"data: {") == 60 and data.endswith(b"0\r\n\r\n")
        assert cluster.router.process.wait(30) == 0
    with front(baton, tiny, logs, ["--hold"]) as cluster:
        sock = connect(cluster)
        sock.sendall(post(stream_body(60)))
        cluster.wait_for(lambda: live(cluster) == 1, "the request is in the router")
        cluster.router.process.terminate()
        cluster.wait_for(lambda: cluster.get("/ready")[0] == 503, "the router drains")
        cluster.router.process.terminate()
        assert cluster.router.process.wait(10) != 0
        assert sock.recv(10) == b""
