#!/usr/bin/env python3
"""Measures how far each engine's arithmetic strays from fp32, over every position of the golden prompts; JSON rows on stdout.

  bench_accuracy.py [--build DIR] [--model FILE] [--peers PYTHON] [--threads N]

The reference is Baton's profile exact, whose logits are within 1.1e-4 of an independent fp32 reference's (tests/parity). kl_prompt:
mean KL of the next token's distribution; argmax_wrong: positions with another argmax where the reference leads by more than 0.5;
argmax_lost: the largest lead that was lost; lead_long_605: what the reference's argmax leads by at the one position where profile
fast loses more than 0.5 (reference 0.544). Engines: baton (profile fast, as by default), baton-int8kv (with the int8 cache),
baton-bf16, and, where PYTHON has them, llama.cpp and OpenVINO in the arithmetic of their defaults (OpenVINO was as far from
fp32 when told to compute in f32, so what strays is likely its conversion of Q4_1 weights; that was not looked into). Nothing here depends on time, so one round is all.
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from common import ROOT, logger, model_path

log = logger("accuracy")
BENCH = ROOT / "tests" / "bench"
GOLDEN = ROOT / "tests" / "fixtures" / "smollm2" / "golden.json"
N_VOCAB = 49152
MARGIN = 0.5
EDGE = ("long", 605)
BATON = {"baton": ("fast", "bf16"), "baton-int8kv": ("fast", "int8"), "baton-bf16": ("bf16", "bf16")}
PEERS = {"llama.cpp": "llama_cpp", "openvino": "openvino_genai"}


def run(*command):
    done = subprocess.run([str(c) for c in command], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"bench accuracy: {command[0]} ended with {done.returncode}")
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def has(python, package):
    return python and subprocess.run([str(python), "-c", f"import {package}"], capture_output=True).returncode == 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", type=lambda folder: Path(folder).resolve(), default=ROOT / "build")
    parser.add_argument("--model", help="the default model by default")
    parser.add_argument("--peers", type=Path, help="an interpreter that has llama.cpp or OpenVINO; none by default")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    args = parser.parse_args()
    model = model_path(args.model)
    cases = json.loads(GOLDEN.read_text())["cases"]
    before = [c["name"] for c in cases].index(EDGE[0])
    position = sum(len(c["prompt_ids"]) for c in cases[:before]) + EDGE[1]
    tools = args.build / "tests" / "bench"
    with tempfile.TemporaryDirectory() as work:
        tokens, reference, other = (Path(work) / name for name in ("tokens", "reference", "other"))
        tokens.write_text("".join(" ".join(map(str, c["prompt_ids"])) + "\n" for c in cases))
        run(tools / "logits_of", model, "exact", "f32", args.threads, tokens, reference)

        def measure(engine, arithmetic, *command):
            said = run(*command)
            (found,) = run(tools / "logits_compare", reference, other, N_VOCAB, MARGIN, position)
            log(f"{engine}: {said[0]['arithmetic'] if said else arithmetic}; {found['rows']} positions")
            for row, key, unit in (("kl_prompt", "kl", "nats"), ("argmax_wrong", "wrong", "positions"),
                                   ("argmax_lost", "lost", "logits"), ("lead_long_605", "lead", "logits")):
                print(json.dumps({"row": row, "engine": engine, "threads": args.threads, "unit": unit, "samples": [found[key]]}),
                      flush=True)

        for engine, (profile, kv_type) in BATON.items():
            measure(engine, f"profile {profile}, {kv_type} cache", tools / "logits_of", model, profile, kv_type, args.threads,
                    tokens, other)
        for engine, package in PEERS.items():
            if has(args.peers, package):
                measure(engine, None, args.peers, BENCH / "peer_logits.py", engine, model, args.threads, tokens, other)
            else:
                log(f"{engine} is left out: there is none")


main()
