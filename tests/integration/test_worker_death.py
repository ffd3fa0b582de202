"""Workers are killed in mid-stream: the client's text, every logits hash and every logprob are those of an undisturbed run."""
import http.client
import json
import random
import threading

import pytest
from cluster import Cluster

N_TOKENS = 400
SAMPLINGS = [{"temperature": 0}, {"temperature": 1, "seed": 7, "logprobs": 2, "logit_bias": {"9": 3}}]
PROMPT = [5 + i % 400 for i in range(70)]


def stream(cluster, on_token=None, **fields):
    """(token ids, hashes, text, logprobs) of one streamed completion; on_token(n) is called as they come."""
    connection = http.client.HTTPConnection(cluster.host, cluster.port, timeout=120)
    body = {"prompt": PROMPT, "max_tokens": N_TOKENS, "ignore_eos": True, "stream": True, "return_token_ids": True,
            "return_logits_hash": True, **fields}
    connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
    answer = connection.getresponse()
    assert answer.status == 200, answer.read()
    ids, hashes, text, logprobs, done = [], [], "", [], False
    for line in answer:
        line = line.strip()
        if not line.startswith(b"data: "):
            assert not line.startswith(b"event: error"), line
            continue
        if line == b"data: [DONE]":
            done = True
            continue
        event = json.loads(line[6:])
        assert "error" not in event, event
        for choice in event["choices"]:
            text += choice["text"]
            ids += choice.get("token_ids") or []
            hashes += choice.get("logits_hashes") or []
            shown = choice["logprobs"] or {"token_logprobs": [], "top_logprobs": []}
            logprobs += zip(shown["token_logprobs"], shown["top_logprobs"], strict=True)
        if on_token:
            on_token(len(ids))
    connection.close()
    assert done, "the stream was cut"
    assert len(logprobs) == (N_TOKENS if "logprobs" in fields else 0)
    return ids, hashes, text, logprobs


def rounds(long, sanitized):
    return 100 if long else 4 if sanitized else 12


@pytest.mark.parametrize("role, kv", [("decode", "auto"), ("prefill", "auto"), ("decode", "int8")])
def test_kill(baton, tiny, logs, long, sanitized, role, kv):
    rng = random.Random(1)
    with Cluster(baton, tiny, logs, prefill=2 if role == "prefill" else 1, decode=2 if role == "decode" else 1,
                 worker_args=["--kv-tokens", 8192, "--threads", 1, "--kv-cache-dtype", kv]) as cluster:
        expected = {json.dumps(s): stream(cluster, **s) for s in SAMPLINGS}
        n_done = i = 0
        while n_done < rounds(long, sanitized):
            i += 1
            assert i < 10 * rounds(long, sanitized), "the requests end before a worker can be killed"
            sampling = SAMPLINGS[i % 2]
            at = rng.randrange(1, N_TOKENS * 3 // 4)
            killed = threading.Event()
            name = None

            def kill(n):
                nonlocal name
                if n >= at and not killed.is_set():
                    live = [r for r in cluster.json("/debug/requests")["requests"] if r["state"] != "ended"]
                    if live:  # else its last tokens are on their way to us already
                        killed.set()
                        name = live[0]["decode_worker"]
                        cluster.workers[name].kill()

            if role == "decode":
                got = stream(cluster, kill, **sampling)
                if not killed.is_set():
                    continue
            else:
                name = f"prefill-{rng.randrange(2)}"
                cluster.request("POST", "/debug/flush", {})
                timer = threading.Timer(rng.random() * 0.03, cluster.workers[name].kill)
                timer.start()
                got = stream(cluster, **sampling)
                timer.join()
            n_done += 1
            assert got == expected[json.dumps(sampling)], f"round {n_done}, killed {name} at token {at}"
            cluster.start_worker(role, name).wait_ready()
            cluster.wait_for(lambda: sum(w["state"] == "up" for w in cluster.json("/debug/workers")["workers"]) == 3,
                             "all three workers are attached")
