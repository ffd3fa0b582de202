"""The gRPC port among strangers: too large, too many, silent, not HTTP/2; keys and TLS."""
import hashlib
import socket
import subprocess
import time

import grpc
import pytest
import stubs
from abusers import CALL, CONTINUATION_FRAME, HEADERS_FRAME, HELLO, PREFACE, frame, given_up, literal
from front import front, live

pb, rpc = stubs.load("inference.proto")
MOCK = ["--by-index", "--interval-us", 1000]


def request(n=4, **fields):
    return pb.GenerateRequest(tokens=pb.TokenIds(ids=[5, 6, 7]), sampling=pb.SamplingParams(max_tokens=n), **fields)


def count(call):
    return sum(len(response.tokens) for response in call)


def code_of(call):
    with pytest.raises(grpc.RpcError) as caught:
        list(call)
    return caught.value.code()


def dial(cluster, timeout=20):
    host, port = cluster.grpc.rsplit(":", 1)
    return socket.create_connection((host, int(port)), timeout=timeout)


def is_closed(s):
    try:
        return s.recv(1) == b""
    except ConnectionResetError:
        return True


def test_large_and_compressed_messages(baton, tiny, logs):
    with front(baton, tiny, logs, MOCK, ["--max-body", "64k"]) as cluster:
        with stubs.channel(cluster) as channel:
            stub = rpc.InferenceStub(channel)
            large = pb.GenerateRequest(text="x" * 70000)
            assert code_of(stub.Generate(large)) == grpc.StatusCode.RESOURCE_EXHAUSTED
            many = pb.GenerateRequest(chat=pb.Chat(messages=[pb.ChatMessage()] * 30000))
            assert code_of(stub.Generate(many)) == grpc.StatusCode.INVALID_ARGUMENT
            assert count(stub.Generate(request())) == 4
        with stubs.channel(cluster) as channel:
            call = rpc.InferenceStub(channel).Generate(request(), metadata=[("x-padding", "p" * 20000)])
            assert code_of(call) in (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE)
        with stubs.channel(cluster, ("grpc.default_compression_algorithm", 2)) as channel:
            packed = pb.GenerateRequest(text="x" * 1000, sampling=pb.SamplingParams(max_tokens=4))
            assert code_of(rpc.InferenceStub(channel).Generate(packed)) == grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize("said", [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"x" * 40,
                                  b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n"], ids=["http", "tls", "almost"])
def test_not_http2_is_closed_at_once(baton, tiny, logs, said):
    with front(baton, tiny, logs, None) as cluster, dial(cluster) as s:
        s.sendall(said)
        assert is_closed(s)


def test_silent_connections_make_room(baton, tiny, logs):
    """Whoever says nothing costs gRPC nothing, however many there are; the oldest make room for who speaks."""
    with front(baton, tiny, logs, MOCK, ["--grpc-max-connections", 4]) as cluster:
        fds = cluster.router.n_fds()
        silent = [dial(cluster) for _ in range(700)]
        for s in silent[:100]:
            s.sendall(PREFACE[:1])
        with stubs.channel(cluster) as channel:
            assert count(rpc.InferenceStub(channel).Generate(request())) == 4
        cluster.wait_for(lambda: cluster.router.n_fds() <= fds + 530, "those past the bound are closed")
        assert is_closed(silent[0])
        for s in silent:
            s.close()
        cluster.wait_for(lambda: cluster.router.n_fds() <= fds + 4, "nothing is left of them")


def test_connections_are_bounded(baton, tiny, logs):
    with front(baton, tiny, logs, MOCK, ["--grpc-max-connections", 3]) as cluster:
        fds = cluster.router.n_fds()
        opened = []
        for _ in range(3):
            s = dial(cluster)
            s.sendall(HELLO)
            assert s.recv(9)  # gRPC's own settings: it is open
            opened.append(s)
        late = dial(cluster)
        late.sendall(HELLO)
        assert is_closed(late)
        opened.pop().close()
        with stubs.channel(cluster, ("grpc.min_reconnect_backoff_ms", 50), ("grpc.initial_reconnect_backoff_ms", 50)) as channel:
            assert count(rpc.InferenceStub(channel).Generate(request(), wait_for_ready=True)) == 4
        for s in opened:
            s.close()
        cluster.wait_for(lambda: cluster.router.n_fds() <= fds, "every descriptor came back")


def test_reset_flood_slows_only_itself(baton, tiny, logs, sanitized):
    """CVE-2023-44487: streams opened and reset as fast as the socket takes them."""
    with front(baton, tiny, logs, MOCK) as cluster, stubs.channel(cluster) as channel:
        stub = rpc.InferenceStub(channel)
        assert count(stub.Generate(request())) == 4
        before = cluster.router.rss_kb()
        floods = []
        for _ in range(4):
            s = dial(cluster)
            s.sendall(HELLO)
            s.setblocking(False)
            floods.append(s)
        rows = b"".join(given_up(i) for i in range(1, 40001, 2))
        sent = [0] * len(floods)
        for round in range(60):
            for i, s in enumerate(floods):
                try:
                    sent[i] += s.send(rows[sent[i]:])
                except BlockingIOError:
                    pass
            assert count(stub.Generate(request())) == 4  # others are served meanwhile
        assert cluster.metrics()["baton_grpc_slowed_total"] > 0
        if not sanitized:
            assert cluster.router.rss_kb() - before < 64 << 10
        for s in floods:
            s.close()
        cluster.wait_for(lambda: cluster.metrics()["baton_grpc_connections"] == 1, "their connections are gone")


def test_endless_header_block_is_cut(baton, tiny, logs):
    """CVE-2023-33953: CONTINUATION frames without an end."""
    with front(baton, tiny, logs, MOCK) as cluster, stubs.channel(cluster) as channel:
        with dial(cluster) as s:
            s.sendall(HELLO + frame(HEADERS_FRAME, 0, 1, CALL))
            with pytest.raises(OSError):
                for _ in range(10000):
                    s.sendall(frame(CONTINUATION_FRAME, 0, 1, literal(b"x-a", b"y" * 100) * 50))
                    time.sleep(0.001)
        assert count(rpc.InferenceStub(channel).Generate(request())) == 4


def test_broken_connections_leave_nothing(baton, tiny, logs):
    with front(baton, tiny, logs, MOCK) as cluster:
        fds = cluster.router.n_fds()
        for i in range(20):
            channel = stubs.channel(cluster)
            call = rpc.InferenceStub(channel).Generate(request(5000))
            next(call)
            if i % 2:
                call.cancel()
            channel.close()
        cluster.wait_for(lambda: live(cluster) == 0, "every request has ended")
        cluster.wait_for(lambda: cluster.router.n_fds() <= fds, "every descriptor came back")


def test_calls_without_a_message(baton, tiny, logs):
    """Half-closed without one: refused. Never closed: cancelled in time, nothing is held."""
    with front(baton, tiny, logs, MOCK) as cluster, stubs.channel(cluster) as channel:
        nothing = channel.stream_stream("/baton.v1.Inference/Generate")
        assert code_of(nothing(iter([]))) == grpc.StatusCode.INVALID_ARGUMENT


def test_api_keys(baton, tiny, logs):
    keys = logs / "keys"
    keys.write_text(f"shop:{hashlib.sha256(b'saltkey-1').hexdigest()}:salt\n")
    with front(baton, tiny, logs, MOCK, ["--api-key-file", keys]) as cluster, stubs.channel(cluster) as channel:
        stub = rpc.InferenceStub(channel)
        assert code_of(stub.Generate(request())) == grpc.StatusCode.UNAUTHENTICATED
        for shown in ["Bearer key-2", "key-1", "Bearer " + "k" * 4000]:
            call = stub.Generate(request(), metadata=[("authorization", shown)])
            assert code_of(call) == grpc.StatusCode.UNAUTHENTICATED
        with pytest.raises(grpc.RpcError) as caught:
            stub.ListModels(pb.ListModelsRequest())
        assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED
        assert count(stub.Generate(request(), metadata=[("authorization", "Bearer key-1")])) == 4
        # Probes and tools need none.
        health = channel.unary_unary("/grpc.health.v1.Health/Check")
        assert health(b"") == b"\x08\x01"
        assert "key-1" not in cluster.router.text()


def make_certificates(baton, folder):
    """An authority of its own and what it signed; answers the authority's certificate."""
    subprocess.run([baton, "certs", folder, "--host", "127.0.0.1"], check=True, capture_output=True)
    return (folder / "ca.pem").read_bytes()


def test_tls(baton, tiny, logs):
    first, second = make_certificates(baton, logs / "one"), make_certificates(baton, logs / "two")
    files = ["--http-tls-cert", logs / "one" / "http.pem", "--http-tls-key", logs / "one" / "http-key.pem"]
    with front(baton, tiny, logs, None, files) as cluster:
        fds = cluster.router.n_fds()

        def secure(roots):
            return grpc.secure_channel(cluster.grpc, grpc.ssl_channel_credentials(roots),
                                       options=[("grpc.use_local_subchannel_pool", 1)])

        cluster.start_worker("decode", "decode-0").wait_ready()
        cluster.start_worker("prefill", "prefill-0").wait_ready()
        with secure(first) as channel:
            health = channel.unary_unary("/grpc.health.v1.Health/Check")
            cluster.wait_for(lambda: health(b"") == b"\x08\x01", "it serves")
            stub = rpc.InferenceStub(channel)
            long = pb.GenerateRequest(text="y" * 600, sampling=pb.SamplingParams(max_tokens=300, logprobs=20, ignore_eos=True))
            assert count(stub.Generate(long)) == 300
            # A certificate read again is used for new connections; the old one goes on.
            for name in ["http.pem", "http-key.pem"]:
                (logs / "one" / name).write_bytes((logs / "two" / name).read_bytes())
            cluster.router.process.send_signal(1)
            cluster.wait_for(lambda: "certificate was read again" in cluster.router.text(), "it has reloaded")
            assert count(stub.Generate(long)) == 300
        with secure(second) as channel:
            assert count(rpc.InferenceStub(channel).Generate(long)) == 300
        with secure(first) as channel:
            assert code_of(rpc.InferenceStub(channel).Generate(long)) == grpc.StatusCode.UNAVAILABLE
        with stubs.channel(cluster) as channel:  # plain text on a TLS port: refused, never a hang
            begun = time.monotonic()
            assert code_of(rpc.InferenceStub(channel).Generate(long)) == grpc.StatusCode.UNAVAILABLE
            assert time.monotonic() - begun < 15
        cluster.wait_for(lambda: cluster.router.n_fds() <= fds + 2, "every descriptor came back (2: the workers')")


def test_ports(baton, tiny, logs):
    def run(*args):
        done = subprocess.run([baton, "router", "--model", tiny, "--registry-listen", "127.0.0.1:0", *args], timeout=30,
                              capture_output=True, text=True)
        return done.returncode, done.stderr

    code, said = run("--port", "65535")
    assert code == 2 and "--grpc-port" in said
    with front(baton, tiny, logs, None) as cluster:
        code, said = run("--port", "0", "--grpc-port", cluster.grpc.rsplit(":", 1)[1])
        assert code == 2 and "cannot listen for gRPC" in said
    code, said = run("--port", "0", "--host", "0.0.0.0")
    assert code == 2 and "--insecure" in said
