#!/usr/bin/env python3
"""Builds the servers that Baton is measured beside, for this CPU, on first use; run alone, it builds and prints their paths.

llama.cpp's server is built from the source that the Python package carries, so that the library and the server are one version.
"""
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


if __name__ == "__main__":
    print(llama_server())
