"""What the benches share: the model, progress on stderr, and a cluster whose decode worker has a core of its own."""
import contextlib
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "tests" / "integration"))
from cluster import Cluster  # noqa: E402


def model_path(given=None):
    """The given model, or the default one, which is fetched on first use."""
    return given or subprocess.run([ROOT / "scripts" / "get-model"], check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def logger(bench):
    def log(*words):
        print(f"bench {bench}:", *words, file=sys.stderr, flush=True)
    return log


def two_cores(bench):
    allowed = sorted(os.sched_getaffinity(0))
    if len(allowed) < 2:
        sys.exit(f"bench {bench}: two cores are needed")
    return allowed[:2]


@contextlib.contextmanager
def on_core(core):
    """What is started within stays there."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


class PinnedCluster(Cluster):
    """As Cluster; the decode worker starts on the second of two cores, all others on the first."""

    def __init__(self, cores, *words, **options):
        self.cores = cores
        super().__init__(*words, **options)

    def start_router(self):
        with on_core(self.cores[0]):
            super().start_router()

    def start_worker(self, role, name, extra=(), model=None):
        with on_core(self.cores[role == "decode"]):
            return super().start_worker(role, name, extra, model)
