"""The router's CPU a token by gRPC, and many streams at once, before workers that cost nothing.

  build/venv/bin/python tests/bench/bench_grpc.py [--build DIR] [--rounds N]

Prints one JSON line per case: the router's own CPU (its workers' side, text and gRPC included) by the tokens that
all clients got, the median of the rounds; the clients are grpcio's and share the machine.
"""
import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "tests" / "integration"))
import grpc.aio  # noqa: E402
import stubs  # noqa: E402
from front import front  # noqa: E402

pb, rpc = stubs.load("inference.proto")
MODEL = ROOT / "tests" / "fixtures" / "tiny_gguf" / "tiny-llama-Q4_1.gguf"
# streams, connections, tokens of each, microseconds between them
CASES = [(64, 1, 500, 10000), (256, 2, 200, 20000), (2000, 8, 60, 100000)]


def cpu_s(pid):
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def streams(cluster, n, n_channels, n_tokens):
    channels = [grpc.aio.insecure_channel(cluster.grpc, options=[("grpc.use_local_subchannel_pool", 1)])
                for _ in range(n_channels)]
    request = pb.GenerateRequest(tokens=pb.TokenIds(ids=[5, 6, 7]),
                                 sampling=pb.SamplingParams(max_tokens=n_tokens, ignore_eos=True))

    async def one(i):
        rows = 0
        async for response in rpc.InferenceStub(channels[i % n_channels]).Generate(request):
            rows += len(response.tokens)
        return rows

    before = cpu_s(cluster.router.pid)
    rows = await asyncio.gather(*[one(i) for i in range(n)])
    used = cpu_s(cluster.router.pid) - before
    for channel in channels:
        await channel.close()
    if rows != [n_tokens] * n:
        sys.exit("bench: a stream is not complete")
    return used / sum(rows) * 1e6


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", type=Path, default=ROOT / "build")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    for n, n_channels, n_tokens, interval_us in CASES:
        mock = ["--by-index", "--interval-us", interval_us, "--max-seqs", 4096]
        with tempfile.TemporaryDirectory() as logs, \
                front(args.build / "baton", MODEL, logs, mock, ["--max-requests", 8192]) as cluster:
            us = [asyncio.run(streams(cluster, n, n_channels, n_tokens)) for _ in range(args.rounds)]
            print(json.dumps({"bench": "grpc", "streams": n, "connections": n_channels,
                              "router_cpu_us_per_token": round(statistics.median(us), 1),
                              "rss_mb": round(cluster.router.rss_kb() / 1024, 1)}), flush=True)


if __name__ == "__main__":
    main()
