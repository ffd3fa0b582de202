"""`baton chat --no-kv-cache`: the same tokens computed from nothing each time, both times shown."""
import os
import re
import subprocess

import pytest
from cluster import Cluster


@pytest.fixture(scope="module")
def cluster(baton, smollm2, tmp_path_factory):
    with Cluster(baton, smollm2, tmp_path_factory.mktemp("logs"), worker_args=["--threads", 1]) as cluster:
        yield cluster


def chat(cluster, *args, env=None):
    return subprocess.run([cluster.baton, "chat", "--url", cluster.url, "--no-kv-cache", *map(str, args)],
                          capture_output=True, text=True, timeout=120, env={**os.environ, "LC_ALL": "C.UTF-8", **(env or {})})


def test_shows_both_times(cluster):
    before = cluster.metrics()
    done = chat(cluster, "--max-tokens", 9, "What is a KV cache?")
    after = cluster.metrics()
    assert done.returncode == 0, (done.stdout, done.stderr)
    assert "Demonstration: the same answer without the KV cache" in done.stdout
    (words,) = re.findall(r"With the KV cache ([\d.]+) ms a token, without ([\d.]+) ms, (\d+) times \(medians of 8 tokens after a prompt of (\d+)\)",
                          done.stdout)
    assert "The same 9 tokens both ways." in done.stdout
    rows = re.findall(r"^ +(\d+) +(\d+) +[\d.]+ ms .*[█▏▎▍▌▋▊▉].* ms .*[█▏▎▍▌▋▊▉]", done.stdout, re.M)
    n_prompt = int(words[3])
    assert [(int(t), int(c)) for t, c in rows] == [(t, n_prompt + t - 1) for t in (2, 4, 8, 9)]
    # One request for the answer, then one for each of its tokens, and nothing of a prompt was found in a cache.
    assert after["baton_requests_total"] - before["baton_requests_total"] == 10
    assert after["baton_prompt_pages_held_total"] == before["baton_prompt_pages_held_total"]
    assert after["baton_prompt_tokens_total"] - before["baton_prompt_tokens_total"] == n_prompt + sum(range(n_prompt, n_prompt + 9))


def test_an_answer_that_ends_by_itself(cluster):
    """The token that ends it is one of those compared."""
    done = chat(cluster, "--max-tokens", 40, "Say only: yes", env={"LC_ALL": "C"})
    assert done.returncode == 0, (done.stdout, done.stderr)
    assert "tokens both ways." in done.stdout and "#" in done.stdout and done.stdout.isascii()


@pytest.mark.parametrize("args, words", [(["--temperature", "0.5"], "temperature is 0.5"), (["--max-tokens", "513"], "max-tokens is 513")])
def test_refusals(cluster, args, words):
    done = chat(cluster, *args, "hello")
    assert done.returncode == 2 and words in done.stderr and done.stderr.count("\n") == 1
