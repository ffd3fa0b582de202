"""Times llama.cpp on the same work as bench_engine: one JSON row of samples per line.

  llama_cpp_bench.py MODEL THREADS REPETITIONS
"""
import ctypes
import json
import sys
import time

import llama_cpp

PREFILL = 512
DECODE = 128


def decode_batch(ctx, tokens, position):
    batch = llama_cpp.llama_batch_init(len(tokens), 0, 1)
    batch.n_tokens = len(tokens)
    for i, token in enumerate(tokens):
        batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0] = token, position + i, 1, 0
        batch.logits[i] = i == len(tokens) - 1
    code = llama_cpp.llama_decode(ctx, batch)
    llama_cpp.llama_batch_free(batch)
    if code:
        sys.exit(f"llama_decode: {code}")


def main():
    model_path, threads, repetitions = sys.argv[1].encode(), int(sys.argv[2]), int(sys.argv[3])
    quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)
    llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    model = llama_cpp.llama_model_load_from_file(model_path, llama_cpp.llama_model_default_params())
    params = llama_cpp.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_ubatch = 1024, PREFILL, PREFILL
    params.n_threads = params.n_threads_batch = threads
    ctx = llama_cpp.llama_init_from_model(model, params)
    memory = llama_cpp.llama_get_memory(ctx)
    tokens = [100 + i * 37 % 40000 for i in range(PREFILL)]
    rows = {"prefill_512": [], "decode_d0": []}
    for repetition in range(repetitions + 1):  # the first one warms up
        llama_cpp.llama_memory_clear(memory, True)
        start = time.perf_counter()
        decode_batch(ctx, tokens, 0)
        prefill_s = time.perf_counter() - start
        llama_cpp.llama_memory_clear(memory, True)
        decode_batch(ctx, tokens[:1], 0)
        start = time.perf_counter()
        for i in range(DECODE):
            decode_batch(ctx, tokens[i:i + 1], 1 + i)
        decode_s = time.perf_counter() - start
        if repetition:
            rows["prefill_512"].append(PREFILL / prefill_s)
            rows["decode_d0"].append(DECODE / decode_s)
    for row, samples in rows.items():
        print(json.dumps({"row": row, "engine": "llama.cpp", "threads": threads, "unit": "tokens/s", "samples": samples}))


main()
