"""What a decode worker keeps in memory beside its weights and its KV cache, once the whole cache was used."""
import random
import re
import threading

import pytest

from cluster import Cluster

KV_TOKENS = 4096
REST_MB = 30  # libraries, scratch, gRPC, the mapped model file
STREAMS = 16


def resident_mb(pid, field="VmRSS"):
    with open(f"/proc/{pid}/status") as lines:
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field + ":"))


def sanitized(baton):
    return b"__asan_init" in baton.read_bytes() or b"__tsan_init" in baton.read_bytes()


def test_a_decode_worker_is_weights_and_cache_and_little_else(baton, smollm2, logs):
    if sanitized(baton):
        pytest.skip("a sanitizer's shadow is memory too")
    numbers = random.Random(5)
    with Cluster(baton, smollm2, logs, prefill=0, decode=1, disaggregate="never",
                 worker_args=["--kv-tokens", KV_TOKENS, "--threads", 2]) as cluster:
        worker = cluster.workers["decode-0"]
        # Ids from all over the vocabulary: each brings another part of the file's embedding into memory.
        prompt = [numbers.randrange(49152) for _ in range(KV_TOKENS - 96)]
        answer = cluster.complete(prompt, max_tokens=90, ignore_eos=True)
        assert len(answer["token_ids"]) == 90
        answers = []
        streams = [threading.Thread(target=lambda i=i: answers.append(cluster.complete(
            prompt[100 * i:100 * i + 32], max_tokens=32, ignore_eos=True, temperature=1))) for i in range(STREAMS)]
        for stream in streams:
            stream.start()
        for stream in streams:
            stream.join()
        assert len(answers) == STREAMS
        weights, cache = (int(re.search(rf"{what} (\d+) MB", worker.text())[1]) for what in ("weights", "KV cache"))
        # The thread that touches the cache may be behind.
        Cluster.wait_for(lambda: resident_mb(worker.process.pid, "RssAnon") >= weights + cache, "all the cache was touched")
        rss = resident_mb(worker.process.pid)
        parts = {field: round(resident_mb(worker.process.pid, field), 1) for field in ("RssAnon", "RssFile")}
        print(f"resident {rss:.1f} MB = weights {weights} + cache {cache} + {rss - weights - cache:.1f}; {parts}")
        assert rss <= weights + cache + REST_MB
