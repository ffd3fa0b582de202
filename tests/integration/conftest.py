"""Fixtures of the integration tests: the binary, the models, a folder for logs."""
import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
SMOLLM2 = "SmolLM2-135M-Instruct.Q4_1.gguf"


def pytest_addoption(parser):
    parser.addoption("--baton", default=str(ROOT / "build" / "baton"), help="the binary to test")
    parser.addoption("--long", action="store_true", help="the full counts (100 kills, 1,000 requests) instead of the short ones")


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: too long for a build with sanitizers")


@pytest.fixture(scope="session")
def baton(request):
    path = Path(request.config.getoption("--baton")).resolve()
    assert path.is_file(), f"{path} is not built"
    return path


@pytest.fixture(scope="session")
def sanitized(baton):
    return "asan" in str(baton) or "tsan" in str(baton)


@pytest.fixture(scope="session")
def long(request):
    return request.config.getoption("--long")


@pytest.fixture(scope="session")
def tiny():
    """A random Llama of two layers: loads in milliseconds, same code paths."""
    return ROOT / "tests" / "fixtures" / "tiny_gguf" / "tiny-llama-Q4_1.gguf"


@pytest.fixture(scope="session")
def window():
    """A random Mistral with a sliding window of 24 positions."""
    return ROOT / "tests" / "fixtures" / "tiny_window" / "tiny-mistral-BF16.gguf"


@pytest.fixture(scope="session")
def smollm2():
    cache = Path(os.environ.get("BATON_CACHE") or
                 Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "baton")
    path = Path(os.environ.get("BATON_MODEL") or cache / SMOLLM2)
    if not path.is_file():
        pytest.skip(f"{path} is not there (scripts/get-model)")
    return path


@pytest.fixture
def logs(tmp_path):
    return tmp_path
