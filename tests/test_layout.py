"""Checks the house rules that a grep can see: includes run downwards, files stay small and say what they are for."""
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# What each folder may include of ours, besides itself. ARCHITECTURE.md shows the same table.
ALLOWED = {
    "kernels": [],
    "proto": [],
    "common/base": [],
    "common/rpc": ["common/base", "proto/registry", "proto/inference", "proto/grpc", "proto/google", "proto/descriptors"],
    "common/text": ["common/base"],
    "common/device": ["common/base", "kernels"],
    "common/kv": ["common/base", "common/device"],
    "common/engine": ["common/base", "common/device", "common/kv", "kernels"],
    "common/worker": ["common/base", "common/rpc", "common/kv", "common/engine"],
    "router": ["common/base", "common/rpc", "common/text"],
    "prefill_worker": ["common/base", "common/rpc", "common/kv", "common/engine", "common/worker"],
    "decode_worker": ["common/base", "common/rpc", "common/kv", "common/engine", "common/worker"],
    "cli": ["common", "router", "prefill_worker", "decode_worker", "kernels"],
    "baton.c": ["cli", "common/base"],
}
# Files that may include one header more, and why.
EXTRA = {"common/kv/kv_wire.c": ["proto/kv"]}
# Libraries that only one place may include.
ONLY = {
    "grpc/": "common/rpc/",
    "protobuf-c": ("common/rpc/", "common/kv/kv_wire.c"),
    "kernels/kernels.h": ("common/device/", "common/engine/", "kernels/"),
}
# Cores are pure: no clock, socket, thread, allocation after create.
CORES = re.compile(r"^(router/(core|admission|placement|worker_table|prefix_table|fence|dispatch|verdict|lifecycle|attempt"
                   r"|token_store|request_heap|ticket|record|spans)"
                   r"|prefill_worker/prefill_(core|queue|run|peers)|decode_worker/decode_(core|admit|grow|step)"
                   r"|common/kv/kv_(pool|hold|index|recv|send)|common/rpc/ledger|common/engine/batch|common/worker/(tell_index|router_set))[a-z_]*\.c$")
IMPURE = re.compile(r"\b(clock_gettime|gettimeofday|time|rand|random|printf|fprintf|socket|pthread_\w+|errno)\s*\(")
LINES_MAX = 800


def folder_of(path):
    if path == "baton.c":
        return path
    parts = path.split("/")
    return "/".join(parts[:2]) if parts[0] == "common" else parts[0]


def main():
    names = subprocess.run(["git", "ls-files", "-co", "--exclude-standard", "*.c", "*.h"], cwd=ROOT, check=True,
                           capture_output=True, text=True).stdout.split()
    faults = []
    for name in sorted(set(names)):
        path = ROOT / name
        if not path.exists():
            continue
        text = path.read_text()
        lines = text.splitlines()
        if len(lines) > LINES_MAX:
            faults.append(f"{name}: {len(lines)} lines, at most {LINES_MAX}")
        if not lines or not lines[0].startswith("/*"):
            faults.append(f"{name}: the first line must be a comment that says what the file is for")
        if name.startswith("tests/"):
            continue
        folder = folder_of(name)
        if folder not in ALLOWED:
            faults.append(f"{name}: folder {folder} is not in the dependency table")
            continue
        for include in re.findall(r'^\s*#\s*include\s*["<]([^">]+)[">]', text, re.M):
            for library, place in ONLY.items():
                if include.startswith(library) and not name.startswith(place):
                    faults.append(f"{name}: includes {include}, which only {place} may")
            ours = include.split("/")[0] in ("common", "kernels", "router", "prefill_worker", "decode_worker", "cli",
                                             "proto", "tests")
            allowed = [folder] + ALLOWED[folder] + EXTRA.get(name, [])
            if ours and not any(include == a or include.startswith(a + "/") or
                                (a.startswith("proto/") and include.startswith(a)) for a in allowed):
                faults.append(f"{name}: includes {include}, but {folder} may include only {allowed}")
        if CORES.match(name):
            for number, line in enumerate(lines, 1):
                if IMPURE.search(re.sub(r"/\*.*?\*/|\"[^\"]*\"", "", line)) and not line.lstrip().startswith(("*", "/*")):
                    faults.append(f"{name}:{number}: a pure core must not call {line.strip()[:60]}")
    for fault in faults:
        print(fault)
    print(f"layout: {len(names)} files, {len(faults)} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
