"""Times llama.cpp on the rows of the engine bench, as asked on stdin.

  peer_llama_cpp.py MODEL THREADS

A line `ROW REPETITIONS [SETTING,SETTING]` is answered by a line {"samples": {setting: [tokens/s, ...]}}; settings are flash attention
`fa off` and `fa on` (written `fa_off`, `fa_on` in the question; both by default). The cache is f16, the default. Caches that a row starts
from are filled once and kept, so a second question for the same row is cheap.
"""
import ctypes
import json
import sys
import time

import llama_cpp

import limits

CHUNK = 512  # as bench_engine's; also llama.cpp's own default of a physical batch
WARM_UP = 8
SETTINGS = {"fa_off": 0, "fa_on": 1}
DEPTH_MAX = max(row.n for row in limits.ROWS if row.kind == "decode")


def fail(words):
    sys.exit(f"peer_llama_cpp: {words}")


class Context:
    """A context for n sequences and what is in its cache."""

    def __init__(self, model, threads, fa, n_sequences, n_tokens):
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_seq_max = n_sequences * n_tokens, n_sequences
        params.n_batch = params.n_ubatch = CHUNK
        params.n_threads = params.n_threads_batch = threads
        params.flash_attn_type = fa
        self.ctx = llama_cpp.llama_init_from_model(model, params)
        if not self.ctx:
            fail(f"no context for {n_sequences} sequences of {n_tokens} tokens")
        self.memory = llama_cpp.llama_get_memory(self.ctx)
        self.filled = None
        self.batches = {}

    def run(self, sequences, rows, position):
        """One batch: `rows` tokens of each sequence from `position` on; logits of each one's last."""
        n = len(sequences) * rows
        if n not in self.batches:
            self.batches[n] = llama_cpp.llama_batch_init(n, 0, 1)
        batch = self.batches[n]
        batch.n_tokens = n
        for i, sequence in enumerate(sequences):
            for j in range(rows):
                at = i * rows + j
                batch.token[at], batch.pos[at] = 100 + (position + j + sequence * 11) * 37 % 40000, position + j
                batch.n_seq_id[at], batch.seq_id[at][0], batch.logits[at] = 1, sequence, j == rows - 1
        code = llama_cpp.llama_decode(self.ctx, batch)
        if code:
            fail(f"llama_decode answers {code}")

    def fill(self, n_sequences, tokens):
        """Each sequence's cache holds `tokens` tokens and no more."""
        if self.filled != tokens:
            llama_cpp.llama_memory_clear(self.memory, True)
            for at in range(0, tokens, CHUNK):
                for sequence in range(n_sequences):
                    self.run([sequence], min(CHUNK, tokens - at), at)
            self.filled = tokens
        else:
            llama_cpp.llama_memory_seq_rm(self.memory, -1, tokens, -1)

    def decode(self, n_sequences, depth, tokens):
        """As bench_engine's: the first token is not timed."""
        sequences = list(range(n_sequences))
        self.run(sequences, 1, depth)
        start = time.perf_counter()
        for i in range(1, tokens):
            self.run(sequences, 1, depth + i)
        return n_sequences * (tokens - 1) / (time.perf_counter() - start)

    def prefill(self, tokens):
        llama_cpp.llama_memory_clear(self.memory, True)
        self.filled = None
        start = time.perf_counter()
        for at in range(0, tokens, CHUNK):
            self.run([0], min(CHUNK, tokens - at), at)
        return tokens / (time.perf_counter() - start)


class Peer:
    def __init__(self, path, threads):
        self.threads = threads
        self.contexts = {}
        self.model = llama_cpp.llama_model_load_from_file(path.encode(), llama_cpp.llama_model_default_params())
        if not self.model:
            fail(f"cannot load {path}")

    def context(self, setting, kind, n):
        """Prefill has a context of its own, so that what the others start from stays in theirs."""
        n_sequences = n if kind == "batch" else 1
        key = (setting, kind, n_sequences, n if kind == "decode" else 0)
        if key not in self.contexts:
            tokens = {"batch": limits.BATCH_PROMPT + limits.DECODE_DEEP, "prefill": 2048,
                      "decode": n + limits.DECODE_SHORT}[kind]
            self.contexts[key] = Context(self.model, self.threads, SETTINGS[setting], n_sequences, -(-tokens // 256) * 256)
        return self.contexts[key]

    def measure(self, row, repetitions, setting):
        context = self.context(setting, row.kind, row.n)
        samples = []
        if row.kind == "prefill":
            context.prefill(128)  # warms up
            return [context.prefill(row.n) for _ in range(repetitions)]
        n = row.n if row.kind == "batch" else 1
        depth = limits.BATCH_PROMPT if row.kind == "batch" else row.n
        tokens = limits.DECODE_DEEP if depth else limits.DECODE_SHORT
        for repetition in range(repetitions):
            context.fill(n, depth)
            if not repetition:
                context.decode(n, depth, WARM_UP)
                context.fill(n, depth)
            samples.append(context.decode(n, depth, tokens))
        return samples


def main():
    path, threads = sys.argv[1], int(sys.argv[2])
    quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)
    llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    peer = Peer(path, threads)
    rows = {row.name: row for row in limits.ROWS}
    for line in sys.stdin:
        words = line.split()
        settings = words[2].split(",") if len(words) > 2 else SETTINGS
        samples = {setting: peer.measure(rows[words[0]], int(words[1]), setting) for setting in settings}
        print(json.dumps({"samples": samples}), flush=True)


main()
