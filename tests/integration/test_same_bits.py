"""Disaggregated serving gives the bits of single-process serving: the logits hash and the logprobs of every step are compared."""
import json
import random
from concurrent.futures import ThreadPoolExecutor

import pytest
from cluster import Cluster

LENGTHS = [1, 15, 16, 17, 31, 32, 33, 255, 256, 257, 1000]
PAGE = 16
SAMPLINGS = {"greedy": {"temperature": 0}, "seeded": {"temperature": 0.9, "top_p": 0.95, "top_k": 40, "seed": 12345}}
TOPOLOGIES = {"1P+1D": (1, 1), "2P+2D": (2, 2)}


def prompt(length, vocab, seed=1):
    """Prompts of one seed are prefixes of each other, those of different seeds differ from the first token on."""
    rng = random.Random(seed)
    return [rng.randrange(3, vocab) for _ in range(length)]


def rows(lengths, vocab):
    """(name, prompt, sampling fields, wave). Waves are run one after another: the later ones find prefixes."""
    for kind, fields in SAMPLINGS.items():
        for i, length in enumerate(lengths):
            yield f"cold {kind} {length}", prompt(length, vocab, seed=100 + i), fields, "alone"
        for i, length in enumerate(lengths):
            yield f"prefix {kind} {length}", prompt(length, vocab, seed=100 + i), fields, "alone again"
        for i in range(16):
            length = lengths[i % len(lengths)]
            yield f"together {kind} {i} {length}", prompt(length, vocab, seed=200 + i), fields, "together"
        for i in range(16):
            length = lengths[(i * 5) % len(lengths)]
            yield f"together prefix {kind} {i} {length}", prompt(length, vocab, seed=200), fields, "together again"


def run(cluster, table, max_tokens):
    """{name: (token ids, hashes and logprobs, request id)}"""
    out = {}

    def one(name, tokens, fields):
        choice = cluster.complete(tokens, max_tokens=max_tokens, ignore_eos=True, logprobs=3, **fields)
        assert len(choice["token_ids"]) == max_tokens == len(choice["logits_hashes"]), name
        shown = choice["logprobs"]
        assert len(shown["token_logprobs"]) == max_tokens and all(len(top) >= 3 for top in shown["top_logprobs"]), name
        numbers = (shown["token_logprobs"], [list(top.values()) for top in shown["top_logprobs"]])
        out[name] = (choice["token_ids"], (choice["logits_hashes"], numbers), choice["request_id"])

    table = list(table)
    for wave in dict.fromkeys(row[3] for row in table):
        batch = [row[:3] for row in table if row[3] == wave]
        if wave.startswith("alone"):
            for row in batch:
                one(*row)
        else:
            with ThreadPoolExecutor(16) as pool:
                for done in [pool.submit(one, *row) for row in batch]:
                    done.result()
    return out


def compare(got, expected):
    assert got.keys() == expected.keys()
    for name in expected:
        assert got[name][0] == expected[name][0], f"{name}: other tokens"
        assert got[name][1] == expected[name][1], f"{name}: other logits or logprobs"


def check_bytes(cluster, results, prompts, page_bytes):
    """Every request moved exactly the pages that D lacked, and the counters know of nothing else. The workers' last words on a
    request, and their counters, come after the client's end: they are waited for."""
    total = 0
    for name, (_, _, request_id) in results.items():
        pages = -(-len(prompts[name]) // PAGE)

        def record():
            (found,) = cluster.json(f"/debug/requests?id={request_id}")["requests"]
            return found

        def is_settled():
            found = record()
            return found["pages"] == pages and found["kv_bytes"] == (pages - found["pages_held"]) * page_bytes

        cluster.wait_for(is_settled, f"{name} moved the pages that the decode worker lacked: {record()}")
        found = record()
        assert found["prefill_worker"] and found["prefill_worker"] != found["decode_worker"], (name, found)
        assert found["placement"] == "split", (name, found)
        total += found["kv_bytes"]

    def received():
        return sum(v for k, v in cluster.metrics().items()
                   if k.startswith("baton_kv_transfer_bytes_total") and 'role="decode"' in k)

    cluster.wait_for(lambda: received() == total, f"the decode workers count {total} bytes")
    assert received() == total


def matrix(baton, model, logs, table, max_tokens, page_bytes, topologies, worker_args):
    prompts = {row[0]: row[1] for row in table}
    with Cluster(baton, model, logs, prefill=0, decode=1, disaggregate="never", worker_args=worker_args) as cluster:
        expected = run(cluster, table, max_tokens)
    for n_prefill, n_decode in topologies:
        with Cluster(baton, model, logs, prefill=n_prefill, decode=n_decode, disaggregate="always",
                     router_args=("--debug-requests", 1000), worker_args=worker_args) as cluster:
            got = run(cluster, table, max_tokens)
            compare(got, expected)
            check_bytes(cluster, got, prompts, page_bytes)


@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize("precision, kv", [("fast", "auto"), ("exact", "auto"), ("fast", "int8")])
def test_tiny(baton, tiny, logs, topology, precision, kv):
    # 2 layers x 2 KV heads x (K and V) x 16 tokens x 32 dims in f32, or in one byte and a scale of four, or in bf16
    head = 32 * 4 if precision == "exact" else 32 + 4 if kv == "int8" else 32 * 2
    matrix(baton, tiny, logs, list(rows(LENGTHS, 512)), 8, 2 * 2 * 2 * PAGE * head, [TOPOLOGIES[topology]],
           ["--precision", precision, "--kv-cache-dtype", kv, "--kv-tokens", 32768, "--threads", 1])


def test_threads_and_chunks(baton, tiny, logs):
    """Other thread counts and chunk sizes on each worker change nothing."""
    table = [row for row in rows([17, 257, 1000], 512)]
    with Cluster(baton, tiny, logs, prefill=0, decode=1, disaggregate="never", worker_args=["--threads", 1]) as cluster:
        expected = run(cluster, table, 8)
    for threads, chunk in [(2, 16), (1, 48), (2, 512)]:
        with Cluster(baton, tiny, logs, prefill=1, decode=1, disaggregate="always",
                     worker_args=["--threads", threads, "--chunk-tokens", chunk]) as cluster:
            compare(run(cluster, table, 8), expected)


def test_sliding_window(baton, window, logs):
    """A window of 24 positions, split and not, cold and from the prefix cache; greedy tokens are those of an independent reference."""
    worker_args = ["--precision", "exact", "--kv-tokens", 32768, "--threads", 1]
    # 4 layers x 2 KV heads x 16 dims x (K and V) x 16 tokens x f32
    matrix(baton, window, logs, list(rows([16, 24, 25, 257, 1000], 768)), 8, 4 * 2 * 16 * 2 * PAGE * 4, [TOPOLOGIES["1P+1D"]], worker_args)
    golden = json.loads((window.parent / "golden.json").read_text())
    with Cluster(baton, window, logs, disaggregate="always", worker_args=worker_args) as cluster:
        for _ in range(2):
            choice = cluster.complete(golden["prompt_ids"], max_tokens=len(golden["greedy_ids"]), ignore_eos=True, temperature=0)
            assert choice["token_ids"] == golden["greedy_ids"]


@pytest.mark.slow
def test_smollm2(baton, smollm2, logs):
    """Twenty rows on the default model, up to 1,500 tokens."""
    table = []
    for kind, fields in SAMPLINGS.items():
        for i, length in enumerate([1, 16, 33, 257, 1500]):
            table.append((f"cold {kind} {length}", prompt(length, 40000, seed=i), fields, "alone"))
        for i, length in enumerate([15, 31, 256, 1500, 1000]):
            table.append((f"together {kind} {length}", prompt(length, 40000, seed=4), fields, "together"))
    # 30 layers x 3 KV heads x 64 dims x (K and V) x 16 tokens x bf16
    matrix(baton, smollm2, logs, table, 6, 30 * 3 * 64 * 2 * PAGE * 2, TOPOLOGIES.values(),
           ["--kv-tokens", 16384, "--threads", 1])
