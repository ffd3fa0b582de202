"""A real Prometheus scrapes a real cluster; every metric that our files name is exported; the names pass promtool."""
import json
import re
import shutil
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from pathlib import Path

import pytest

from cluster import Cluster

ROOT = Path(__file__).resolve().parents[2]
WAIT_S = 60


@pytest.fixture
def served(baton, tiny, logs):
    with Cluster(baton, tiny, logs) as cluster:
        cluster.request("POST", "/v1/completions", {"prompt": [1, 2, 3] * 10, "max_tokens": 8, "temperature": 0})
        yield cluster


def metrics(cluster):
    return cluster.request("GET", "/metrics")[2].decode()


def test_names_and_help_pass_promtool(served):
    check = subprocess.run(["promtool", "check", "metrics"], input=metrics(served), capture_output=True, text=True)
    assert check.returncode == 0, check.stderr + check.stdout


def test_every_metric_that_a_file_names_is_exported(served):
    exported = set(re.findall(r"^# TYPE (\S+)", metrics(served), re.M))
    files = subprocess.run(["git", "ls-files", "README.md", "ARCHITECTURE.md", "deploy", "docs", "router/*.html"], cwd=ROOT,
                           check=True, capture_output=True, text=True).stdout.split()
    named = {}
    for name in files:
        path = ROOT / name
        if path.suffix in (".png", ".jpg", ".webp"):
            continue
        for metric in re.findall(r"\bbaton_[a-z0-9_]+\b", path.read_text()):
            named.setdefault(re.sub(r"_(bucket|sum|count)$", "", metric), name)
    missing = {metric: name for metric, name in named.items() if metric not in exported}
    assert named and not missing


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def query(port, expression):
    url = f"http://127.0.0.1:{port}/api/v1/query?" + urllib.parse.urlencode({"query": expression})
    with urllib.request.urlopen(url, timeout=10) as answer:
        return json.load(answer)["data"]["result"]


def test_prometheus_scrapes_a_cluster(served, tmp_path):
    assert shutil.which("prometheus"), "prometheus is not installed (scripts/install-packages test)"
    port = free_port()
    config = tmp_path / "prometheus.yml"
    config.write_text("global: {scrape_interval: 1s, evaluation_interval: 1s}\n"
                      f"scrape_configs: [{{job_name: baton, static_configs: [{{targets: ['{served.host}:{served.port}']}}]}}]\n")
    with open(tmp_path / "prometheus.log", "wb") as log:
        process = subprocess.Popen(["prometheus", f"--config.file={config}", f"--storage.tsdb.path={tmp_path}/data",
                                    f"--web.listen-address=127.0.0.1:{port}"], stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + WAIT_S
        while True:
            try:
                if query(port, "up{job='baton'} == 1") and query(port, "sum(baton_kv_pages) > 0"):
                    break
            except OSError:
                pass  # it is starting
            assert process.poll() is None and time.monotonic() < deadline, (tmp_path / "prometheus.log").read_text()[-3000:]
            time.sleep(0.1)
        pages = {r["metric"]["state"] for r in query(port, "baton_kv_pages")}
        assert {"free", "cached"} <= pages
    finally:
        process.terminate()
        process.wait(30)
