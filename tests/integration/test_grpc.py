"""The public gRPC service with grpcio: the same tokens as by HTTP, errors, cancels, deadlines, health, reflection."""
import asyncio
import json
import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
import grpc.aio
import pytest
import stubs
from cluster import Cluster
from front import front, live
from google.protobuf import descriptor_pool
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from grpc_status import rpc_status

pb, rpc = stubs.load("inference.proto")
SERVICES = {"baton.v1.Inference", "grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection",
            "grpc.reflection.v1alpha.ServerReflection"}


@pytest.fixture(scope="module")
def cluster(baton, tiny, tmp_path_factory):
    with Cluster(baton, tiny, tmp_path_factory.mktemp("logs"), router_args=["--served-model-name", "tiny"]) as it:
        yield it


MOCK = ["--by-index", "--interval-us", 1000, "--max-context", 1 << 22]
FAST = ["--by-index", "--interval-us", 100, "--max-context", 1 << 22]
HOLD = ["--hold", "--max-context", 1 << 22]


@pytest.fixture(scope="module")
def mock(baton, tiny, tmp_path_factory):
    with front(baton, tiny, tmp_path_factory.mktemp("logs"), MOCK) as it:
        yield it


@pytest.fixture
def stub(cluster):
    with stubs.channel(cluster) as channel:
        yield rpc.InferenceStub(channel)


def collect(call):
    """Tokens by choice, prompt scores, and the end."""
    choices, scores, end = {}, [], None
    for response in call:
        assert end is None, "something came after the end"
        scores += response.prompt_scores
        for token in response.tokens:
            row = choices.setdefault(token.choice, [])
            assert token.index == len(row)
            row.append(token)
        end = response.end if response.HasField("end") else None
    assert end is not None
    return choices, scores, end


def sampling(max_tokens=12, **fields):
    return pb.SamplingParams(max_tokens=max_tokens, seed=7, ignore_eos=True, **fields)


def refused(call, code):
    """The error of a call, with its details by type."""
    with pytest.raises(grpc.RpcError) as caught:
        list(call) if hasattr(call, "__next__") else call
    error = caught.value
    assert error.code() == code, error
    details = {}
    for detail in rpc_status.from_call(error).details:
        for kind in (error_details_pb2.ErrorInfo, error_details_pb2.BadRequest, error_details_pb2.RetryInfo):
            if detail.Is(kind.DESCRIPTOR):
                details[kind.__name__] = kind()
                detail.Unpack(details[kind.__name__])
    assert details["ErrorInfo"].domain == "baton"
    return error, details


# ---- the same tokens by both doors ----

def same_as_http(cluster, stub, given, path, body):
    fields = {"temperature": 0.8, "top_p": 0.9, "repetition_penalty": 1.1}
    status, _, data = cluster.request("POST", path, {
        **body, **fields, "max_tokens": 12, "seed": 7, "ignore_eos": True, "return_token_ids": True,
        "return_logits_hash": True})
    assert status == 200, data
    choice = json.loads(data)["choices"][0]
    choices, _, end = collect(stub.Generate(pb.GenerateRequest(
        **given, return_logits_hash=True, sampling=sampling(**fields))))
    assert [t.id for t in choices[0]] == choice["token_ids"]
    assert "".join(t.text for t in choices[0]) == (choice["text"] if "text" in choice else choice["message"]["content"])
    assert [f"{t.logits_hash:016x}" for t in choices[0]] == choice["logits_hashes"]
    assert choices[0][-1].finish_reason == pb.FINISH_REASON_LENGTH
    assert end.choices[0].completion_tokens == end.usage.completion_tokens == 12
    assert end.exactness == pb.EXACTNESS_SAME_BITS and end.resumed == 0
    assert end.placement == "split" and end.prefill_worker == "prefill-0" and end.decode_worker == "decode-0"


@pytest.mark.parametrize("prompt", ["hello w\u00f6rld", [7, 9, 300, 12] * 9], ids=["text", "tokens"])
def test_same_tokens_as_http(cluster, stub, prompt):
    given = {"text": prompt} if isinstance(prompt, str) else {"tokens": pb.TokenIds(ids=prompt)}
    same_as_http(cluster, stub, given, "/v1/completions", {"prompt": prompt})


def test_chat(baton, smollm2, logs):
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello <|im_end|> you"}]
    chat = pb.Chat(messages=[pb.ChatMessage(**m) for m in messages])
    with Cluster(baton, smollm2, logs, worker_args=["--kv-tokens", 4096]) as cluster, stubs.channel(cluster) as channel:
        stub = rpc.InferenceStub(channel)
        same_as_http(cluster, stub, {"chat": chat}, "/v1/chat/completions", {"messages": messages})
        whole = list(stub.Tokenize(pb.TokenizeRequest(chat=chat)).ids)
        assert whole == json.loads(cluster.request("POST", "/tokenize", {"messages": messages})[2])["tokens"]
        chat.add_generation_prompt = False
        begun = list(stub.Tokenize(pb.TokenizeRequest(chat=chat)).ids)
        assert whole[:len(begun)] == begun and len(whole) > len(begun)
        chat.messages[0].content = "a\0b"
        refused(stub.Generate(pb.GenerateRequest(chat=chat)), grpc.StatusCode.INVALID_ARGUMENT)


def test_end_event(cluster, stub):
    _, _, end = collect(stub.Generate(pb.GenerateRequest(tokens=pb.TokenIds(ids=range(5, 45)), sampling=sampling())))
    stages = end.stages
    assert end.usage.prompt_tokens == 40
    assert 0 < stages.ttft_us <= stages.total_us and stages.kv_bytes > 0
    assert stages.total_us == sum(getattr(stages, name + "_us") for name in (
        "queue", "placement", "prefill_wait", "prefill", "transfer", "join", "decode", "moved", "network"))
    assert end.verdict.phase in ("ok", "start", "stream")
    assert cluster.json(f"/debug/requests?id={end.request_id}")["requests"][0]["decode_worker"] == "decode-0"
    _, _, again = collect(stub.Generate(pb.GenerateRequest(tokens=pb.TokenIds(ids=range(5, 45)), sampling=sampling())))
    assert again.usage.cached_tokens == 32


def test_choices_equal_single_requests(stub):
    many, _, end = collect(stub.Generate(pb.GenerateRequest(text="tell me", n=3, sampling=sampling())))
    assert sorted(many) == [0, 1, 2] and [c.completion_tokens for c in end.choices] == [12] * 3
    for i in range(3):
        request = pb.GenerateRequest(text="tell me", sampling=sampling())
        request.sampling.seed = 7 + i
        one, _, _ = collect(stub.Generate(request))
        assert [t.id for t in many[i]] == [t.id for t in one[0]]


def test_resumed_stream_is_the_same(baton, tiny, logs):
    """The decode worker dies in mid-stream: the stream goes on from the other one, with the same tokens."""
    with Cluster(baton, tiny, logs, decode=2) as cluster, stubs.channel(cluster) as channel:
        stub = rpc.InferenceStub(channel)
        request = pb.GenerateRequest(text="once", return_logits_hash=True, sampling=sampling(900))
        whole, _, end = collect(stub.Generate(request))
        assert end.resumed == 0
        expected = [(t.index, t.id, t.logits_hash) for t in whole[0]]
        resumed = 0
        for _ in range(20):  # until one is killed before its stream has ended
            call = stub.Generate(request)
            rows = list(next(call).tokens)
            live_ones = [r for r in cluster.json("/debug/requests?limit=1")["requests"] if r["state"] != "ended"]
            name = live_ones[0]["decode_worker"] if live_ones else ""
            if name:
                cluster.workers[name].kill()
            for response in call:
                rows += response.tokens
            assert [(t.index, t.id, t.logits_hash) for t in rows] == expected
            assert response.end.exactness == pb.EXACTNESS_SAME_BITS
            resumed = response.end.resumed
            if resumed:
                assert response.end.decode_worker != name
                break
            if name:
                cluster.restart_worker(name).wait_ready()
        assert resumed


def test_logprobs(stub):
    ids = list(range(20, 40))
    choices, scores, _ = collect(stub.Generate(pb.GenerateRequest(
        tokens=pb.TokenIds(ids=ids), sampling=sampling(logprobs=3, prompt_logprobs=2, temperature=0))))
    assert [s.position for s in scores] == list(range(1, 20))
    assert all(len(s.logprobs.top) == 2 for s in scores)
    for token in choices[0]:
        assert len(token.logprobs.top) == 3
        assert token.logprobs.top[0].id == token.id and token.logprobs.top[0].logprob == token.logprobs.logprob
        assert all(t.token for t in token.logprobs.top)
    plain, _, _ = collect(stub.Generate(pb.GenerateRequest(tokens=pb.TokenIds(ids=ids), sampling=sampling(temperature=0))))
    assert [t.id for t in plain[0]] == [t.id for t in choices[0]] and not plain[0][0].HasField("logprobs")


def test_stops_and_bias(stub):
    def first(**fields):
        return collect(stub.Generate(pb.GenerateRequest(text="abc", sampling=sampling(temperature=0, **fields))))

    forced = [pb.TokenBias(token=72, bias=100)]
    choices, _, end = first(logit_bias=forced)
    assert [t.id for t in choices[0]] == [72] * 12 and {t.text for t in choices[0]} == {"f"}
    choices, _, end = first(logit_bias=forced, stop=["zzz", "fff"])
    assert "".join(t.text for t in choices[0]) == ""
    assert end.choices[0].finish_reason == pb.FINISH_REASON_STOP and end.choices[0].stop == "fff"
    choices, _, end = first(logit_bias=forced, stop_token_ids=[72])
    assert len(choices[0]) == 1 and end.choices[0].stop_token_id == 72
    assert end.choices[0].WhichOneof("matched_stop") == "stop_token_id"


def test_tokenize_and_list_models(cluster, stub):
    ids = json.loads(cluster.request("POST", "/tokenize", {"prompt": "hello world"})[2])
    answer = stub.Tokenize(pb.TokenizeRequest(text="hello world"))
    assert list(answer.ids) == ids["tokens"] and answer.max_context == ids["max_model_len"]
    assert list(stub.Tokenize(pb.TokenizeRequest(text="")).ids) == []
    (model,) = stub.ListModels(pb.ListModelsRequest()).models
    assert model.id == "tiny" and model.max_context == answer.max_context and model.created > 1e9


# ---- errors ----

@pytest.mark.parametrize("request_fields, code, field, reason", [
    ({"text": "a", "sampling": {"temperature": 3}}, "INVALID_ARGUMENT", "sampling.temperature", ""),
    ({"text": "a", "sampling": {"top_p": 0}}, "INVALID_ARGUMENT", "sampling.top_p", ""),
    ({"text": "a", "sampling": {"max_tokens": 0}}, "INVALID_ARGUMENT", "sampling.max_tokens", ""),
    ({"text": "a", "sampling": {"stop": ["a"] * 5}}, "INVALID_ARGUMENT", "sampling.stop", ""),
    ({"text": "a", "sampling": {"stop": [""]}}, "INVALID_ARGUMENT", "sampling.stop", ""),
    ({"text": "a", "sampling": {"stop_token_ids": [4000000000]}}, "INVALID_ARGUMENT", "sampling.stop_token_ids", ""),
    ({"text": "a", "sampling": {"logprobs": 21}}, "INVALID_ARGUMENT", "sampling.logprobs", ""),
    ({"text": "a", "sampling": {"logit_bias": [{"token": 1, "bias": 101}]}}, "INVALID_ARGUMENT", "sampling.logit_bias", ""),
    ({"text": "a", "n": 129}, "INVALID_ARGUMENT", "n", ""),
    ({"text": "a", "n": 0}, "INVALID_ARGUMENT", "n", ""),
    ({"text": "a", "cache_salt": "s" * 64}, "INVALID_ARGUMENT", "cache_salt", ""),
    ({"tokens": {"ids": []}}, "INVALID_ARGUMENT", "tokens.ids", ""),
    ({"tokens": {"ids": [1, 60000]}}, "INVALID_ARGUMENT", "tokens.ids", ""),
    ({"chat": {"messages": []}}, "INVALID_ARGUMENT", "chat.messages", ""),
    ({"chat": {"messages": [{"role": "wizard", "content": "x"}]}}, "INVALID_ARGUMENT", "chat.messages[0].role", ""),
    ({}, "INVALID_ARGUMENT", "prompt", ""),
    ({"text": "a", "model": "other"}, "NOT_FOUND", "model", "MODEL_NOT_FOUND"),
    ({"text": "a", "sampling": {"max_tokens": 100000}}, "INVALID_ARGUMENT", "text", "CONTEXT_LENGTH_EXCEEDED"),
])
def test_refusals_name_the_field(stub, request_fields, code, field, reason):
    call = stub.Generate(pb.GenerateRequest(**request_fields))
    error, details = refused(call, grpc.StatusCode[code])
    (violation,) = details["BadRequest"].field_violations
    assert violation.field == field and violation.description == error.details()
    assert details["ErrorInfo"].reason == (reason or code)
    assert call.initial_metadata() == () and "RetryInfo" not in details


def test_not_a_message(cluster):
    with stubs.channel(cluster) as channel:
        method = channel.unary_stream("/baton.v1.Inference/Generate")
        refused(method(b"\x0a\x05ab"), grpc.StatusCode.INVALID_ARGUMENT)
        refused(method(b"\x12\x02\xff\xfe"), grpc.StatusCode.INVALID_ARGUMENT)  # text that is not UTF-8
        refused(channel.unary_stream("/baton.v1.Inference/Nope")(b""), grpc.StatusCode.UNIMPLEMENTED)


def test_request_id(stub):
    def id_of(metadata, request=pb.GenerateRequest(text="a", sampling=sampling(2))):
        call = stub.Generate(request, metadata=metadata)
        list(call)
        return dict(call.initial_metadata())["x-request-id"]

    assert id_of([("x-request-id", "mine-1")]) == "mine-1"
    assert len(id_of([])) == 16
    assert len(id_of([("x-request-id", "x" * 65)])) == 16
    _, call = stub.ListModels.with_call(pb.ListModelsRequest(), metadata=[("x-request-id", "mine-2")])
    assert dict(call.initial_metadata())["x-request-id"] == "mine-2"
    call = stub.Generate(pb.GenerateRequest(text="a", model="no"), metadata=[("x-request-id", "mine-3")])
    refused(call, grpc.StatusCode.NOT_FOUND)
    assert dict(call.trailing_metadata())["x-request-id"] == "mine-3"


def test_busy_and_nobody_there(baton, tiny, logs):
    with front(baton, tiny, logs, None) as cluster, stubs.channel(cluster) as channel:
        stub = rpc.InferenceStub(channel)
        _, details = refused(stub.Generate(pb.GenerateRequest(text="a")), grpc.StatusCode.UNAVAILABLE)
        assert details["RetryInfo"].retry_delay.ToMilliseconds() > 0
    with front(baton, tiny, logs, HOLD, ["--max-requests", 2]) as cluster, stubs.channel(cluster) as channel:
        stub = rpc.InferenceStub(channel)
        held = [stub.Generate(pb.GenerateRequest(text="a", sampling=sampling())) for _ in range(2)]
        cluster.wait_for(lambda: live(cluster) == 2, "both are in the router")
        _, details = refused(stub.Generate(pb.GenerateRequest(text="a")), grpc.StatusCode.RESOURCE_EXHAUSTED)
        assert details["RetryInfo"].retry_delay.ToMilliseconds() > 0
        for call in held:
            call.cancel()


def test_a_refused_call_can_be_retried(baton, tiny, logs):
    """By the client's own retry policy, since nothing was sent back but the status."""
    policy = json.dumps({"methodConfig": [{"name": [{}], "retryPolicy": {
        "maxAttempts": 5, "initialBackoff": "0.2s", "maxBackoff": "1s", "backoffMultiplier": 2,
        "retryableStatusCodes": ["UNAVAILABLE"]}}]})
    with front(baton, tiny, logs, None) as cluster, \
            stubs.channel(cluster, ("grpc.service_config", policy), ("grpc.enable_retries", 1)) as channel:
        refused(rpc.InferenceStub(channel).Generate(pb.GenerateRequest(text="a")), grpc.StatusCode.UNAVAILABLE)
        assert cluster.metrics()["baton_grpc_refused_total"] == 5


# ---- cancels, deadlines, slow readers, many ----

def long_request(n=500_000):
    return pb.GenerateRequest(tokens=pb.TokenIds(ids=[5, 6, 7]), sampling=sampling(n))


def test_cancel_frees_everything(mock):
    with stubs.channel(mock) as channel:
        calls = [rpc.InferenceStub(channel).Generate(long_request()) for _ in range(8)]
        for call in calls:
            next(call)
        assert live(mock) == 8
        for call in calls:
            call.cancel()
        mock.wait_for(lambda: live(mock) == 0, "every request has ended")
        last = mock.json("/debug/requests?limit=8")["requests"]
        assert {r["status"] for r in last} == {"cancelled"}


@pytest.mark.parametrize("args", [MOCK, HOLD], ids=["streaming", "waiting"])
def test_deadline_of_the_caller(baton, tiny, logs, args):
    with front(baton, tiny, logs, args) as cluster, stubs.channel(cluster) as channel:
        call = rpc.InferenceStub(channel).Generate(long_request(), timeout=0.5)
        with pytest.raises(grpc.RpcError) as caught:
            list(call)
        assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        cluster.wait_for(lambda: live(cluster) == 0, "it has ended in the router")


def test_deadline_of_the_router(baton, tiny, logs):
    with front(baton, tiny, logs, HOLD, ["--deadline-ms", 300]) as cluster, stubs.channel(cluster) as channel:
        error, _ = refused(rpc.InferenceStub(channel).Generate(long_request()), grpc.StatusCode.DEADLINE_EXCEEDED)
        assert error.details()


def test_slow_reader_pauses_its_own_stream_only(baton, tiny, logs):
    with front(baton, tiny, logs, FAST) as cluster, stubs.channel(cluster) as channel:
        stub = rpc.InferenceStub(channel)
        slow = stub.Generate(long_request(40000))
        rows = len(next(slow).tokens)
        for _ in range(3):
            choices, _, _ = collect(stub.Generate(long_request(500)))
            assert len(choices[0]) == 500
        for response in slow:
            for token in response.tokens:
                assert token.index == rows and token.id == 100 + rows % (500 - 100)
                rows += 1
        assert rows == 40000


def test_reader_that_never_reads_is_cancelled(baton, tiny, logs):
    with front(baton, tiny, logs, FAST, ["--client-stuck-ms", 500]) as cluster, \
            stubs.channel(cluster, ("grpc.http2.bdp_probe", 0)) as channel:
        call = rpc.InferenceStub(channel).Generate(long_request())
        next(call)
        cluster.wait_for(lambda: live(cluster) == 0, "it was given up")
        with pytest.raises(grpc.RpcError) as caught:
            list(call)
        assert caught.value.code() == grpc.StatusCode.CANCELLED


def test_many_streams_at_once(mock):
    barrier = threading.Barrier(200)
    with stubs.channel(mock) as channel, ThreadPoolExecutor(200) as pool:
        stub = rpc.InferenceStub(channel)

        def one(_):
            call = stub.Generate(long_request(1000))
            n = len(next(call).tokens)
            barrier.wait(60)  # all of them have begun and none has ended
            return n + sum(len(r.tokens) for r in call)

        assert list(pool.map(one, range(200))) == [1000] * 200
    mock.wait_for(lambda: live(mock) == 0, "every request has ended")


@pytest.mark.slow
def test_two_thousand_streams(baton, tiny, logs):
    """Open all at once, over 8 connections; each complete."""
    async def all_of(cluster, n=2000, n_tokens=100):
        channels = [grpc.aio.insecure_channel(cluster.grpc, options=[("grpc.use_local_subchannel_pool", 1)])
                    for _ in range(8)]
        begun, all_begun = 0, asyncio.Event()

        async def one(i):
            nonlocal begun
            rows = 0
            async for response in rpc.InferenceStub(channels[i % 8]).Generate(long_request(n_tokens)):
                if not rows:
                    begun += 1
                    if begun == n:
                        all_begun.set()
                    await all_begun.wait()
                rows += len(response.tokens)
            return rows

        rows = await asyncio.gather(*[one(i) for i in range(n)])
        for channel in channels:
            await channel.close()
        assert rows == [n_tokens] * n

    with front(baton, tiny, logs, [*MOCK, "--max-seqs", 4096], ["--max-requests", 8192]) as cluster:
        asyncio.run(asyncio.wait_for(all_of(cluster), 120))
        assert live(cluster) == 0


# ---- health, drain, reflection ----

def test_health_by_name(cluster):
    with stubs.channel(cluster) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for name in ["", "liveness", "readiness", *SERVICES]:
            answer = health.Check(health_pb2.HealthCheckRequest(service=name))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING, name
        with pytest.raises(grpc.RpcError) as caught:
            health.Check(health_pb2.HealthCheckRequest(service="other"))
        assert caught.value.code() == grpc.StatusCode.NOT_FOUND
        watch = health.Watch(health_pb2.HealthCheckRequest(service="other"))
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
        watch.cancel()


def test_health_follows_workers(baton, tiny, logs):
    with front(baton, tiny, logs, None) as cluster, stubs.channel(cluster) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        watch = health.Watch(health_pb2.HealthCheckRequest(service="readiness"))
        assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
        live_one = health.Check(health_pb2.HealthCheckRequest(service="liveness"))
        assert live_one.status == health_pb2.HealthCheckResponse.SERVING
        cluster.start_worker("decode", "decode-0")
        cluster.start_worker("prefill", "prefill-0")
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        watch.cancel()


def test_drain(baton, tiny, logs):
    with front(baton, tiny, logs, MOCK) as cluster, stubs.channel(cluster) as channel:
        stub, health = rpc.InferenceStub(channel), health_pb2_grpc.HealthStub(channel)
        watch = health.Watch(health_pb2.HealthCheckRequest(service="baton.v1.Inference"))
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        call = stub.Generate(long_request(1500))
        rows = len(next(call).tokens)
        cluster.router.process.terminate()
        assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
        _, details = refused(stub.Generate(long_request()), grpc.StatusCode.UNAVAILABLE)
        assert "RetryInfo" in details
        end = None
        for response in call:
            rows += len(response.tokens)
            end = response.end if response.HasField("end") else end
        assert rows == 1500 and end is not None
        assert cluster.router.process.wait(20) == 0
        with pytest.raises(grpc.RpcError):
            list(watch)


def test_reflection(cluster):
    with stubs.channel(cluster) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        assert set(database.get_services()) == SERVICES
        pool = descriptor_pool.DescriptorPool(database)
        for name in SERVICES:
            service = pool.FindServiceByName(name)
            for method in service.methods:
                assert method.input_type.fields_by_name or method.input_type.name == "ListModelsRequest"
        assert pool.FindMessageTypeByName("baton.v1.SamplingParams").fields_by_name["top_k"].number == 3
        assert pool.FindFileByName("grpc/health/v1/health.proto").package == "grpc.health.v1"
        with pytest.raises(KeyError):
            pool.FindMessageTypeByName("baton.v1.Nope")
        with pytest.raises(KeyError):
            pool.FindMessageTypeByName("baton.v1.Registry")  # not for the public


def test_reflection_v1(cluster):
    v1, v1_rpc = stubs.load("grpc/reflection/v1/reflection.proto")
    with stubs.channel(cluster) as channel:
        asked = [v1.ServerReflectionRequest(list_services="*"),
                 v1.ServerReflectionRequest(host="h", file_containing_symbol="baton.v1.Inference.Generate"),
                 v1.ServerReflectionRequest(file_containing_symbol="baton.v1.Inference.Nope"),
                 v1.ServerReflectionRequest(all_extension_numbers_of_type="baton.v1.Token"),
                 v1.ServerReflectionRequest(file_by_filename="registry.proto")]
        listed, found, unknown, extensions, hidden = v1_rpc.ServerReflectionStub(channel).ServerReflectionInfo(iter(asked))
        assert {s.name for s in listed.list_services_response.service} == SERVICES
        assert b"GenerateRequest" in found.file_descriptor_response.file_descriptor_proto[0]
        assert found.valid_host == "h" and found.original_request == asked[1]
        assert unknown.error_response.error_code == hidden.error_response.error_code == 5
        assert extensions.all_extension_numbers_response.base_type_name == "baton.v1.Token"
