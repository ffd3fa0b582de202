"""Who may ask what over HTTP: API keys, ids, CORS, HTTPS, keep-alive comments; all read again while serving."""
import contextlib
import json
import os
import re
import signal
import ssl
import subprocess
import threading

import pytest
from conftest import ROOT
from front import connect, events, front, live, post, read_all, read_until, stream_body


@pytest.fixture(scope="module")
def server(baton, tiny, tmp_path_factory):
    with front(baton, tiny, tmp_path_factory.mktemp("logs")) as cluster:
        yield cluster


# ---- keys ----

def add_key(baton, path, name, *args):
    done = subprocess.run([baton, "keys", "add", name, "--file", path, *args], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def keyed(baton, tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("keyed")
    path = folder / "keys"
    keys = {"alice": add_key(baton, path, "alice"), "ops": add_key(baton, path, "ops", "--operator")}
    assert keys["alice"] != keys["ops"] and all(k not in path.read_text() for k in keys.values())
    with front(baton, tiny, folder, router_args=["--api-key-file", path]) as cluster:
        cluster.keys, cluster.key_path = keys, path
        yield cluster


def routes():
    """The door's own table, as it stands in its source."""
    text = (ROOT / "router" / "http_door.c").read_text()
    rows = re.findall(r'\{BT_HTTP_(\w+), "([^"]+)", \w+, BT_API_(\w+)\}', text)
    assert len(rows) >= 13 and len(rows) == text.count("{BT_HTTP_"), rows
    return rows


STRANGER = {"X-Forwarded-For": "203.0.113.9"}  # came through a proxy, so it is not from this machine
OPEN = {"/", "/health", "/ready"}


def test_every_page_asks_for_its_right(keyed):
    for method, path, right in routes():
        assert (right == "OPEN") == (path in OPEN), path
        path += "x" if path != "/" and path.endswith("/") else ""

        def ask(headers):
            return keyed.request(method, path, {} if method == "POST" else None, headers)

        status, headers, body = ask(STRANGER)
        if right == "OPEN":
            assert status == 200, path
            continue
        assert status == 401 and headers["WWW-Authenticate"] == "Bearer", (path, status)
        error = json.loads(body)["error"]
        assert error["code"] == "invalid_api_key" and error["type"] == "invalid_request_error", path
        assert ask({**STRANGER, "Authorization": "Bearer no"})[0] == 401, path
        alice = ask({**STRANGER, "Authorization": f"Bearer {keyed.keys['alice']}"})[0]
        ops = ask({**STRANGER, "Authorization": f"Bearer {keyed.keys['ops']}"})[0]
        local = ask({})[0]
        assert ops not in (401, 403), path
        if right == "OPERATOR":
            assert alice == 403 and local not in (401, 403), path
        else:
            assert alice not in (401, 403) and local == 401, path


def test_openai_client_with_a_wrong_key(keyed):
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url=keyed.url + "/v1", api_key="wrong", max_retries=0)
    with pytest.raises(openai.AuthenticationError) as refusal:
        client.completions.create(model="", prompt="x")
    assert refusal.value.code == "invalid_api_key"
    good = openai.OpenAI(base_url=keyed.url + "/v1", api_key=keyed.keys["alice"])
    assert good.models.list().data
    assert good.completions.create(model=good.models.list().data[0].id, prompt="x", max_tokens=2).choices


def test_refused_before_the_body(keyed):
    """A stranger's body is not read."""
    sock = connect(keyed)
    sock.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 4000000\r\n\r\n")
    assert read_all(sock).startswith(b"HTTP/1.1 401")


def test_records_say_who_asked(keyed):
    """The key's name and the client's id, in the record and in the log line; the key nowhere."""
    status, headers, _ = keyed.request("POST", "/v1/completions", {"prompt": "x", "max_tokens": 1},
                                       {"Authorization": f"Bearer {keyed.keys['alice']}", "X-Request-Id": "run-7"})
    assert status == 200
    ours = headers["X-Baton-Request-Id"]
    (record,) = keyed.json(f"/debug/requests?id={ours}")["requests"]
    assert record["key"] == "alice" and record["client_id"] == "run-7"

    def line():
        return next((x for x in keyed.router.log_path.read_text().splitlines() if ours in x), None)

    keyed.wait_for(line, "the request is logged")
    assert json.loads(line())["key"] == "alice" and json.loads(line())["client_id"] == "run-7"
    assert not any(key in keyed.router.log_path.read_text() for key in keyed.keys.values())


def test_keys_are_read_again(keyed, baton):
    def alice():
        return keyed.request("GET", "/v1/models", headers={"Authorization": f"Bearer {keyed.keys['alice']}"})[0]

    good = keyed.key_path.read_text()
    assert alice() == 200
    keyed.key_path.write_text(good + "broken\n")
    keyed.router.process.send_signal(signal.SIGHUP)
    keyed.wait_for(lambda: f"{keyed.key_path}:3: " in keyed.router.text(), "the router says file and line")
    assert alice() == 200, "the old keys hold"
    keyed.key_path.write_text("".join(line for line in good.splitlines(True) if not line.startswith("alice")))
    carol = add_key(baton, keyed.key_path, "carol")
    keyed.router.process.send_signal(signal.SIGHUP)
    keyed.wait_for(lambda: alice() == 401, "the key is gone")
    assert keyed.request("GET", "/v1/models", headers={"Authorization": f"Bearer {carol}"})[0] == 200
    keyed.key_path.write_text(good)
    keyed.router.process.send_signal(signal.SIGHUP)
    keyed.wait_for(lambda: alice() == 200, "it is back")
    assert not any(key in keyed.router.text() for key in keyed.keys.values()), "no key in the log"


def test_bad_key_files_refuse_the_start(baton, tiny, tmp_path):
    path = tmp_path / "keys"
    for text, words in (("", "no key"), ("a:b\n", "keys:1: "), (None, "No such file")):
        if text is None:
            path.unlink()
        else:
            path.write_text(text)
        done = subprocess.run([baton, "router", "--model", tiny, "--port", "0", "--registry-listen", "127.0.0.1:0",
                               "--api-key-file", path], capture_output=True, text=True, timeout=30)
        assert done.returncode == 2 and words in done.stderr, done.stderr


# ---- ids ----

@pytest.mark.parametrize("path", ["/health", "/nothing", "/v1/completions"])
def test_ids_come_back(server, path):
    method, body = ("POST", {"prompt": "x", "max_tokens": 1}) if path.startswith("/v1") else ("GET", None)
    _, headers, _ = server.request(method, path, body)
    assert re.fullmatch("[0-9a-f]{16}", headers["X-Request-Id"]) and "X-Baton-Request-Id" not in headers
    _, headers, _ = server.request(method, path, body, {"X-Request-Id": "my/id-7"})
    assert headers["X-Request-Id"] == "my/id-7" and re.fullmatch("[0-9a-f]{16}", headers["X-Baton-Request-Id"])
    for odd in ("a b", "x" * 65, "\u00e4"):
        _, headers, _ = server.request(method, path, body, {"X-Request-Id": odd.encode("latin-1")})
        assert re.fullmatch("[0-9a-f]{16}", headers["X-Request-Id"]), odd


def test_ids_of_streams_and_of_refusals(server):
    sock = connect(server)
    sock.sendall(post(stream_body(2), extra=b"X-Request-Id: mine\r\n"))
    head = read_until(sock, b"\r\n0\r\n\r\n").split(b"\r\n\r\n")[0].decode()
    assert "X-Request-Id: mine\r\n" in head
    ours = re.search("X-Baton-Request-Id: ([0-9a-f]{16})", head)[1]
    assert server.json(f"/debug/requests?id={ours}")["requests"]
    sock = connect(server)
    sock.sendall(b"GET / HTTP/1.1\r\n\r\n")
    assert b"\r\nX-Request-Id: " in read_all(sock)


# ---- CORS ----

PREFLIGHT = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type,x-a"}


def test_cors_is_off(server):
    status, headers, _ = server.request("OPTIONS", "/v1/completions", headers={"Origin": "http://a.example", **PREFLIGHT})
    assert status == 405 and not any(name.startswith("Access-Control") for name in headers)


@pytest.mark.parametrize("allowed", ["http://a.example", "*"])
def test_cors(baton, tiny, logs, allowed):
    with front(baton, tiny, logs, router_args=["--cors-origin", allowed]) as cluster:
        origin = {"Origin": "http://a.example"}
        status, headers, body = cluster.request("OPTIONS", "/v1/completions", headers={**origin, **PREFLIGHT})
        assert status == 204 and body == b"" and "Content-Length" not in headers
        assert headers["Access-Control-Allow-Origin"] == allowed
        assert "POST" in headers["Access-Control-Allow-Methods"]
        assert headers["Access-Control-Allow-Headers"] == PREFLIGHT["Access-Control-Request-Headers"]
        for path in ("/health", "/nothing"):
            headers = cluster.request("GET", path, headers=origin)[1]
            assert headers["Access-Control-Allow-Origin"] == allowed
            assert "X-Request-Id" in headers["Access-Control-Expose-Headers"]
        sock = connect(cluster)
        sock.sendall(post(stream_body(2), extra=b"Origin: http://a.example\r\n"))
        assert f"Access-Control-Allow-Origin: {allowed}\r\n".encode() in read_until(sock, b"\r\n0\r\n\r\n")
        other = cluster.request("GET", "/health", headers={"Origin": "http://b.example"})[1]
        assert ("Access-Control-Allow-Origin" in other) == (allowed == "*")
        assert ("Vary" in other) == (allowed != "*")


# ---- comments while a stream waits ----

@pytest.mark.parametrize("state", ["queued", "prefill"])
def test_comments_while_waiting(baton, tiny, logs, state):
    """They come before the first token; a failure behind them is an event, and the answer does not look whole."""
    mock = {"queued": ["--full"], "prefill": ["--hold"]}[state]
    with front(baton, tiny, logs, mock, ["--sse-keepalive-s", 1, "--deadline-ms", 2600, "--queue-ms", 2600]) as cluster:
        sock = connect(cluster)
        sock.sendall(post(stream_body()))
        data = read_until(sock, b": keep-alive\n\n")
        assert data.startswith(b"HTTP/1.1 200 OK\r\n") and b"data: " not in data
        data += read_all(sock)
        assert data.count(b": keep-alive\n\n") == 2
        assert b"event: error\ndata: {" in data and b"[DONE]" not in data and not data.endswith(b"0\r\n\r\n")
        assert live(cluster) == 0


def test_comments_can_be_off(baton, tiny, logs):
    with front(baton, tiny, logs, ["--hold"], ["--sse-keepalive-s", 0, "--deadline-ms", 1500]) as cluster:
        sock = connect(cluster)
        sock.sendall(post(stream_body()))
        assert read_until(sock, b"}}").startswith(b"HTTP/1.1 504")


# ---- HTTPS ----

def make_certificate(folder, name="localhost"):
    cert, key = folder / f"{name}.pem", folder / f"{name}.key"
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
                    "-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{name},IP:127.0.0.1", "-keyout", key, "-out",
                    cert], check=True, capture_output=True)
    return cert, key


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    return make_certificate(tmp_path_factory.mktemp("certificate"))


@contextlib.contextmanager
def secure_front(baton, model, logs, certificate, mock_args=("--by-index",), router_args=()):
    cert, key = certificate
    context = ssl.create_default_context(cafile=cert)
    with front(baton, model, logs, mock_args, ["--http-tls-cert", cert, "--http-tls-key", key, *router_args],
               https=context) as cluster:
        yield cluster


def test_https(baton, tiny, logs, certificate):
    """Streams, keep-alive, large bodies, a client that leaves: as over plain HTTP, by TLS 1.3 and by 1.2."""
    with secure_front(baton, tiny, logs, certificate) as cluster:
        assert len(events(cluster, stream_body(30))) == 30
        for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
            context = ssl.create_default_context(cafile=certificate[0])
            context.maximum_version = version
            sock = context.wrap_socket(connect(cluster, plain=True), server_hostname="localhost")
            assert sock.version() == {2: "TLSv1.2", 3: "TLSv1.3"}[2 if version == ssl.TLSVersion.TLSv1_2 else 3]
            for _ in range(3):
                sock.sendall(post(stream_body(5)))
                assert read_until(sock, b"\r\n0\r\n\r\n").count(b"data: {") == 5
            sock.sendall(post({"prompt": "x" * 3_000_000, "max_tokens": 1}, "/tokenize"))
            assert read_until(sock, b"}").startswith(b"HTTP/1.1 200")
            sock.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            assert read_all(sock).endswith(b'{"status":"ok"}\n'), "and TLS's end behind it"
        sock = connect(cluster)
        sock.sendall(post(stream_body(8000)))
        read_until(sock, b"data: ")
        sock.close()
        cluster.wait_for(lambda: live(cluster) == 0, "the client's leaving is seen")


def test_https_slow_client_gets_everything(baton, tiny, logs, certificate):
    """What TLS could not send at once is sent again in order."""
    n = 9000
    with secure_front(baton, tiny, logs, certificate, ["--by-index", "--interval-us", 200, "--max-context", 100000]) as cluster:
        sock = connect(cluster)
        sock.sendall(post(stream_body(n, return_token_ids=True)))
        cluster.wait_for(lambda: cluster.metrics()["baton_generated_tokens_total"] >= n, "all is generated")
        data = read_until(sock, b"0\r\n\r\n")
        ids = [json.loads(line[6:])["choices"][0]["token_ids"][0] for line in data.split(b"\n")
               if line.startswith(b"data: {")]
        assert ids == [100 + i % 400 for i in range(n)]


def test_plain_on_https_and_the_reverse(baton, tiny, logs, certificate, server):
    with secure_front(baton, tiny, logs, certificate) as cluster:
        sock = connect(cluster, plain=True)
        sock.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        data = read_all(sock, timeout=5)
        assert data.startswith(b"HTTP/1.1 400") and b"this port speaks HTTPS" in data
        stranger = ssl.create_default_context()
        with pytest.raises(ssl.SSLCertVerificationError):
            stranger.wrap_socket(connect(cluster, plain=True), server_hostname="localhost")
        old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
        old.set_ciphers("ALL:@SECLEVEL=0")
        old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
        with pytest.raises(ssl.SSLError):
            old.wrap_socket(connect(cluster, timeout=5, plain=True))
        assert cluster.get("/health")[0] == 200
    with pytest.raises(ssl.SSLError):
        ssl.create_default_context().wrap_socket(connect(server, timeout=5), server_hostname="localhost")
    assert server.get("/health")[0] == 200


def shown(cluster):
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with context.wrap_socket(connect(cluster, plain=True)) as sock:
        return sock.getpeercert(True)


def test_certificates_are_read_again(baton, tiny, tmp_path):
    """Under load, with no request lost; a file that cannot be used changes nothing."""
    cert, key = make_certificate(tmp_path)
    with secure_front(baton, tiny, tmp_path, (cert, key)) as cluster:
        first, good = shown(cluster), cert.read_text()
        stop, served = threading.Event(), []

        def load():
            while not stop.is_set():
                assert len(events(cluster, stream_body(20))) == 20
                served.append(1)

        threads = [threading.Thread(target=load) for _ in range(3)]
        cluster.https.load_verify_locations(cert)
        for thread in threads:
            thread.start()
        cert.write_text("nothing")
        cluster.router.process.send_signal(signal.SIGHUP)
        cluster.wait_for(lambda: "certificate stays as it was" in cluster.router.text(), "the router says so")
        assert shown(cluster) == first
        cert.write_text(good)
        make_certificate(tmp_path)
        cluster.https.load_verify_locations(cert)
        cluster.router.process.send_signal(signal.SIGHUP)
        cluster.wait_for(lambda: shown(cluster) != first, "the new certificate is shown")
        n = len(served)
        cluster.wait_for(lambda: len(served) > n + 5, "requests go on")
        stop.set()
        for thread in threads:
            thread.join()
        assert cluster.metrics()['baton_requests_ended_total{reason="cancelled"}'] == 0


def test_other_addresses_need_https(baton, tiny, tmp_path, certificate):
    base = [str(x) for x in (baton, "router", "--model", tiny, "--port", 0, "--registry-listen", "127.0.0.1:0", "--host")]
    done = subprocess.run([*base, "0.0.0.0"], capture_output=True, text=True, timeout=30)
    assert done.returncode == 2 and "--http-tls-cert" in done.stderr and "--insecure" in done.stderr
    done = subprocess.run([*base, "127.0.0.1", "--http-tls-cert", str(certificate[0])], capture_output=True, text=True, timeout=30)
    assert done.returncode == 2 and "http-tls-key" in done.stderr
    up = subprocess.run([str(baton), "up", "--model", str(tiny), "--port", "0", "--host", "0.0.0.0"], capture_output=True,
                        text=True, timeout=60)
    assert up.returncode == 2 and "--insecure" in up.stderr


def test_up_with_https_and_keys(baton, tiny, tmp_path, certificate):
    """One command gives an encrypted cluster that asks for keys; chat, which trusts it, needs one."""
    keys, (cert, key) = tmp_path / "keys", certificate
    secret = add_key(baton, keys, "me")

    def up(shown):
        done = subprocess.run([baton, "up", "--model", tiny, "--port", "0", "--http-tls-cert", cert, "--http-tls-key", key,
                               "--api-key-file", keys, "--prompt", "hi", "--once"], capture_output=True, text=True,
                              timeout=120, env={**os.environ, "BATON_API_KEY": shown})
        assert "Serving https://127.0.0.1:" in done.stdout, (done.stdout, done.stderr)
        return [line for line in done.stderr.splitlines() if line.startswith("chat: ")]

    assert "chat template" in up(secret)[0], "the router has looked at the request"
    assert "Incorrect API key" in up("another")[0]
