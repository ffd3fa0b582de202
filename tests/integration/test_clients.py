"""Unmodified client libraries against a prefill and a decode worker, plain and under TLS with an API key: openai, litellm,
langchain, llama-index.

Each asks for the same chat, greedily, so each must get the same text; what a library does not hand through (logprobs,
several choices) is left out there and tested where it does.
"""
import hashlib
import os
import socket
import ssl

import pytest

# Libraries that would call home, or fetch price lists and vocabularies, are told not to before they are imported.
os.environ.update({"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_TELEMETRY": "False", "LANGSMITH_TRACING": "false",
                   "LANGCHAIN_TRACING_V2": "false", "HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1"})

from certificates import make_certs  # noqa: E402
from cluster import Cluster  # noqa: E402

MODEL, KEY = "baton-test", "sk-of-the-tests"
TEXT = "Name the capital of France."
MESSAGES = [{"role": "user", "content": TEXT}]
MAX = 12
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def certs(baton, tmp_path_factory):
    """Certificates whose authority the libraries trust; named before any of them makes its first TLS context."""
    certs = make_certs(baton, tmp_path_factory.mktemp("tls") / "certs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSL_CERT_FILE", str(certs / "ca.pem"))
        yield certs


@pytest.fixture(scope="module", params=["plain", "TLS and a key"])
def cluster(request, baton, smollm2, certs, tmp_path_factory):
    router, options = ["--served-model-name", MODEL], {"worker_args": ["--kv-tokens", 8192]}
    if request.param != "plain":
        keys = tmp_path_factory.mktemp("keys") / "keys"
        keys.write_text(f"tester:{hashlib.sha256(KEY.encode()).hexdigest()}\n")
        router += ["--http-tls-cert", certs / "http.pem", "--http-tls-key", certs / "http-key.pem",
                   "--api-key-file", keys]
        options.update(tls=certs, https=ssl.create_default_context(cafile=certs / "ca.pem"))
    with Cluster(baton, smollm2, tmp_path_factory.mktemp("logs"), router_args=router, **options) as cluster:
        yield cluster


@pytest.fixture(autouse=True)
def loopback_only(monkeypatch):
    """Whatever a library tries, nothing leaves this machine, and a try fails the test."""
    connect, tried = socket.socket.connect, []

    def checked(self, address):
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in ("127.0.0.1", "::1"):
            tried.append(address)
            raise OSError(f"{address} is not loopback")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", checked)
    yield
    assert not tried, tried


@pytest.fixture(scope="module")
def openai_client(cluster):
    import openai
    return openai.OpenAI(base_url=cluster.url + "/v1", api_key=KEY, max_retries=0)


@pytest.fixture(scope="module")
def expected(openai_client):
    """The text of the chat, by the first of the clients."""
    answer = openai_client.chat.completions.create(model=MODEL, messages=MESSAGES, temperature=0, max_tokens=MAX)
    assert answer.choices[0].message.content.strip()
    return answer


# ---- openai ----

def test_openai_chat(openai_client, expected):
    arguments = {"model": MODEL, "messages": MESSAGES, "temperature": 0, "max_tokens": MAX, "user": "u",
                 "metadata": {"a": "b"}, "logit_bias": {}}
    *chunks, last = openai_client.chat.completions.create(**arguments, stream=True,
                                                          stream_options={"include_usage": True})
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == expected.choices[0].message.content
    assert last.usage.completion_tokens == expected.usage.completion_tokens == len(chunks)
    assert last.usage.prompt_tokens_details.cached_tokens > 0, "the same prompt was here before"
    two = openai_client.chat.completions.create(**{**arguments, "temperature": 1, "seed": 4}, n=2)
    assert [c.index for c in two.choices] == [0, 1]
    one = openai_client.chat.completions.create(**{**arguments, "temperature": 1, "seed": 5})
    assert two.choices[1].message.content == one.choices[0].message.content


def test_openai_logprobs(openai_client, expected):
    answer = openai_client.chat.completions.create(model=MODEL, messages=MESSAGES, temperature=0, max_tokens=MAX,
                                                   logprobs=True, top_logprobs=2)
    content = answer.choices[0].logprobs.content
    assert len(content) == answer.usage.completion_tokens
    shown = b"".join(bytes(entry.bytes) for entry in content).decode()
    assert shown.removesuffix("<|im_end|>") == expected.choices[0].message.content
    assert all(len(e.top_logprobs) == 2 and e.top_logprobs[0].logprob == e.logprob for e in content)
    legacy = openai_client.completions.create(model=MODEL, prompt="The capital of", temperature=0, max_tokens=4,
                                              logprobs=1, echo=True, n=2)
    for choice in legacy.choices:
        assert choice.text.startswith("The capital of")
        assert choice.logprobs.token_logprobs[0] is None and choice.logprobs.token_logprobs[-1] <= 0
        assert "".join(choice.logprobs.tokens) == choice.text
        assert [choice.text[at:].startswith(t) for t, at in zip(choice.logprobs.tokens, choice.logprobs.text_offset)]


def test_openai_stop(openai_client, expected):
    text = expected.choices[0].message.content
    stop = text.split()[2]
    answer = openai_client.chat.completions.create(model=MODEL, messages=MESSAGES, temperature=0, max_tokens=MAX,
                                                   stop=stop)
    assert answer.choices[0].message.content == text.split(stop)[0]
    assert answer.choices[0].finish_reason == "stop"


def test_openai_errors(openai_client):
    import openai
    for error, param, code, arguments in (
            (openai.NotFoundError, "model", "model_not_found", {"model": "other", "messages": MESSAGES}),
            (openai.BadRequestError, "messages", "missing_required_parameter", {"model": MODEL, "messages": None}),
            (openai.BadRequestError, "messages", "context_length_exceeded",
             {"model": MODEL, "messages": MESSAGES, "max_tokens": 100000}),
            (openai.BadRequestError, "temperature", "decimal_above_max_value",
             {"model": MODEL, "messages": MESSAGES, "temperature": 3}),
            (openai.BadRequestError, "tools", "unsupported_parameter",
             {"model": MODEL, "messages": MESSAGES,
              "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}]}),
            (openai.BadRequestError, "response_format", "unsupported_parameter",
             {"model": MODEL, "messages": MESSAGES, "response_format": {"type": "json_object"}})):
        with pytest.raises(error) as caught:
            openai_client.chat.completions.create(**arguments)
        got = caught.value
        assert (got.param, got.code, got.type) == (param, code, "invalid_request_error"), got.body
        assert got.message


# ---- litellm ----

def litellm_arguments(cluster, prefix):
    return {"model": f"{prefix}/{MODEL}", "api_base": cluster.url + "/v1", "api_key": KEY, "messages": MESSAGES,
            "temperature": 0, "max_tokens": MAX, "num_retries": 0}


@pytest.mark.parametrize("prefix", ["openai", "hosted_vllm"])
def test_litellm(cluster, expected, prefix):
    import litellm
    arguments = litellm_arguments(cluster, prefix)
    text = expected.choices[0].message.content
    answer = litellm.completion(**arguments)
    assert answer.choices[0].message.content == text
    assert answer.usage.completion_tokens == expected.usage.completion_tokens
    chunks = list(litellm.completion(**arguments, stream=True, stream_options={"include_usage": True}))
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == text
    stop = text.split()[2]
    assert litellm.completion(**arguments, stop=[stop]).choices[0].message.content == text.split(stop)[0]
    two = litellm.completion(**arguments, n=2, logprobs=True, top_logprobs=1)
    assert [c.message.content for c in two.choices] == [text, text]
    assert two.choices[1].logprobs.content[0].logprob <= 0


def test_litellm_text_and_errors(cluster, expected):
    import litellm
    arguments = {key: value for key, value in litellm_arguments(cluster, "openai").items() if key != "messages"}
    arguments["model"] = f"text-completion-openai/{MODEL}"
    answer = litellm.text_completion(**arguments, prompt="The capital of")
    chunks = litellm.text_completion(**arguments, prompt="The capital of", stream=True)
    assert "".join(c.choices[0].text or "" for c in chunks) == answer.choices[0].text != ""
    arguments = litellm_arguments(cluster, "openai")
    with pytest.raises(litellm.ContextWindowExceededError):
        litellm.completion(**{**arguments, "max_tokens": 100000})
    with pytest.raises(litellm.NotFoundError):
        litellm.completion(**{**arguments, "model": "openai/other"})
    with pytest.raises(litellm.BadRequestError):
        litellm.completion(**{**arguments, "temperature": 3})


# ---- langchain ----

def test_langchain(cluster, expected):
    from langchain_core.messages import HumanMessage
    from langchain_openai import ChatOpenAI, OpenAI
    options = {"model": MODEL, "base_url": cluster.url + "/v1", "api_key": KEY, "temperature": 0, "max_retries": 0}
    text = expected.choices[0].message.content
    chat = ChatOpenAI(**options, max_completion_tokens=MAX, stream_usage=True)
    answer = chat.invoke(TEXT)
    assert answer.content == text
    assert answer.usage_metadata["output_tokens"] == expected.usage.completion_tokens
    assert answer.response_metadata["finish_reason"] in ("stop", "length")
    chunks = list(chat.stream(TEXT))
    assert "".join(chunk.content for chunk in chunks) == text
    assert sum(chunk.usage_metadata["output_tokens"] for chunk in chunks if chunk.usage_metadata) == \
        expected.usage.completion_tokens
    stop = text.split()[2]
    assert chat.invoke(TEXT, stop=[stop]).content == text.split(stop)[0]
    scored = ChatOpenAI(**options, max_completion_tokens=MAX, logprobs=True, top_logprobs=2).invoke(TEXT)
    assert scored.response_metadata["logprobs"]["content"][0]["logprob"] <= 0
    two = ChatOpenAI(**options, max_completion_tokens=MAX, n=2).generate([[HumanMessage(TEXT)]])
    assert [generation.text for generation in two.generations[0]] == [text, text]
    plain = OpenAI(**options, max_tokens=4)
    both = plain.generate(["The capital of", "One, two,"]).generations
    assert len(both) == 2 and both[0][0].text and both[0][0].text != both[1][0].text
    assert "".join(plain.stream("The capital of")) == both[0][0].text


def test_langchain_errors(cluster):
    import openai
    from langchain_core.exceptions import ContextOverflowError
    from langchain_openai import ChatOpenAI
    options = {"base_url": cluster.url + "/v1", "api_key": KEY, "max_retries": 0}
    with pytest.raises(ContextOverflowError):
        ChatOpenAI(**options, model=MODEL, max_completion_tokens=100000).invoke(TEXT)
    with pytest.raises(openai.NotFoundError):
        ChatOpenAI(**options, model="other").invoke(TEXT)


# ---- llama-index ----

def test_llama_index(cluster, expected):
    import openai
    from llama_index.core.llms import ChatMessage
    from llama_index.llms.openai_like import OpenAILike
    options = {"model": MODEL, "api_base": cluster.url + "/v1", "api_key": KEY, "temperature": 0, "max_tokens": MAX,
               "max_retries": 0, "context_window": 8192, "is_chat_model": True}
    text = expected.choices[0].message.content
    llm = OpenAILike(**options)
    message = [ChatMessage(role="user", content=TEXT)]
    answer = llm.chat(message)
    assert answer.message.content == text
    assert answer.raw.usage.completion_tokens == expected.usage.completion_tokens
    assert "".join(part.delta or "" for part in llm.stream_chat(message)) == text
    stop = text.split()[2]
    assert llm.chat(message, stop=[stop]).message.content == text.split(stop)[0]
    scored = OpenAILike(**options, logprobs=True, top_logprobs=2).chat(message)
    assert scored.logprobs[0][0].logprob <= 0
    raw = llm.chat(message, n=2).raw
    assert [choice.message.content for choice in raw.choices] == [text, text]
    plain = OpenAILike(**{**options, "is_chat_model": False, "max_tokens": 4})
    whole = plain.complete("The capital of").text
    assert "".join(part.delta or "" for part in plain.stream_complete("The capital of")) == whole != ""
    with pytest.raises(openai.NotFoundError):
        OpenAILike(**{**options, "model": "other"}).chat(message)
    with pytest.raises(openai.BadRequestError) as caught:
        llm.chat(message, temperature=3)
    assert caught.value.param == "temperature"
