"""The unmodified openai client: stream and not, errors, stops, usage."""
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
from cluster import Cluster
from front import front, start_mock


@pytest.fixture(scope="module")
def server(baton, tiny, tmp_path_factory):
    with front(baton, tiny, tmp_path_factory.mktemp("logs"), ["--by-index", "--interval-us", 1000],
               ["--served-model-name", "tiny"]) as cluster:
        yield cluster


def client_of(cluster, **options):
    return openai.OpenAI(base_url=cluster.url + "/v1", api_key="none", max_retries=0, **options)


@pytest.fixture(scope="module")
def client(server):
    return client_of(server)


def test_models(client):
    (model,) = client.models.list().data
    assert model.id == "tiny"
    assert client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


def test_completion(client):
    answer = client.completions.create(model="tiny", prompt="hello", max_tokens=9)
    (choice,) = answer.choices
    assert choice.finish_reason == "length" and choice.text
    assert answer.object == "text_completion" and answer.id.startswith("cmpl-")
    assert answer.usage.completion_tokens == 9
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 9
    assert answer._request_id == answer.id.removeprefix("cmpl-")


def test_completion_default_length(client):
    assert client.completions.create(model="tiny", prompt="hello").usage.completion_tokens == 16


def test_stream_is_the_same_text(client):
    whole = client.completions.create(model="tiny", prompt="hello", max_tokens=40)
    chunks = list(client.completions.create(model="tiny", prompt="hello", max_tokens=40, stream=True))
    assert "".join(c.choices[0].text for c in chunks) == whole.choices[0].text
    assert len(chunks) == 40
    assert [c.choices[0].finish_reason for c in chunks] == [None] * 39 + ["length"]
    assert len({(c.id, c.created, c.model) for c in chunks}) == 1
    assert all(c.usage is None for c in chunks)


def test_include_usage(client):
    *chunks, last = client.completions.create(model="tiny", prompt="hello", max_tokens=5, stream=True,
                                              stream_options={"include_usage": True})
    assert len(chunks) == 5 and all(c.usage is None for c in chunks)
    assert last.choices == [] and last.usage.completion_tokens == 5


def test_token_ids_and_hashes(client):
    body = {"return_token_ids": True, "return_logits_hash": True}
    answer = client.completions.create(model="tiny", prompt=[5, 6, 7], max_tokens=4, extra_body=body)
    choice = answer.choices[0]
    assert answer.usage.prompt_tokens == 3
    assert choice.token_ids == [100, 101, 102, 103]
    assert choice.logits_hashes == [f"{i:016x}" for i in range(1, 5)]
    chunks = list(client.completions.create(model="tiny", prompt=[5, 6, 7], max_tokens=4, stream=True, extra_body=body))
    assert sum((c.choices[0].token_ids for c in chunks), []) == choice.token_ids
    assert sum((c.choices[0].logits_hashes for c in chunks), []) == choice.logits_hashes


@pytest.mark.parametrize("stream", [False, True])
def test_stop_string(client, stream):
    """The text ends before the string, wherever it is cut into tokens, and the reason is stop."""
    whole = client.completions.create(model="tiny", prompt="hello", max_tokens=200).choices[0].text
    at = len(whole) // 2
    for length in (1, 3, 12):
        stop = whole[at:at + length]
        expected = whole[:whole.index(stop)]
        answer = client.completions.create(model="tiny", prompt="hello", max_tokens=200, stop=["not in it", stop],
                                           stream=stream)
        chunks = list(answer) if stream else [answer]
        assert "".join(c.choices[0].text for c in chunks) == expected
        assert chunks[-1].choices[0].finish_reason == "stop"
        with_it = client.completions.create(model="tiny", prompt="hello", max_tokens=200, stop=stop,
                                            extra_body={"include_stop_str_in_output": True})
        assert with_it.choices[0].text == expected + stop


def test_stop_ends_the_work(server, client):
    whole = client.completions.create(model="tiny", prompt="hello", max_tokens=30).choices[0].text
    answer = client.completions.create(model="tiny", prompt="hello", max_tokens=8000, stop=whole[-12:])
    assert answer.usage.completion_tokens <= 30
    server.wait_for(lambda: server.metrics()["baton_requests_live"] == 0, "the worker is told to stop")


def test_errors(client):
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="tiny", prompt="x", temperature=3)
    assert caught.value.param == "temperature" and "at most 2" in caught.value.message
    assert caught.value.type == "invalid_request_error"
    with pytest.raises(openai.NotFoundError) as caught:
        client.completions.create(model="other", prompt="x")
    assert caught.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="tiny", prompt="x", max_tokens=9000)
    assert caught.value.code == "context_length_exceeded"
    assert "maximum context length is 8192 tokens" in caught.value.message
    for field in ({"suffix": "x"}, {"logprobs": 21}, {"logit_bias": {"512": 2}}, {"n": 129}, {"best_of": 0}):
        with pytest.raises(openai.BadRequestError) as caught:
            client.completions.create(model="tiny", prompt="x", **field)
        assert caught.value.param == next(iter(field))


def test_error_in_a_stream(baton, tiny, logs):
    with front(baton, tiny, logs, ["--by-index", "--stop-after", 6], ["--deadline-ms", 1500]) as cluster:
        stream = client_of(cluster).completions.create(model="tiny random llama", prompt="x", max_tokens=50, stream=True)
        with pytest.raises(openai.APIError) as caught:
            for _ in stream:
                pass
        assert "deadline" in str(caught.value) or "time" in str(caught.value), caught.value


def test_retries_until_served(baton, tiny, logs):
    """Without workers the client is told when to come again, and is served once they are there."""
    with front(baton, tiny, logs, None) as cluster:
        with pytest.raises(openai.InternalServerError) as caught:
            client_of(cluster).completions.create(model="tiny random llama", prompt="x")
        assert caught.value.status_code == 503
        assert caught.value.response.headers["retry-after"].isdigit()
        patient = openai.OpenAI(base_url=cluster.url + "/v1", api_key="none", max_retries=20)
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(patient.completions.create, model="tiny random llama", prompt="x", max_tokens=3)
            cluster.wait_for(lambda: cluster.metrics()['baton_requests_refused_total{reason="unavailable"}'] >= 2,
                             "it was refused once more")
            start_mock(cluster, "--by-index")
            assert waiting.result().usage.completion_tokens == 3


def test_closing_a_stream_cancels(server, client):
    before = server.metrics()['baton_requests_ended_total{reason="cancelled"}']
    stream = client.completions.create(model="tiny", prompt="x", max_tokens=8000, stream=True)
    next(iter(stream))
    stream.close()
    server.wait_for(lambda: server.metrics()['baton_requests_ended_total{reason="cancelled"}'] == before + 1,
                    "the request is cancelled")


MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is a KV cache?"}]


@pytest.mark.slow
def test_chat_on_real_workers(baton, smollm2, logs):
    """A conversation through the model's own template, on a prefill and a decode worker."""
    with Cluster(baton, smollm2, logs, worker_args=["--kv-tokens", 4096]) as cluster:
        client = client_of(cluster)
        (model,) = client.models.list().data
        arguments = {"model": model.id, "messages": MESSAGES, "temperature": 0, "max_tokens": 24}
        answer = client.chat.completions.create(**arguments)
        message = answer.choices[0].message
        assert message.role == "assistant" and len(message.content) > 20
        assert answer.object == "chat.completion" and answer.id.startswith("chatcmpl-")
        chunks = list(client.chat.completions.create(**arguments, stream=True, stream_options={"include_usage": True}))
        assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == message.content
        assert chunks[0].choices[0].delta.role == "assistant"
        usage = chunks[-1].usage
        assert chunks[-1].choices == []
        assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (
            answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens)
        assert answer.usage.prompt_tokens_details.cached_tokens == 0
        assert 0 < usage.prompt_tokens_details.cached_tokens < usage.prompt_tokens, "the same prompt again"
        parts = [{"role": "system", "content": [{"type": "text", "text": "Be brief."}]}, MESSAGES[1]]
        again = client.chat.completions.create(**{**arguments, "messages": parts})
        assert again.choices[0].message.content == message.content
        seeded = [client.chat.completions.create(**{**arguments, "temperature": 1}, seed=9).choices[0].message.content
                  for _ in range(2)]
        assert seeded[0] == seeded[1]
        tokens = cluster.request("POST", "/tokenize", {"messages": MESSAGES})
        assert tokens[0] == 200 and len(tokens[2]) > 50
