"""A router with a worker that costs nothing behind it (tests/bench/mock_worker): what tests of the HTTP front stand on."""
import contextlib
import json
import socket

from cluster import Cluster, Process


@contextlib.contextmanager
def front(baton, model, logs, mock_args=("--by-index",), router_args=(), ready=True, https=None):
    with Cluster(baton, model, logs, prefill=0, decode=0, router_args=router_args, https=https) as cluster:
        cluster.mock = None
        if mock_args is not None:
            start_mock(cluster, *mock_args)
            if ready:
                cluster.wait_for(lambda: cluster.get("/ready")[0] == 200, "the router is ready")
        yield cluster


def start_mock(cluster, *args):
    path = cluster.baton.parent / "tests" / "bench" / "mock_worker"
    cluster.mock = Process("mock", [path, "--router", cluster.registry, "--model", cluster.model, *args],
                           cluster.log_dir, cluster.env)
    cluster.workers["mock"] = cluster.mock
    cluster.mock.wait_ready()


def connect(cluster, timeout=30, plain=False):
    sock = socket.create_connection((cluster.host, cluster.port), timeout=timeout)
    return cluster.https.wrap_socket(sock, server_hostname="localhost") if cluster.https and not plain else sock


def post(body, path="/v1/completions", version="1.1", extra=b""):
    data = json.dumps(body).encode() if not isinstance(body, bytes) else body
    return (f"POST {path} HTTP/{version}\r\nHost: x\r\nContent-Type: application/json\r\n".encode() + extra +
            f"Content-Length: {len(data)}\r\n\r\n".encode() + data)


def stream_body(max_tokens=8, **fields):
    return {"prompt": [5, 6, 7], "max_tokens": max_tokens, "stream": True, "ignore_eos": True, **fields}


def read_all(sock, timeout=30):
    """What comes until the server closes."""
    sock.settimeout(timeout)
    data = b""
    while chunk := sock.recv(65536):
        data += chunk
    return data


def read_until(sock, mark, data=b"", timeout=30):
    sock.settimeout(timeout)
    while mark not in data:
        chunk = sock.recv(65536)
        assert chunk, (mark, data[-300:])
        data += chunk
    return data


def events(cluster, body, path="/v1/completions", headers=None):
    """The parsed events of a stream that ends in order."""
    connection = cluster.http(timeout=60)
    connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json", **(headers or {})})
    answer = connection.getresponse()
    data = answer.read()
    connection.close()
    assert answer.status == 200, data
    assert answer.getheader("Content-Type") == "text/event-stream"
    parts = data.decode().split("\n\n")
    assert parts[-2:] == ["data: [DONE]", ""], data[-300:]
    return [json.loads(part.removeprefix("data: ")) for part in parts[:-2]]


def metric(cluster, name):
    return cluster.metrics()[name]


def cancelled(cluster):
    return metric(cluster, 'baton_requests_ended_total{reason="cancelled"}')


def live(cluster):
    return metric(cluster, "baton_requests_live")
