#!/usr/bin/env python3
"""Builds what Baton is measured beside, for this CPU, on first use; run alone, it builds the server and prints its path.

llama.cpp's server is built from the source that the Python package carries, so that the library and the server are one version.
Peers are extras: one that cannot be had is Missing, with the reason, and a bench goes on without it.
"""
import collections
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
BENCH = ROOT / "build" / "bench"
LLAMA_CPP = "llama-cpp-python==0.3.36"
VENV = BENCH / "venv"  # of the peers' Python packages

# `how` builds llama.cpp for this very CPU instead of taking a wheel for all.
Package = collections.namedtuple("Package", "wanted how program")
PACKAGES = {"llama.cpp": Package(LLAMA_CPP, ["--no-binary", "llama-cpp-python"], "peer_llama_cpp.py"),
            "openvino": Package("openvino-genai==2026.4.1.0", [], "peer_openvino.py")}


class Missing(Exception):
    """A peer that cannot be had; says why."""


def log(*words):
    print("bench peers:", *words, file=sys.stderr, flush=True)


def run(command):
    subprocess.run([str(c) for c in command], check=True, stdout=sys.stderr)


def llama_server():
    """The path of llama.cpp's server: Release, native, static, without TLS and pages (many minutes to build)."""
    binary = BENCH / "llama-server"
    if binary.exists():
        return binary
    log(f"building the server of {LLAMA_CPP} for this CPU")
    BENCH.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as work:
        work = Path(work)
        run([sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-binary", ":all:",
             "--dest", work, LLAMA_CPP])
        with tarfile.open(next(work.glob("*.tar.gz"))) as package:
            package.extractall(work, filter="data")
        source = next(work.glob("*/vendor/llama.cpp"))
        run(["cmake", "-S", source, "-B", work / "build", "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release", "-DBUILD_SHARED_LIBS=OFF",
             "-DGGML_NATIVE=ON", "-DLLAMA_CURL=OFF", "-DLLAMA_OPENSSL=OFF", "-DLLAMA_USE_PREBUILT_UI=OFF", "-DLLAMA_BUILD_TESTS=OFF",
             "-DLLAMA_BUILD_EXAMPLES=OFF"])
        run(["cmake", "--build", work / "build", "--target", "llama-server", "--parallel", os.cpu_count()])
        half = binary.with_suffix(".new")  # whoever finds the binary finds all of it
        shutil.copy(work / "build" / "bin" / "llama-server", half)
        half.rename(binary)
    return binary


def installed(package):
    name, version = package.wanted.split("==")
    code = f"from importlib.metadata import version; print(version({name!r}))"
    found = subprocess.run([VENV / "bin" / "python", "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    return found.stdout.strip() == version


def interpreter(engine):
    """The Python interpreter that has the engine's package, which is installed where it is not there."""
    package, python = PACKAGES[engine], VENV / "bin" / "python"
    if not python.exists() and subprocess.run([sys.executable, "-m", "venv", VENV], stdout=subprocess.DEVNULL).returncode:
        raise Missing(f"{engine}: no virtual environment can be made in {VENV}")
    if installed(package):
        return python
    log(f"installing {package.wanted}" + (", built for this CPU: some minutes" if package.how else ""))
    env = {**os.environ, "CMAKE_ARGS": "-DGGML_NATIVE=ON", "CMAKE_BUILD_PARALLEL_LEVEL": str(os.cpu_count())}
    pip = subprocess.run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *package.how, package.wanted],
                         env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if pip.returncode:
        raise Missing(f"{engine}: pip cannot install {package.wanted}: {last_line(pip.stderr)}")
    return python


def last_line(text):
    return (text.strip().splitlines() or ["no reason given"])[-1]


class Program:
    """A peer's program that answers for rows. It stays for a whole run: it loads once and keeps the caches that rows start from."""

    def __init__(self, engine, model, threads):
        self.engine = engine
        self.said = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen([interpreter(engine), Path(__file__).parent / PACKAGES[engine].program, model, str(threads)],
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.said, text=True)

    def ask(self, row, repetitions, settings=()):
        """{setting: samples}"""
        try:
            self.process.stdin.write(f"{row} {repetitions} {','.join(settings)}".strip() + "\n")
            self.process.stdin.flush()
            for line in self.process.stdout:
                if line.startswith("{"):
                    return json.loads(line)["samples"]
        except BrokenPipeError:
            pass
        self.said.seek(0)
        raise Missing(f"{self.engine}: its program ended at {row}: {last_line(self.said.read())}")

    def close(self):
        """Waits for its end, so that its CPU time is among this process's children's."""
        try:
            self.process.stdin.close()
        except BrokenPipeError:
            pass
        self.process.stdout.close()
        self.process.wait()
        self.said.close()


if __name__ == "__main__":
    print(llama_server())
