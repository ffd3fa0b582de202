"""How long the workers' steps took: in /metrics and /debug/workers, the same numbers."""
from cluster import Cluster


def test_step_times(baton, tiny, logs):
    with Cluster(baton, tiny, logs, worker_args=["--kv-tokens", 4096, "--threads", 1]) as cluster:
        def told():
            metrics = cluster.metrics()
            return {w["name"]: [w["step_p50_us"], w["step_p99_us"]] +
                    [metrics['baton_step_seconds{worker="%s",role="%s",quantile="%s"}' % (w["name"], w["role"], q)]
                     for q in ("0.5", "0.99")] for w in cluster.json("/debug/workers")["workers"]}
        assert told() == {"prefill-0": [0, 0, 0, 0], "decode-0": [0, 0, 0, 0]}  # no step yet
        cluster.complete([5 + i % 400 for i in range(300)], max_tokens=200, ignore_eos=True)
        Cluster.wait_for(lambda: all(row[0] for row in told().values()), "both have told their steps' times")

        def agrees():
            return all(0 < p50 <= p99 and abs(s50 - p50 / 1e6) < 1e-9 and abs(s99 - p99 / 1e6) < 1e-9
                       for p50, p99, s50, s99 in told().values())
        Cluster.wait_for(agrees, "the two pages agree", timeout_s=10)
