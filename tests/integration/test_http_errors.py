"""Bad input over HTTP and on the command line: a clear error, the right code, and nothing lost."""
import http.client
import json
import socket
import subprocess

import pytest
from front import connect, events, front, live, post, read_all, read_until, start_mock, stream_body


@pytest.fixture(scope="module")
def server(baton, tiny, tmp_path_factory):
    with front(baton, tiny, tmp_path_factory.mktemp("logs")) as cluster:
        yield cluster


# Request head, and a word of the answer. Each is refused with 400 and the connection is closed, so that what follows is
# not read as a second request.
SMUGGLED = b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n"
STRICT = {
    "two lengths": (b"Host: x\r\nContent-Length: 3\r\nContent-Length: 5\r\n\r\nabcde", b"Content-Length"),
    "two equal lengths": (b"Host: x\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\nabc", b"Content-Length"),
    "length +3": (b"Host: x\r\nContent-Length: +3\r\n\r\nabc", b"Content-Length"),
    "length -1": (b"Host: x\r\nContent-Length: -1\r\n\r\nabc", b""),
    "length and encoding": (b"Host: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", b""),
    "encoding xchunked": (b"Host: x\r\nTransfer-Encoding: xchunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", b"xchunked"),
    "encoding gzip, chunked": (b"Host: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", b"gzip"),
    "space before the colon": (b"Host: x\r\nContent-Length : 3\r\n\r\nabc", b"Content-Length "),
    "no host": (b"Content-Length: 0\r\n\r\n", b"Host"),
    "two hosts": (b"Host: x\r\nHost: y\r\nContent-Length: 0\r\n\r\n", b"Host"),
}


@pytest.mark.parametrize("name", STRICT)
def test_odd_framing_is_refused(server, name):
    head, word = STRICT[name]
    sock = connect(server)
    sock.sendall(b"POST /v1/completions HTTP/1.1\r\n" + head + SMUGGLED)
    data = read_all(sock)
    assert data.startswith(b"HTTP/1.1 400"), data
    assert data.count(b"HTTP/1.1 ") == 1, data
    assert word in data


def test_bad_chunks_are_refused(server):
    for size in (b"-1", b"FFFFFFFFFFFFFFFF", b"xyz"):
        sock = connect(server)
        sock.sendall(b"POST /tokenize HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + size +
                     b"\r\nabc\r\n0\r\n\r\n")
        data = read_all(sock)
        assert not data.startswith(b"HTTP/1.1 200"), (size, data)


def test_chunked_body_is_taken(server):
    body = json.dumps(stream_body(3)).encode()
    sock = connect(server)
    sock.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
    for i in range(0, len(body), 7):
        part = body[i:i + 7]
        sock.sendall(f"{len(part):x}\r\n".encode() + part + b"\r\n")
    sock.sendall(b"0\r\n\r\n")
    data = read_until(sock, b"\r\n0\r\n\r\n")
    assert data.startswith(b"HTTP/1.1 200") and data.count(b"data: {") == 3
    sock.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
    assert read_until(sock, b'{"status":"ok"}').startswith(b"HTTP/1.1 200")


def test_expect_continue(server):
    body = json.dumps(stream_body(2)).encode()
    sock = connect(server)
    sock.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n" +
                 f"Content-Length: {len(body)}\r\n\r\n".encode())
    read_until(sock, b"100 Continue\r\n\r\n")
    sock.sendall(body)
    assert read_until(sock, b"\r\n0\r\n\r\n").startswith(b"HTTP/1.1 200")


def test_limits(server):
    """Each refusal is an error object and arrives although the client has not stopped sending."""
    def refused_with(code, word, *parts):
        sock = connect(server)
        try:
            for part in parts:
                sock.sendall(part)
        except ConnectionError:
            pass
        head, body = read_all(sock).split(b"\r\n\r\n", 1)
        assert head.startswith(f"HTTP/1.1 {code} ".encode()) and b"application/json" in head, head
        error = json.loads(body)["error"]
        assert error["code"] == word and error["message"], error

    post_head = b"POST /tokenize HTTP/1.1\r\nHost: x\r\n"
    refused_with(431, "headers_too_large", b"GET /health HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 70000 + b"\r\n\r\n")
    refused_with(431, "headers_too_large", b"GET /health HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 200 + b"\r\n")
    refused_with(413, "request_too_large", post_head + b"Content-Length: 5000000\r\n\r\nx")
    refused_with(413, "request_too_large", post_head + b"Transfer-Encoding: chunked\r\n\r\n",
                 *[b"8000\r\n" + b"a" * 32768 + b"\r\n"] * 140)
    refused_with(413, "request_too_large", post_head + b"Transfer-Encoding: chunked\r\n\r\n5000000\r\n")
    assert server.get("/health")[0] == 200


def test_http2_preface(server):
    sock = connect(server)
    sock.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
    assert not read_all(sock).startswith(b"HTTP/1.1 200")


def error_of(answer):
    status, headers, body = answer
    assert headers["Content-Type"] == "application/json", headers
    return status, json.loads(body)["error"]


def test_pages_and_methods(server):
    status, error = error_of(server.get("/v1/embeddings"))
    assert status == 404 and error["code"] == "not_found"
    for method in ("GET", "PUT", "DELETE", "OPTIONS"):
        status, headers, body = server.request(method, "/v1/completions")
        assert status == 405 and headers["Allow"] == "POST" and json.loads(body)["error"]["message"], (method, status)
    assert server.request("POST", "/metrics", {})[0] == 405
    sock = connect(server)
    sock.sendall(b"HEAD /health HTTP/1.1\r\nHost: x\r\n\r\nGET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    head, body = read_all(sock).split(b"HTTP/1.1 ")[1:]
    assert head.startswith(b"200") and head.endswith(b"\r\n\r\n"), "a HEAD has no body"
    assert body.endswith(b'{"status":"ok"}\n')


BODIES = {
    "not JSON": (b"{", 400, None, "not JSON"),
    "empty": (b"", 400, None, "not JSON"),
    "invalid UTF-8": (b'{"prompt":"\xff\xfe"}', 400, None, "UTF-8"),
    "a list": (b"[]", 400, None, "must be a JSON object"),
    "wrong type": ({"prompt": "x", "max_tokens": "9"}, 400, "max_tokens", "an integer"),
    "out of range": ({"prompt": "x", "temperature": 3}, 400, "temperature", "at most 2"),
    "id out of range": ({"prompt": [99999]}, 400, "prompt", "from 0 to 511"),
    "empty prompt": ({"prompt": []}, 400, "prompt", "at least one token"),
    "unsupported": ({"prompt": "x", "suffix": "y"}, 400, "suffix", "not supported"),
    "unknown model": ({"prompt": "x", "model": "nobody"}, 404, "model", "nobody"),
    "too long": ({"prompt": [5] * 9000, "max_tokens": 1}, 400, "prompt", "maximum context length is 8192 tokens"),
    "too many to generate": ({"prompt": "x", "max_tokens": 9000}, 400, "prompt", "maximum context length"),
}


@pytest.mark.parametrize("name", BODIES)
def test_bad_bodies(server, name):
    body, code, param, words = BODIES[name]
    sock = connect(server)
    sock.sendall(post(body))
    data = read_until(sock, b"}}")
    assert data.startswith(f"HTTP/1.1 {code}".encode()), data
    error = json.loads(data.split(b"\r\n\r\n", 1)[1])["error"]
    assert error["param"] == param and words in error["message"], error
    sock.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
    assert read_until(sock, b'{"status":"ok"}'), "the connection goes on"
    if "maximum context" in words:
        assert error["code"] == "context_length_exceeded"


def test_no_template(server, baton, tiny):
    """A model without a chat template says so; one with it serves."""
    status, error = error_of(server.request("POST", "/v1/chat/completions",
                                            {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}))
    assert status == 200 or (status == 400 and "chat template" in error["message"]), (status, error)


def test_debug_pages(server):
    status, headers, _ = server.request("POST", "/v1/completions", {"prompt": "x", "max_tokens": 3})
    assert status == 200
    identity = headers["X-Request-Id"]
    for text in (identity, "cmpl-" + identity):
        (record,) = server.json(f"/debug/requests?id={text}")["requests"]
        assert record["id"] == identity and record["state"] == "ended" and record["generated_tokens"] == 3
        assert set(record["verdict"]) >= {"phase", "stage", "advice", "text"}
        assert record["placement"] == "split" and record["decode_worker"] == "mock-decode"
    assert server.get("/debug/requests?id=zzz")[0] == 400
    assert server.get("/debug/requests?id=ffffffffffffffff")[0] == 404
    workers = {w["name"]: w for w in server.json("/debug/workers")["workers"]}
    assert {w["role"] for w in workers.values()} == {"prefill", "decode"}
    assert all(w["state"] == "up" for w in workers.values())
    pages = {k: v for k, v in server.metrics().items() if k.startswith("baton_kv_pages{")}
    assert sum(pages.values()) == 2 * (1 << 20)


def test_timings_on_request(server):
    *_, last = events(server, stream_body(3), headers={"X-Baton-Timings": "1"})
    assert last["choices"] == [] and last["baton"]["generated_tokens"] == 3
    assert last["baton"]["verdict"]["phase"]
    status, _, body = server.request("POST", "/v1/completions", {"prompt": "x", "max_tokens": 2},
                                     headers={"X-Baton-Timings": "1"})
    assert json.loads(body)["baton"]["state"] == "ended"


def test_tokenize(server):
    answer = json.loads(server.request("POST", "/tokenize", {"prompt": "hello world"})[2])
    assert answer["count"] == len(answer["tokens"]) > 0 and answer["max_model_len"] == 8192
    text = json.loads(server.request("POST", "/detokenize", {"tokens": answer["tokens"]})[2])
    assert text["prompt"] == "hello world"
    assert json.loads(server.request("POST", "/tokenize", {"prompt": ""})[2])["tokens"] == []


def test_no_worker(baton, tiny, logs):
    with front(baton, tiny, logs, None) as cluster:
        assert cluster.get("/ready")[0] == 503 and cluster.get("/health")[0] == 200
        status, headers, body = cluster.request("POST", "/v1/completions", {"prompt": "x"})
        assert status == 503 and int(headers["Retry-After"]) >= 1, (status, headers)
        assert json.loads(body)["error"]["code"] == "service_unavailable"


def test_full(baton, tiny, logs):
    """Past the bound: 429 at once, with Retry-After; waiting too long: 504."""
    with front(baton, tiny, logs, ["--full"], ["--max-requests", 2, "--queue-ms", 1500]) as cluster:
        socks = [connect(cluster) for _ in range(2)]
        for sock in socks:
            sock.sendall(post(stream_body()))
        cluster.wait_for(lambda: live(cluster) == 2, "two wait")
        status, headers, body = cluster.request("POST", "/v1/completions", stream_body())
        assert status == 429 and int(headers["Retry-After"]) >= 1, (status, headers, body)
        assert json.loads(body)["error"]["code"] == "rate_limit_exceeded"
        for sock in socks:
            assert read_until(sock, b"}}").startswith(b"HTTP/1.1 504")


@pytest.mark.parametrize("stream", [True, False])
def test_failure_after_the_first_byte(baton, tiny, logs, stream):
    """An error event, no [DONE], and the connection is cut inside of the body: it does not look whole."""
    with front(baton, tiny, logs, ["--by-index", "--stop-after", 6], ["--deadline-ms", 1500]) as cluster:
        connection = http.client.HTTPConnection(cluster.host, cluster.port, timeout=30)
        connection.request("POST", "/v1/completions", json.dumps({**stream_body(50), "stream": stream}))
        answer = connection.getresponse()
        if not stream:
            assert answer.status == 504 and json.loads(answer.read())["error"]["code"] == "deadline_exceeded"
            return
        with pytest.raises(http.client.IncompleteRead) as cut:
            answer.read()
        data = cut.value.partial
        assert b"[DONE]" not in data
        event = data.split(b"\n\n")[-2]
        assert event.startswith(b"event: error\ndata: "), event
        assert json.loads(event.split(b"data: ", 1)[1])["error"]["code"] == "deadline_exceeded"


def refused(*args):
    done = subprocess.run([str(a) for a in args], capture_output=True, text=True, timeout=30)
    assert done.returncode == 2, (done.returncode, done.stderr)
    assert done.stdout == ""
    # An option is refused before the log has a format; what stands behind it in the log's.
    logged = [json.loads(x) for x in done.stderr.splitlines() if x.startswith("{")]
    (line,) = [x for x in done.stderr.splitlines() if x.startswith("baton router: ")] + \
              [x["message"] for x in logged if x["level"] == "error"]
    return line


def test_command_line(server, baton, tiny, tmp_path):
    base = [baton, "router", "--model", tiny, "--port", 0, "--registry-listen", "127.0.0.1:0"]
    assert f":{server.port}" in refused(*base[:5], server.port, *base[6:])
    assert server.registry in refused(*base[:-1], server.registry)
    assert "--insecure" in refused(*base[:-1], "0.0.0.0:0")
    assert "nothing-there" in refused(baton, "router", "--model", "/nothing-there.gguf", *base[4:])
    assert "disaggregate" in refused(*base, "--disaggregate", "perhaps")
    assert "max-queued" in refused(*base, "--max-queued", 0)
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(tiny.read_bytes()[:5000])
    assert "cut.gguf" in refused(baton, "router", "--model", cut, *base[4:])
    assert "model" in refused(baton, "router")
