"""`--health-listen` and `baton health`: what probes beside a process are told, from start to drain."""
import re
import subprocess

from cluster import Cluster, Process


def port_of(process):
    """Where its health port listens; the log says it."""
    Cluster.wait_for(lambda: "health answers on " in process.text(), "the health port is open")
    return re.search(r"health answers on (\S+?:\d+)", process.text()).group(1)


def ask(baton, address, service="readiness"):
    run = subprocess.run([baton, "health", "--health-listen", address, "--service", service, "--timeout-ms", "10000"],
                         capture_output=True, text=True, timeout=60)
    return run.returncode, run.stdout.strip() or run.stderr.strip()


def test_a_cluster_becomes_ready_and_stops_being_so(baton, tiny, logs):
    args = ["--health-listen", "127.0.0.1:0"]
    with Cluster(baton, tiny, logs, router_args=args, worker_args=args) as cluster:
        for process in cluster.processes():
            Cluster.wait_for(lambda: ask(baton, port_of(process)) == (0, "SERVING"), f"{process.name} is ready")
            assert ask(baton, port_of(process), "liveness") == (0, "SERVING")
            assert ask(baton, port_of(process), "") == (0, "SERVING")
        router, decode = cluster.router, cluster.workers["decode-0"]
        decode.kill()
        Cluster.wait_for(lambda: ask(baton, port_of(router)) == (1, "NOT_SERVING"), "the router lacks a decode worker")
        assert ask(baton, port_of(router), "liveness") == (0, "SERVING")
        router.kill()
        prefill = cluster.workers["prefill-0"]
        Cluster.wait_for(lambda: ask(baton, port_of(prefill)) == (1, "NOT_SERVING"), "the worker lacks a router")
        assert ask(baton, port_of(prefill), "liveness") == (0, "SERVING")


def test_refusals_are_sentences(baton, tiny, logs):
    code, text = ask(baton, "127.0.0.1:1")
    assert code == 1 and "127.0.0.1:1" in text
    router = Process("router", [baton, "router", "--model", tiny, "--port", 0, "--registry-listen", "127.0.0.1:0",
                                "--health-listen", "0.0.0.0:0"], logs)
    assert router.process.wait(60) == 2
    assert "not a loopback address" in router.text()
    with Cluster(baton, tiny, logs, prefill=0, decode=0, router_args=["--health-listen", "127.0.0.1:0"]) as cluster:
        code, text = ask(baton, port_of(cluster.router), "nobody")
        assert code == 1 and "nobody" in text
