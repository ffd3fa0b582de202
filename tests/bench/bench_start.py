#!/usr/bin/env python3
"""Measures how soon a serving process that is started answers; JSON rows on stdout.

  bench_start.py [--rounds N] [--build DIR] [--model FILE] [--llama-server FILE] [--only ROW]

From exec to the first streamed token of a client that waits for it, model file and program in the page cache. start_ms: a router
and one decode worker that serves alone (`baton up --prefill 0 --decode 1`), with all CPUs; start_cluster_ms: one prefill and one
decode worker with a hand-off between them. llama.cpp's server runs with as many threads, if it is given. In each round all take
turns, and the first round only warms up. start_port_ms and start_ready_ms are the way there: when the port was open, and when the
server said that it could serve.
"""
import argparse
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import ROOT, logger, model_path

log = logger("start")
LOOK_S = 0.002
LIMIT_S = 60
BODY = {"prompt": "Once upon a time there was", "max_tokens": 8, "stream": True, "temperature": 0}


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def post(port):
    """The status line's number, and the moment of the first event with a token; (None, None) where nobody listens."""
    body = json.dumps(BODY).encode()
    request = (b"POST /v1/completions HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\nConnection: close\r\n"
               b"Content-Length: %d\r\n\r\n" % len(body)) + body
    answer = b""
    with socket.socket() as s:
        s.settimeout(LIMIT_S)
        try:
            s.connect(("127.0.0.1", port))
            s.sendall(request)
            while True:
                piece = s.recv(65536)
                answer += piece
                if b"\r\n" in answer and b" 200 " not in answer.split(b"\r\n", 1)[0]:
                    return int(answer.split(b" ", 2)[1]), None
                if b"data: {" in answer:
                    return 200, time.monotonic()
                if not piece:
                    return None, None
        except ConnectionError:
            return None, None


class Failed(Exception):
    pass


def one_start(command, port, said):
    """Milliseconds from exec: port open, first answer that is not a refusal, first token."""
    started = time.monotonic()
    process = subprocess.Popen([str(word) for word in command], stdout=said, stderr=said)
    open_at = None
    try:
        while time.monotonic() - started < LIMIT_S:
            asked = time.monotonic()
            status, first = post(port)
            if status is not None and open_at is None:
                open_at = asked
            if status == 200:
                return [(t - started) * 1e3 for t in (open_at, asked, first)]
            if status not in (None, 503):
                raise Failed(f"{command[0]} answered {status}")
            if process.poll() is not None:
                raise Failed(f"{command[0]} ended with {process.returncode}")
            time.sleep(LOOK_S)
        raise Failed(f"{command[0]} gave no token within {LIMIT_S} s")
    finally:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
        if process.poll() is None:
            process.kill()
            process.wait()


def commands(args, port):
    """(row, engine): what is started."""
    up = [args.build / "baton", "up", "--model", args.model, "--port", port]
    rows = {("start", "baton"): [*up, "--prefill", 0, "--decode", 1],
            ("start_cluster", "baton"): [*up, "--prefill", 1, "--decode", 1, "--disaggregate", "always"]}
    if args.llama_server:
        rows["start", "llama.cpp"] = [args.llama_server, "-m", args.model, "--port", port, "-t", args.threads, "-c", 4096]
    return {key: command for key, command in rows.items() if args.only in (None, key[0])}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--build", type=Path, default=ROOT / "build")
    parser.add_argument("--model")
    parser.add_argument("--llama-server", help="a llama-server program, measured too")
    parser.add_argument("--only", choices=["start", "start_cluster"])
    args = parser.parse_args()
    args.threads = len(os.sched_getaffinity(0))
    args.model = model_path(args.model)
    samples = {}
    for number in range(args.rounds + 1):
        for (row, engine), command in commands(args, free_port()).items():
            with tempfile.TemporaryFile("w+") as said:
                try:
                    times = one_start(command, command[command.index("--port") + 1], said)
                except Failed as why:
                    said.seek(0)
                    sys.exit(f"bench start: {why}\n{said.read()}")
            if number:
                log(f"{row:<14}{engine:<10} port {times[0]:6.1f}  ready {times[1]:6.1f}  first token {times[2]:6.1f} ms")
                for part, ms in zip(("_port_ms", "_ready_ms", "_ms"), times):
                    samples.setdefault((row + part, engine), []).append(round(ms, 2))
    for (row, engine), values in samples.items():
        print(json.dumps({"row": row, "engine": engine, "threads": args.threads, "unit": "ms", "samples": values}))


main()
