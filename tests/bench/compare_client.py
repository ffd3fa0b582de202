#!/usr/bin/env python3
"""Checks `baton bench` against guidellm's client (PyPI, in an environment of its own) on guidellm's mock server.

  compare_client.py --guidellm .../bin/guidellm [--baton FILE] [--rounds N] [--rate R] [--requests N]

The server's pace is fixed (first token after 150 ms, then one each 12 ms), so two honest clients must say the same. They take
turns; medians of the rounds are compared and must be within 5 %.
"""
import argparse
import json
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TTFT_MS, ITL_MS, TOKENS, WITHIN = 150, 12, 32, 0.05


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def start_server(guidellm, port, log):
    server = subprocess.Popen([guidellm, "mock-server", "--host", "127.0.0.1", "--port", str(port), "--ttft-ms", str(TTFT_MS),
                               "--itl-ms", str(ITL_MS), "--output-tokens", str(TOKENS)], stdout=log, stderr=log)
    for _ in range(600):
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=5).read()
            return server
        except OSError:
            if server.poll() is not None:
                break
            time.sleep(0.1)
    server.terminate()
    sys.exit("compare_client: the mock server does not answer")


def ours(args, url, folder):
    out = folder / "ours.json"
    subprocess.run([args.baton, "bench", "--url", url, "--rate", str(args.rate), "--arrival", "constant", "--requests",
                    str(args.requests), "--output-tokens", str(TOKENS), "--prompt-tokens", "16", "--json", out],
                   check=True, stdout=subprocess.DEVNULL)
    report = json.loads(out.read_text())
    assert report["ok"] == args.requests, report
    return {"ttft_p50": report["ttft_ms"]["p50"], "ttft_p90": report["ttft_ms"]["p90"], "itl_mean": report["tpot_ms"]["mean"],
            "e2e_p50": report["e2e_ms"]["p50"], "e2e_p90": report["e2e_ms"]["p90"],
            "output_tokens_per_request": report["mean_output_tokens"]}


def theirs(args, url, folder):
    out, prompts = folder / "theirs.json", folder / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"time people way water day work world school {i}",
                                           "output_tokens_count": TOKENS}) + "\n" for i in range(args.requests)))
    subprocess.run([args.guidellm, "run", "--backend", f"kind=openai_http,target={url},request_format=/v1/completions",
                    "--profile", f"kind=constant,rate={args.rate}", "--constraint", f"kind=max_requests,count={args.requests}",
                    "--data", f"kind=json_file,path={prompts}", "--output", f"kind=json,path={out}", "--disable-console"],
                   check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    metrics = json.loads(out.read_text())["benchmarks"][0]["metrics"]

    def of(name):
        return metrics[name]["successful"]

    return {"ttft_p50": of("time_to_first_token_ms")["median"], "ttft_p90": of("time_to_first_token_ms")["percentiles"]["p90"],
            "itl_mean": of("inter_token_latency_ms")["mean"], "e2e_p50": 1000 * of("request_latency")["median"],
            "e2e_p90": 1000 * of("request_latency")["percentiles"]["p90"],
            "output_tokens_per_request": of("output_token_count")["mean"]}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--guidellm", required=True)
    parser.add_argument("--baton", default=ROOT / "build" / "baton")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rate", type=float, default=8)
    parser.add_argument("--requests", type=int, default=80)
    args = parser.parse_args()
    port = free_port()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with open(folder / "server.log", "wb") as log:
            server = start_server(args.guidellm, port, log)
            try:
                rounds = [(ours(args, f"http://127.0.0.1:{port}", folder), theirs(args, f"http://127.0.0.1:{port}", folder))
                          for _ in range(args.rounds)]
            finally:
                server.terminate()
                server.wait(30)
    worst = 0
    print(f"{'':<28}{'baton bench':>14}{'guidellm':>14}{'ratio':>8}")
    for row in rounds[0][0]:
        a, b = (statistics.median(r[i][row] for r in rounds) for i in (0, 1))
        worst = max(worst, abs(a / b - 1))
        print(f"{row:<28}{a:>14.2f}{b:>14.2f}{a / b:>8.3f}")
    print(f"largest difference {100 * worst:.1f} %, allowed {100 * WITHIN:.0f} %")
    return worst > WITHIN


sys.exit(main())
