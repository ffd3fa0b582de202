"""`baton bench` against clusters and against servers that misbehave: what it prints, writes and answers."""
import http.server
import json
import ssl
import subprocess
import threading
import xml.etree.ElementTree

import pytest

from cluster import Cluster


def bench(baton, url, *args, code=0):
    run = subprocess.run([baton, "bench", "--url", url, *map(str, args)], capture_output=True, text=True, timeout=120)
    assert run.returncode == code, (run.returncode, run.stdout, run.stderr)
    return run


@pytest.fixture(scope="module")
def served(baton, tiny, tmp_path_factory):
    with Cluster(baton, tiny, tmp_path_factory.mktemp("bench")) as cluster:
        yield cluster


def test_figures_add_up(baton, served, tmp_path):
    path, picture = tmp_path / "out.json", tmp_path / "out.svg"
    run = bench(baton, served.url, "--rate", 100, "--requests", 60, "--output-tokens", 9,
                "--prompt-tokens", 40, "--slo-ttft-ms", 60000, "--slo-itl-ms", 60000, "--min-goodput", 1,
                "--json", path, "--svg", picture, "--progress", "on")
    out = json.loads(path.read_text())
    assert out["requests"] == out["ok"] == out["in_slo"] == len(out["results"]) == 60 and out["failed"] == 0
    assert out["mean_output_tokens"] == 9
    assert "60/60 done" in run.stderr and "60 of 60 (100.0 %)" in run.stdout
    rows = out["results"]
    assert all(r["output_tokens"] == 9 and r["ttft_ms"] <= r["e2e_ms"] for r in rows)
    ttft = sorted(r["ttft_ms"] for r in rows)
    assert out["ttft_ms"]["p50"] == ttft[29] and out["ttft_ms"]["max"] == ttft[-1]
    assert [r["at_ms"] for r in rows] == sorted(r["at_ms"] for r in rows)
    circles = xml.etree.ElementTree.parse(picture).getroot().findall("{http://www.w3.org/2000/svg}circle")
    assert sum(c.get("class") == "good" for c in circles) == 60


def test_chat_is_asked_the_same_way(baton, smollm2, logs, tmp_path):
    with Cluster(baton, smollm2, logs) as cluster:
        bench(baton, cluster.url + "/v1/", "--endpoint", "chat", "--rate", 50, "--requests", 4, "--prompt-tokens", 20,
              "--output-tokens", 6, "--json", tmp_path / "out")
    out = json.loads((tmp_path / "out").read_text())
    assert out["ok"] == 4 and out["mean_output_tokens"] == 6


def test_the_same_seed_is_the_same_load(baton, served, tmp_path):
    times = []
    for name in ("a", "b"):
        bench(baton, served.url, "--rate", 200, "--requests", 20, "--seed", 5, "--prompt-tokens", 20,
              "--output-tokens", 2, "--json", tmp_path / name)
        times.append([r["at_ms"] for r in json.loads((tmp_path / name).read_text())["results"]])
    assert times[0] == times[1]


def test_a_trace_is_played(baton, served, tmp_path):
    trace = tmp_path / "trace.jsonl"
    trace.write_text("".join(json.dumps({"timestamp": 20 * i, "input_length": 10 + i, "output_length": 1 + i}) + "\n"
                             for i in range(8)))
    bench(baton, served.url, "--trace", trace, "--json", tmp_path / "out")
    assert [r["output_tokens"] for r in json.loads((tmp_path / "out").read_text())["results"]] == list(range(1, 9))
    assert "line 1" in bench(baton, served.url, "--trace", __file__, code=2).stderr


def test_classes_of_a_trace_are_reported_apart(baton, served, tmp_path):
    trace = tmp_path / "trace.jsonl"
    trace.write_text("".join(json.dumps({"timestamp": 20 * i, "input_length": 10, "output_length": (40, 2)[i % 2],
                                         "class": ("chat", "long")[i % 2]}) + "\n" for i in range(8)))
    run = bench(baton, served.url, "--trace", trace, "--slo-itl-p99-ms", 60000, "--json", tmp_path / "out")
    out = json.loads((tmp_path / "out").read_text())
    assert "class chat: 4 requests, 4 ok, 4 good" in run.stdout and out["in_slo"] == 8
    for name, n_gaps in (("chat", 39), ("long", 1)):
        rows = [r for r in out["results"] if r["class"] == name]
        assert len(rows) == out["classes"][name]["ok"] == 4
        # Tokens that are no text of their own have no event, so gaps may be fewer, never more.
        assert 0 < out["classes"][name]["itl_ms"]["n"] <= 4 * n_gaps
        assert max(r["itl_p99_ms"] for r in rows) == out["classes"][name]["itl_p99_ms"]["max"]
        assert out["classes"][name]["itl_p99_ms"]["max"] <= out["classes"][name]["itl_ms"]["max"] + 1e-6
    run = bench(baton, served.url, "--trace", trace, "--slo-itl-p99-ms", 0.001, "--min-goodput", 1, code=1)
    assert "p99 of the gaps 0.001 ms" in run.stdout and "class chat: 4 requests, 4 ok, 0 good" in run.stdout


def test_https_with_a_key(baton, tiny, logs, tmp_path):
    certs, keys = tmp_path / "certs", tmp_path / "keys"
    subprocess.run([baton, "certs", certs], check=True, capture_output=True)
    key = subprocess.run([baton, "keys", "add", "load", "--file", keys], check=True, capture_output=True,
                         text=True).stdout.split()[-1]
    context = ssl.create_default_context(cafile=certs / "ca.pem")
    with Cluster(baton, tiny, logs, https=context, router_args=["--http-tls-cert", certs / "http.pem", "--http-tls-key",
                                                                certs / "http-key.pem", "--api-key-file", keys]) as cluster:
        args = ["--rate", 100, "--requests", 20, "--prompt-tokens", 20, "--output-tokens", 3]
        bench(baton, cluster.url, *args, "--ca-file", certs / "ca.pem", "--api-key", key, "--min-goodput", 1)
        run = bench(baton, cluster.url, *args, "--ca-file", certs / "ca.pem", "--api-key", "wrong", "--model", "m", code=1)
        assert "failed: " in run.stdout and "key" in run.stdout
        assert "certificate" in bench(baton, cluster.url, *args, code=2).stderr


class Liar(http.server.BaseHTTPRequestHandler):
    """Answers by turns with an error, a stream that is cut, one without its end mark, an error event and garbage."""
    protocol_version = "HTTP/1.1"
    turn = 0
    chunk = b'data: {"choices":[{"text":"x"}]}\n\n'
    bodies = [None, chunk, chunk, b'data: {"error":{"message":"worker lost"}}\n\n', b"data: {\n\n"]

    def do_GET(self):
        self.answer(200, b'{"data":[{"id":"m"}]}')

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        cls = type(self)
        turn, cls.turn = cls.turn, cls.turn + 1
        body = self.bodies[turn % 5]
        if body is None:
            self.answer(429, b'{"error":{"message":"too busy"}}')
        elif turn % 5 == 1:
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(body)
            self.close_connection = True
        else:
            self.answer(200, body)

    def answer(self, code, body):
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


def test_failures_are_counted_and_named(baton, tmp_path):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Liar)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        run = bench(baton, f"http://127.0.0.1:{server.server_port}", "--rate", 100, "--requests", 10, "--json",
                    tmp_path / "out", code=1)
    finally:
        server.shutdown()
        server.server_close()
    out = json.loads((tmp_path / "out").read_text())
    assert out["ok"] == 0 and out["failed"] == 10
    reasons = {r["reason"] for r in out["results"]}
    assert reasons == {"too busy", "the stream was cut", "the stream ended without [DONE]", "worker lost",
                       "an event is not JSON"}
    assert all(f"failed: {reason}" in run.stdout for reason in reasons)


def test_bad_options_and_servers_are_named(baton):
    for args, word in [(["--rate", "0"], "rate"), (["--rate", "x"], "rate"), (["--slo-ttft-ms", "-1"], "slo-ttft-ms"),
                       (["--warmup", "100"], "warmup"), (["--min-goodput", "2"], "min-goodput")]:
        assert word in bench(baton, "http://127.0.0.1:1", *args, code=2).stderr
    assert "http[s]://" in bench(baton, "nowhere", code=2).stderr
    assert "is a server running" in bench(baton, "http://127.0.0.1:1", code=2).stderr
