"""Several choices, several prompts, logprobs, echo and logit bias on a prefill and a decode worker."""
import json
import socket

import pytest
from cluster import Cluster
from front import cancelled, connect, events, front, metric, post, read_until

PROMPT = list(range(5, 45))


@pytest.fixture(scope="module")
def cluster(baton, tiny, tmp_path_factory):
    with Cluster(baton, tiny, tmp_path_factory.mktemp("logs"), router_args=["--served-model-name", "tiny"]) as cluster:
        yield cluster


def ask(cluster, path="/v1/completions", code=200, **body):
    status, _, data = cluster.request("POST", path, body)
    answer = json.loads(data)
    assert status == code, (status, answer)
    return answer


def choices(cluster, **body):
    listed = ask(cluster, **body)["choices"]
    assert [c["index"] for c in listed] == list(range(len(listed)))
    return listed


def ids(choice):
    return choice["token_ids"]


def placed(cluster, kind):
    return metric(cluster, f'baton_placements_total{{placement="{kind}"}}')


def by_choice(chunks):
    """{index: [choice of each chunk]}"""
    out = {}
    for chunk in chunks:
        for choice in chunk["choices"]:
            out.setdefault(choice["index"], []).append(choice)
    return out


def test_four_choices_are_one_transfer(cluster):
    """One prefill, one transfer, four streams: those of four single requests with the choices' seeds."""
    prompt = [n + 100 for n in PROMPT]
    before = placed(cluster, "split"), placed(cluster, "local_choice")
    body = {"prompt": prompt, "max_tokens": 24, "temperature": 1, "return_token_ids": True, "ignore_eos": True}
    four = by_choice(events(cluster, {**body, "seed": 70, "n": 4, "stream": True}))
    assert (placed(cluster, "split") - before[0], placed(cluster, "local_choice") - before[1]) == (1, 3)
    assert sorted(four) == [0, 1, 2, 3]
    streams = [sum(map(ids, four[i]), []) for i in range(4)]
    assert len(set(map(tuple, streams))) == 4, "each has noise of its own"
    singles = [choices(cluster, **body, seed=70 + i)[0] for i in range(4)]
    assert streams == [ids(single) for single in singles]
    assert ["".join(c["text"] for c in four[i]) for i in range(4)] == [single["text"] for single in singles]
    whole = choices(cluster, **body, seed=70, n=4)
    assert [c["text"] for c in whole] == [c["text"] for c in singles]


def test_choices_of_one_token_are_one_transfer(cluster):
    """The prefill worker's token ends the first choice; the others still wait for its cache to arrive."""
    body = {"prompt": [n + 200 for n in PROMPT], "max_tokens": 1, "temperature": 1, "seed": 7, "return_token_ids": True,
            "ignore_eos": True}
    before = placed(cluster, "split"), placed(cluster, "local_choice")
    four = [ids(choice) for choice in choices(cluster, **body, n=4)]
    assert (placed(cluster, "split") - before[0], placed(cluster, "local_choice") - before[1]) == (1, 3)
    assert four == [ids(choices(cluster, **{**body, "seed": 7 + i})[0]) for i in range(4)]


@pytest.mark.parametrize("n", [1, 3])
def test_stream_and_whole_say_the_same(cluster, n):
    body = {"prompt": PROMPT, "max_tokens": 16, "temperature": 1, "seed": 3, "n": n, "logprobs": 2, "echo": True,
            "ignore_eos": True}
    whole = choices(cluster, **body)
    streamed = by_choice(events(cluster, {**body, "stream": True}))
    for choice in whole:
        parts = streamed[choice["index"]]
        assert len(parts) == 17, "the prompt, and one for each token even where its text is empty"
        assert "".join(part["text"] for part in parts) == choice["text"]
        for name, values in choice["logprobs"].items():
            assert sum((part["logprobs"][name] for part in parts), []) == values, name
            assert len(values) == len(PROMPT) + 16
        assert [part["finish_reason"] for part in parts] == [None] * 16 + ["length"]


@pytest.mark.slow
def test_chat_says_the_same(baton, smollm2, logs):
    with Cluster(baton, smollm2, logs, worker_args=["--kv-tokens", 4096]) as cluster:
        check_chat(cluster)


def check_chat(cluster):
    body = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 12, "temperature": 0, "n": 2,
            "logprobs": True, "top_logprobs": 3, "ignore_eos": True}
    whole = ask(cluster, "/v1/chat/completions", **body)
    assert whole["usage"]["completion_tokens"] == 24
    streamed = by_choice(events(cluster, {**body, "stream": True}, "/v1/chat/completions"))
    for choice in whole["choices"]:
        parts = streamed[choice["index"]]
        assert [part["delta"].get("role") for part in parts] == ["assistant"] + [None] * 11
        assert "".join(part["delta"]["content"] for part in parts) == choice["message"]["content"]
        content = choice["logprobs"]["content"]
        assert sum((part["logprobs"]["content"] for part in parts), []) == content and len(content) == 12
        for entry in content:
            assert len(entry["top_logprobs"]) == 3 and entry["top_logprobs"][0]["token"] == entry["token"], "greedy"
            assert entry["top_logprobs"][0]["logprob"] == entry["logprob"] <= 0
            assert entry["token"].startswith("bytes:") or bytes(entry["bytes"]).decode() == entry["token"]


def test_scores_are_the_logprobs_of_generation(cluster):
    """What was generated greedily is scored as a prompt: the same bits, so the same digits."""
    first = choices(cluster, prompt=PROMPT, max_tokens=20, temperature=0, logprobs=3, return_token_ids=True,
                    ignore_eos=True)[0]
    again = {"prompt": PROMPT + ids(first), "max_tokens": 0}
    echoed = choices(cluster, **again, echo=True, logprobs=3)[0]
    for name in ("tokens", "token_logprobs", "top_logprobs"):
        assert echoed["logprobs"][name][len(PROMPT):] == first["logprobs"][name], name
    assert echoed["logprobs"]["token_logprobs"][0] is None and echoed["logprobs"]["top_logprobs"][0] is None
    assert echoed["finish_reason"] == "length" and echoed["text"].endswith(first["text"])
    answer = ask(cluster, **again, prompt_logprobs=0)
    scores = answer["choices"][0]["prompt_logprobs"]
    assert scores[0] is None and len(scores) == len(PROMPT) + 20
    assert [scores[len(PROMPT) + i][str(t)]["logprob"] for i, t in enumerate(ids(first))] == \
        first["logprobs"]["token_logprobs"]
    assert answer["choices"][0]["text"] == "" and answer["usage"]["completion_tokens"] == 0


def test_offsets_count_characters(cluster):
    text = "héllo wörld"
    echoed = choices(cluster, prompt=text, max_tokens=0, echo=True, logprobs=0)[0]
    assert echoed["text"] == text
    offsets, tokens = echoed["logprobs"]["text_offset"], echoed["logprobs"]["tokens"]
    assert offsets[0] == 0 and offsets == sorted(offsets)
    for token, at in zip(tokens, offsets):
        assert token.startswith("bytes:") or text.startswith(token, at), (token, at)


def test_echo_alone(cluster):
    body = {"prompt": ["one", [5, 6, 7]], "max_tokens": 4, "temperature": 0, "echo": True}
    plain = choices(cluster, **{**body, "echo": False})
    echoed = choices(cluster, **body)
    assert echoed[0]["text"] == "one" + plain[0]["text"]
    assert echoed[1]["text"].endswith(plain[1]["text"]) and len(echoed[1]["text"]) > len(plain[1]["text"])
    nothing = choices(cluster, **{**body, "max_tokens": 0})
    assert [c["text"] + p["text"] for c, p in zip(nothing, plain)] == [c["text"] for c in echoed]


def test_one_token_has_nothing_before_it(cluster):
    """Its own score is null, alone and beside a longer prompt; n choices share the scores."""
    for n in (1, 3):
        echoed = choices(cluster, prompt=[[7], [7, 8]], max_tokens=2, n=n, echo=True, logprobs=1, ignore_eos=True)
        numbers = [c["logprobs"]["token_logprobs"] for c in echoed]
        assert [len(row) for row in numbers] == [3] * n + [4] * n
        assert all(row[0] is None and None not in row[1:] for row in numbers)
        assert len({row[1] for row in numbers[n:]}) == 1, "the score of the prompt's second token"


def test_several_prompts(cluster):
    """Choices come prompt by prompt; each is what its prompt gets alone. A prompt is counted once."""
    prompts = ["hello", "hello world", "hi", "hello"]
    body = {"max_tokens": 8, "temperature": 1, "seed": 11, "n": 2, "ignore_eos": True}
    answer = ask(cluster, prompt=prompts, **body)
    alone = [ask(cluster, prompt=prompt, **body) for prompt in prompts]
    assert [c["text"] for c in answer["choices"]] == [c["text"] for one in alone for c in one["choices"]]
    assert [c["index"] for c in answer["choices"]] == list(range(8))
    assert answer["usage"]["prompt_tokens"] == sum(one["usage"]["prompt_tokens"] for one in alone)
    assert answer["usage"]["completion_tokens"] == 64


def test_best_of(cluster):
    """The two whose mean logprob is highest among five, as five single requests rank them."""
    body = {"prompt": PROMPT, "max_tokens": 10, "temperature": 1, "seed": 20, "ignore_eos": True}
    means = []
    for i in range(5):
        single = choices(cluster, **{**body, "seed": 20 + i}, logprobs=0)[0]
        means.append((sum(single["logprobs"]["token_logprobs"]) / 10, single["text"]))
    best = [text for _, text in sorted(means, key=lambda pair: -pair[0])[:2]]
    answer = ask(cluster, **body, n=2, best_of=5)
    assert [c["text"] for c in answer["choices"]] == best
    assert all(c["logprobs"] is None for c in answer["choices"]), "nobody asked for them"
    assert answer["usage"]["completion_tokens"] == 50, "all five were generated"


def test_logit_bias(cluster):
    body = {"prompt": PROMPT, "max_tokens": 6, "temperature": 0, "return_token_ids": True}
    plain = ids(choices(cluster, **body)[0])
    forced = choices(cluster, **body, logit_bias={"77": 100}, logprobs=1)[0]
    assert ids(forced) == [77] * 6
    assert forced["logprobs"]["token_logprobs"][0] < -1, "logprobs are those of the model, before the bias"
    banned = ids(choices(cluster, **body, logit_bias={str(plain[0]): -100})[0])
    assert banned[0] != plain[0]


def test_running_usage(cluster):
    chunks = events(cluster, {"prompt": [[5, 6, 7], [8, 9]], "max_tokens": 4, "n": 2, "stream": True, "ignore_eos": True,
                              "stream_options": {"include_usage": True, "continuous_usage_stats": True}})
    *parts, last = chunks
    counts = {}
    for part in parts:
        index = part["choices"][0]["index"]
        counts[index] = counts.get(index, 0) + 1
        assert part["usage"]["completion_tokens"] == counts[index]
        assert part["usage"]["prompt_tokens"] == (3 if index < 2 else 2)
    assert last["choices"] == [] and last["usage"]["completion_tokens"] == 16 and last["usage"]["prompt_tokens"] == 5


def test_stop_ends_one_choice_only(cluster):
    """A stop string of one choice does not end the others, and each text ends before its own."""
    body = {"prompt": PROMPT, "max_tokens": 30, "temperature": 1, "seed": 5, "n": 3}
    plain = choices(cluster, **body)
    stop = plain[0]["text"][8]
    stopped = choices(cluster, **body, stop=[stop])
    for before, after in zip(plain, stopped):
        assert after["text"] == before["text"].split(stop)[0]
        assert after["finish_reason"] == ("stop" if stop in before["text"] else "length")


def live(cluster):
    return metric(cluster, "baton_requests_live")


def test_a_client_that_leaves_cancels_all(baton, tiny, logs):
    with front(baton, tiny, logs, ["--by-index", "--interval-us", 5000]) as server:
        sock = connect(server)
        sock.sendall(post({"prompt": [5, 6, 7], "max_tokens": 8000, "n": 4, "stream": True}))
        read_until(sock, b'"index":3')
        sock.shutdown(socket.SHUT_RDWR)
        sock.close()
        server.wait_for(lambda: cancelled(server) == 4 and live(server) == 0, "all four are cancelled")


def test_all_choices_or_none(baton, tiny, logs):
    with front(baton, tiny, logs, ["--by-index"], ["--max-requests", 3]) as server:
        answer = ask(server, code=429, prompt=[5, 6, 7], max_tokens=4, n=4)
        assert answer["error"]["code"] == "rate_limit_exceeded" and answer["error"]["type"] == "rate_limit_error"
        server.wait_for(lambda: live(server) == 0, "none of them is left")
        assert len(ask(server, prompt=[5, 6, 7], max_tokens=4, n=3)["choices"]) == 3


@pytest.mark.parametrize("stream", [False, True])
def test_one_that_fails_fails_all(baton, tiny, logs, stream):
    """Tokens stop coming: the deadline ends the choices, and the answer does not look whole."""
    with front(baton, tiny, logs, ["--by-index", "--stop-after", 6], ["--deadline-ms", 1500]) as server:
        body = {"prompt": [5, 6, 7], "max_tokens": 50, "n": 3, "stream": stream}
        if not stream:
            error = ask(server, code=504, **body)["error"]
            assert error["code"] == "deadline_exceeded"
            return
        sock = connect(server)
        sock.sendall(post(body))
        data = read_until(sock, b"event: error")
        data = read_until(sock, b"}}", data.split(b"event: error", 1)[1])
        assert b"deadline_exceeded" in data
        assert sock.recv(1000) in (b"", b"\r\n", b"\n\n\r\n") and b"[DONE]" not in data
        server.wait_for(lambda: live(server) == 0, "none of them is left")
