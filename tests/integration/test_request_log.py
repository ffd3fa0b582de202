"""One line for each request at its end: everything about its time, nothing of its text."""
import json
import os
import pty
import subprocess
import time

from cluster import Cluster

CANARY = "xyzzycanary"
KEY = "sk-canary-93511"
SALT = "saltcanary77"
STAGES = ["queue", "placement", "prefill_wait", "prefill", "transfer", "join", "decode", "moved", "network"]


def lines_of(process):
    process.log.flush()
    return [json.loads(line) for line in process.log_path.read_text().splitlines()]


def requests_of(cluster, n):
    def got():
        return [line for line in lines_of(cluster.router) if line["message"] == "request"]
    Cluster.wait_for(lambda: len(got()) >= n, f"{n} requests are logged", timeout_s=10)
    assert len(got()) == n
    return got()


def ask(cluster, **fields):
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    return cluster.request("POST", "/v1/completions", {"max_tokens": 5, "ignore_eos": True, **fields}, headers=headers)


def test_lines(baton, tiny, logs):
    with Cluster(baton, tiny, logs, disaggregate="auto") as cluster:
        status, headers, _ = ask(cluster, prompt=[5 + i % 300 for i in range(100)])
        assert status == 200
        (line,) = requests_of(cluster, 1)
        assert line["request"] in {k.lower(): v for k, v in headers.items()}["x-request-id"]
        assert (line["level"], line["role"], line["status"], line["verdict"]) == ("info", "router", "ok", "ok")
        assert (line["prompt_tokens"], line["generated_tokens"], line["attempts"]) == (100, 5, 1)
        assert (line["placement"], line["prefill_worker"], line["decode_worker"]) == ("split", "prefill-0", "decode-0")
        assert line["time"].startswith(time.strftime("%Y-%m-%dT", time.gmtime())) and line["time"].endswith("Z")
        assert list(line["stages"]) == [f"{s}_ms" for s in STAGES] + ["total_ms"]
        assert abs(sum(line["stages"][f"{s}_ms"] for s in STAGES) - line["stages"]["total_ms"]) < 0.01
        # One that fails says why.
        assert ask(cluster, prompt=[5] * 100, max_tokens=900, timeout_ms=1)[0] in (200, 400, 504)
        # All other lines have the same form.
        for process in (cluster.router, *cluster.workers.values()):
            assert all({"time", "level", "role", "message"} <= set(x) for x in lines_of(process))


def test_nothing_of_the_text(baton, tiny, logs):
    """Neither prompt nor answer nor key nor tenant, at any level, in any process."""
    args = ["--log-level", "debug"]
    with Cluster(baton, tiny, logs, disaggregate="auto", router_args=args, worker_args=args) as cluster:
        echoed = ask(cluster, prompt=f"say {CANARY} " * 12, cache_salt=SALT, echo=True)
        assert echoed[0] == 200 and CANARY in echoed[2].decode()
        ask(cluster, prompt=f"{CANARY} " * 4000)  # too long
        ask(cluster, prompt={"odd": CANARY})
        ask(cluster, prompt=CANARY, stop=[CANARY], user=CANARY, metadata={"a": CANARY})
        cluster.request("POST", "/v1/chat/completions", {"messages": [{"role": "user", "content": CANARY}], "max_tokens": 4})
        cluster.request("POST", f"/v1/{CANARY}", {})
        requests_of(cluster, 2)
        processes = [cluster.router, *cluster.workers.values()]
    for process in processes:
        text = process.log_path.read_text()
        assert text
        for word in (CANARY, KEY, SALT):
            assert word not in text, [line for line in text.splitlines() if word in line][:3]


def test_switched_off(baton, tiny, logs):
    with Cluster(baton, tiny, logs, disaggregate="auto", router_args=["--log-requests=no"]) as cluster:
        assert ask(cluster, prompt=[5, 6, 7])[0] == 200
        Cluster.wait_for(lambda: cluster.metrics()["baton_request_duration_seconds_count"] == 1, "it is counted")
    assert not [line for line in lines_of(cluster.router) if line["message"] == "request"]


def test_text_on_a_terminal(baton, tiny, logs):
    """And where it is asked for."""
    with Cluster(baton, tiny, logs, disaggregate="auto", router_args=["--log-format", "text"]) as cluster:
        assert ask(cluster, prompt=[5, 6, 7])[0] == 200
        Cluster.wait_for(lambda: " ok: 5 tokens after 3 in " in cluster.router.text(), "it is logged")
        line = [x for x in cluster.router.text().splitlines() if " ok: 5 tokens after 3 in " in x][0]
        assert " info  router: request 0000" in line and "local_short decode-0" in line and line.endswith("; ok")
    ours, theirs = pty.openpty()
    process = subprocess.Popen([str(baton), "decode", "--router", "127.0.0.1:1", "--model", str(logs / "absent.gguf"),
                                "--name", "d"], stderr=theirs, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL)
    os.close(theirs)
    assert process.wait(60) == 2
    said = os.read(ours, 4096).decode()
    os.close(ours)
    assert " error d: " in said and not said.startswith("{"), said
