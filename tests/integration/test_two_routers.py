"""Two routers share the same workers; one dies in mid-stream, and what the workers held for it goes back."""
import http.client
import json
from concurrent.futures import ThreadPoolExecutor

from cluster import Cluster, Process
from test_leaks import census, idle

PROMPT = [5 + i % 400 for i in range(70)]


class Second:
    """The other router of a cluster, asked by the same functions."""

    def __init__(self, cluster):
        self.process = Process("router-2", [cluster.baton, "router", "--model", cluster.model, "--port", 0,
                                            "--registry-listen", "127.0.0.1:0", *cluster.router_args], cluster.log_dir)
        ready = self.process.wait_ready()
        self.host, port = ready["http"].rsplit(":", 1)
        self.port, self.registry = int(port), ready["registry"]
        self.workers = cluster.workers

    https = None
    http, request, get, json, complete = Cluster.http, Cluster.request, Cluster.get, Cluster.json, Cluster.complete


def test_two_routers(baton, tiny, logs):
    with Cluster(baton, tiny, logs, prefill=0, decode=0, worker_args=["--kv-tokens", 16384, "--threads", 1]) as cluster:
        second = Second(cluster)
        try:
            for role in ("prefill", "decode"):
                for i in range(2):
                    cluster.start_worker(role, f"{role}-{i}", ["--router", second.registry])
            for router in (cluster, second):
                cluster.wait_for(lambda: router.get("/ready")[0] == 200 and
                                 len(router.json("/debug/workers")["workers"]) == 4, "four workers are attached")
            sampling = {"max_tokens": 60, "ignore_eos": True, "temperature": 1, "seed": 3}
            expected = cluster.complete(PROMPT, **sampling)
            with ThreadPoolExecutor(16) as pool:
                jobs = [pool.submit((cluster, second)[i % 2].complete, PROMPT[: 40 + i], **sampling) for i in range(32)]
                jobs += [pool.submit((cluster, second)[i % 2].complete, PROMPT, **sampling) for i in range(16)]
                answers = [job.result() for job in jobs]
            for answer in answers[32:]:
                assert answer["token_ids"] == expected["token_ids"]
                assert answer["logits_hashes"] == expected["logits_hashes"]

            # The second router dies while it streams; the first one and the workers go on.
            connection = http.client.HTTPConnection(second.host, second.port, timeout=60)
            body = {"prompt": PROMPT, "max_tokens": 400, "ignore_eos": True, "stream": True}
            connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
            assert connection.getresponse().readline().startswith(b"data: ")
            second.process.kill()
            connection.close()
            assert cluster.complete(PROMPT, **sampling)["logits_hashes"] == expected["logits_hashes"]
            cluster.wait_for(lambda: len(census(cluster)) == 4 and idle(cluster),
                             "what was held for the dead router has gone back")
        finally:
            if second.process.process.poll() is None:
                second.process.kill()
