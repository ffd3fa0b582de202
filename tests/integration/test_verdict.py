"""Each request says truthfully why it was slow: a delay in one stage, and the verdict names that stage.

The targets are given, far from what the tiny model needs and half of the delay, and only for the phase that the delay
is in, so that what a busy machine does to the other one does not matter."""
import json

import pytest
from cluster import Cluster
from front import events

TARGETS = {"start": ["--ttft-target-ms", 100, "--itl-target-us", 60000000],
           "stream": ["--ttft-target-ms", 3600000, "--itl-target-us", 14000],
           "given": ["--ttft-target-ms", 100, "--itl-target-us", 14000],
           "learnt": []}
ARGS = ["--kv-tokens", 8192, "--threads", 1]
N_TOKENS = 8
DELAY_MS = 200
# Failpoint: the phase and the stage that the verdict must name, and the stage that has the time.
STAGES = {
    "queue": ("start", "queue", "queue"),
    "placement": ("start", "placement", "placement"),
    "prefill": ("start", "prefill", "prefill"),
    "transfer": ("stream", "transfer", "transfer"),
    "join": ("stream", "join", "join"),
    "step": ("stream", "step", "decode"),
    "network": ("start", "network", "network"),
}


def prompt(i, n=100):
    """No two share a block, so that each is computed and handed over."""
    return [3 + (i * 7 + k * (k + i)) % 400 for k in range(n)]


def record_of(cluster, i, stream=True, **fields):
    body = {"prompt": prompt(i), "max_tokens": N_TOKENS, "ignore_eos": True, "temperature": 0, **fields}
    headers = {"X-Baton-Timings": "1", "Content-Type": "application/json"}
    if stream:
        return events(cluster, {**body, "stream": True}, headers=headers)[-1]["baton"]
    status, _, answer = cluster.request("POST", "/v1/completions", body, headers=headers)
    assert status == 200, answer
    return json.loads(answer)["baton"]


def check_whole(record):
    """Every stage was reported by the time of the last chunk, and they add up."""
    stages = dict(record["stages"])
    total = stages.pop("total_ms")
    assert None not in stages.values(), record
    assert abs(sum(stages.values()) - total) < 0.01, record
    assert abs(total - record["total_us"] / 1000) < 0.001


def ask(cluster, first, n):
    records = [record_of(cluster, i) for i in range(first, first + n)]
    for record in records:
        check_whole(record)
        assert record["placement"] == "split" and record["attempts"] == 1, record
    return records


def is_disturbed(record, span):
    """The machine itself held up another stage, which may then be named as well."""
    stages = {name: ms for name, ms in record["stages"].items() if name not in ("total_ms", f"{span}_ms")}
    return max(stages.values()) > DELAY_MS / 4


def check_failpoint(baton, tiny, logs, name, n):
    """n requests that nothing else held up all name the stage; the others are asked anew, and up to 2 n of them are borne with."""
    phase, stage, span = STAGES[name]
    with Cluster(baton, tiny, logs, router_args=TARGETS[phase], worker_args=ARGS,
                 env={"BATON_FAILPOINT": f"{name}={DELAY_MS}ms"}) as cluster:
        records, n_asked = [], 0
        while len(records) < n:
            assert n_asked < 3 * n, f"{n_asked - len(records)} of {n_asked} requests were held up in other stages than {stage}"
            more = ask(cluster, n_asked, n - len(records))
            n_asked += len(more)
            records += [r for r in more if not is_disturbed(r, span)]
        wrong = [(r["verdict"], r["stages"], r["ttft_us"], r["itl_mean_us"]) for r in records
                 if (r["verdict"]["phase"], r["verdict"]["stage"]) != (phase, stage)]
        assert not wrong, wrong[:3]
        for record in records:
            assert record["stages"][f"{span}_ms"] > DELAY_MS * 0.8, record
            assert record["verdict"]["advice"]
        slow = f'baton_requests_slow_total{{phase="{phase}",stage="{stage}"}}'
        Cluster.wait_for(lambda: cluster.metrics()[slow] >= n, "all are counted", timeout_s=10)


@pytest.mark.parametrize("name", STAGES)
def test_delay_is_named(baton, tiny, logs, name):
    check_failpoint(baton, tiny, logs, name, 10)


@pytest.mark.slow
@pytest.mark.parametrize("name", STAGES)
def test_delay_is_named_each_time(baton, tiny, logs, name):
    check_failpoint(baton, tiny, logs, name, 100)


@pytest.mark.parametrize("targets", ["given", "learnt"])
def test_undisturbed_is_ok(baton, tiny, logs, targets):
    with Cluster(baton, tiny, logs, router_args=TARGETS[targets], worker_args=ARGS) as cluster:
        records = ask(cluster, 0, 100)
        slow = [(r["verdict"], r["stages"]) for r in records if r["verdict"]["phase"] != "none"]
        assert len(slow) <= 2, (len(slow), slow[:3])


def test_whole_answers_and_local_ones(baton, tiny, logs):
    """The same for answers without stream, for prompts computed on the decode worker, and for answers of one token."""
    with Cluster(baton, tiny, logs, disaggregate="auto", worker_args=ARGS) as cluster:
        long = {"max_tokens": 300}  # long beside the time until the router's loop looks again
        for i, fields in enumerate([long, {"max_tokens": 1}, {"prompt": [5, 6, 7], **long},
                                    {"prompt": [5, 6, 8], "max_tokens": 1}]):
            for stream in (False, True):
                record = record_of(cluster, 2 * i + stream, stream, **fields)
                check_whole(record)
                assert (record["placement"] == "split") == ("prompt" not in fields), record
                assert record["stages"]["prefill_ms"] > 0
                assert (record["stages"]["decode_ms"] > 0) == (fields["max_tokens"] > 1), record
                if fields["max_tokens"] > 1:
                    assert (record["stages"]["transfer_ms"] > 0) == (record["placement"] == "split"), record


def test_bad_failpoint_is_refused(baton, tiny, logs):
    with pytest.raises(RuntimeError, match="BATON_FAILPOINT is .*nowhere=1s.*, must be a stage"):
        with Cluster(baton, tiny, logs, env={"BATON_FAILPOINT": "nowhere=1s"}):
            pass
