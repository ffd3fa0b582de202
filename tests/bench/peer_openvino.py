"""Times OpenVINO GenAI on the rows of the engine bench that it can do, as asked on stdin.

  peer_openvino.py MODEL THREADS

A line `ROW REPETITIONS` is answered by a line {"samples": {"default": [tokens/s, ...]}}. Its pipeline takes whole prompts and answers with
its own clock: prefill is prompt tokens by time to first token (so the head and the choice of one token are in it, as in
bench_engine), decode is one by the mean time of the tokens after the first.
"""
import json
import sys

import numpy
import openvino
import openvino_genai

import limits

WARM_UP = 8


random = numpy.random.default_rng(1)


def generate(pipeline, prompt, tokens):
    ids = random.integers(100, 40000, size=(1, prompt), dtype=numpy.int64)  # no two alike: its prefix cache finds nothing
    config = openvino_genai.GenerationConfig()
    config.max_new_tokens, config.ignore_eos, config.do_sample = tokens, True, False
    mask = openvino.Tensor(numpy.ones((1, prompt), dtype=numpy.int64))
    return pipeline.generate(openvino_genai.TokenizedInputs(openvino.Tensor(ids), mask), config).perf_metrics


def measure(pipeline, row, repetitions):
    if row.kind == "prefill":
        generate(pipeline, row.n, 1)  # warms up
        return [row.n / (generate(pipeline, row.n, 2).get_ttft().mean / 1000) for _ in range(repetitions)]
    prompt, tokens = max(row.n, 1), limits.DECODE_DEEP if row.n else limits.DECODE_SHORT
    generate(pipeline, prompt, WARM_UP)
    return [1000 / generate(pipeline, prompt, tokens).get_tpot().mean for _ in range(repetitions)]


def main():
    path, threads = sys.argv[1], int(sys.argv[2])
    pipeline = openvino_genai.LLMPipeline(path, "CPU", INFERENCE_NUM_THREADS=threads)
    rows = {row.name: row for row in limits.ROWS}
    for line in sys.stdin:
        name, repetitions = line.split()[:2]
        print(json.dumps({"samples": {"default": measure(pipeline, rows[name], int(repetitions))}}), flush=True)


main()
