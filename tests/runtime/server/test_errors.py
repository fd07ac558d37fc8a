"""Errors: OpenAI's object, a telling status, the field at fault, and never a traceback."""

import asyncio
import logging
from typing import Any

import pytest

from fake_engine import FakeEngine
from serving import serving
from smartspec.scheduling.client import GenerationRequest, NotAcceptingError
from waiting import until


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", "hot"), ("temperature", -0.1), ("temperature", 2.5), ("top_p", 0), ("top_p", 1.5),
        ("top_k", -2), ("min_p", 2), ("seed", "x"), ("seed", 1.5), ("max_tokens", 0), ("max_tokens", "many"),
        ("n", 0), ("n", 99), ("stop", 5), ("stop", ["a"] * 17), ("stop", ""), ("stop", ["a", ""]),
        ("stop_token_ids", ["a"]), ("stop_token_ids", [-1]), ("min_tokens", 17), ("logprobs", 21), ("logprobs", -1),
        ("prompt_logprobs", 21), ("prompt_logprobs", {"prompt_logprobs": 1, "stream": True}), ("best_of", 17),
        ("best_of", {"best_of": 1, "n": 2}), ("best_of", {"best_of": 2, "stream": True}), ("echo", "yes"),
        ("presence_penalty", 2.1), ("frequency_penalty", -3), ("repetition_penalty", 0), ("logit_bias", [1]),
        ("logit_bias", {"logit_bias": {"a": 1}}), ("logit_bias", {"logit_bias": {"-1": 1}}),
        ("logit_bias", {"logit_bias": {"5": 101}}), ("logit_bias", {"logit_bias": {"1114112": 1}}),
        ("speculation.mode", {"speculation": {"mode": "always"}}),
        ("speculation.max_tokens", {"speculation": {"max_tokens": 33}}),
        ("speculation.max_tokens", {"speculation": {"mode": "fixed"}}),
        ("speculation.depth", {"speculation": {"depth": 2}}),
        ("stream_options.include_usage", {"stream_options": {"include_usage": "yes"}}),
        ("prompt", []), ("prompt", [[]]), ("prompt", [1, "a"]), ("prompt", [-1]), ("prompt", 7),
        ("prompt", None), ("prompt", ["a"] * 257),
        ("prompt", [1.5]), ("max_tokens", 400), ("stream", "yes"), ("prompt", [0x110000]), ("prompt", [2**31]),
        ("top_k", 2**63), ("top_k", 2**31), ("stop_token_ids", [2**31]),
    ],
)  # fmt: skip
async def test_bad_field_is_named(field: str, value: Any) -> None:
    """400, with `param` the field at fault, for every bound."""
    tokenless = {"prompt": [97]} if field != "prompt" else {}
    body = value if isinstance(value, dict) else {field: value}
    async with serving(FakeEngine()) as server:
        status, answer = await server.post("/v1/completions", **(tokenless | body))
    assert status == 400, answer
    assert answer["error"]["param"].split("[")[0] == field
    assert answer["error"]["type"] == "invalid_request_error"
    assert answer["error"]["message"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("suffix", "x"), ("top_logprobs", 2), ("use_beam_search", True),
        ("include_stop_str_in_output", True), ("skip_special_tokens", False),
        ("prediction", {"type": "content", "content": "x"}),
    ],
)  # fmt: skip
async def test_unsupported_field_is_refused_by_name(field: str, value: Any) -> None:
    """A field that would change the answer, and that we do not serve, is not silently ignored."""
    async with serving(FakeEngine()) as server:
        status, answer = await server.post("/v1/completions", prompt="a", **{field: value})
    assert status == 400
    assert answer["error"]["param"] == field
    assert answer["error"]["code"] == "unsupported_field"


async def test_unsupported_field_may_ask_for_nothing() -> None:
    """Clients send neutral values of fields they do not use: those are fine."""
    neutral = {"best_of": 1, "echo": False, "suffix": None, "presence_penalty": 0.0, "logit_bias": {}, "tools": []}
    async with serving(FakeEngine()) as server:
        status, _ = await server.post("/v1/completions", prompt="a", **neutral)
    assert status == 200


@pytest.mark.parametrize(
    "fields", [{"best_of": 2}, {"echo": True}, {"top_logprobs": 2}, {"top_logprobs": 21, "logprobs": True}]
)
async def test_chat_refuses_what_only_completions_have(fields: dict[str, Any]) -> None:
    """And log probabilities of other tokens without those of the chosen one."""
    async with serving(FakeEngine()) as server:
        messages = [{"role": "user", "content": "x"}]
        status, answer = await server.post("/v1/chat/completions", messages=messages, **fields)
    assert (status, answer["error"]["param"]) == (400, next(iter(fields)))


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b"3", b"\xff", b'{"prompt": "\xff"}', b'{"a": NaN}', b'{"a": ' + b"[" * 100_000]
)
async def test_body_that_is_no_json_object(data: bytes) -> None:
    """400 that says so."""
    async with serving(FakeEngine()) as server, server.public.post("/v1/completions", data=data) as response:
        answer = await response.json()
    assert response.status == 400
    assert answer["error"]["code"] == "invalid_json"


async def test_body_that_is_not_encoded_as_it_says() -> None:
    """Like any other body that cannot be read, it is its sender's mistake."""
    async with serving(FakeEngine()) as server:
        encoded = {"Content-Encoding": "gzip"}
        async with server.public.post("/v1/completions", data=b"plain", headers=encoded) as response:
            answer = await response.json()
    assert (response.status, answer["error"]["code"]) == (400, "invalid_body")


@pytest.mark.parametrize(
    "data", [b"X: my private key\0\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\nmy private prompt\r\n"]
)
async def test_what_is_no_http_leaves_no_trace_in_the_log(data: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """Bytes that a client sends where a request should be may be anything: a prompt, or somebody's key."""
    async with serving(FakeEngine()) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.public_port)
        writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\n" + data)
        assert b" 400 " in await reader.read()
        writer.close()
    assert "private" not in caplog.text
    assert "Traceback" not in caplog.text


async def test_lone_surrogate_is_no_accident() -> None:
    """JSON can spell text that no encoding can write; it gets an answer like any other body."""
    async with serving(FakeEngine()) as server:
        async with server.public.post("/v1/completions", data=rb'{"prompt": "\ud800"}') as response:
            assert response.status == 400


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/nowhere", 404), ("GET", "/v1/completions", 405), ("GET", "/v1/models/other", 404)],
)
async def test_wrong_route_or_method(method: str, path: str, status: int) -> None:
    """404 and 405 are error objects too."""
    async with serving(FakeEngine()) as server, server.public.request(method, path) as response:
        assert response.status == status
        assert (await response.json())["error"]["message"]


async def test_unknown_model_is_404() -> None:
    """A model that is not here, named as the field at fault."""
    async with serving(FakeEngine()) as server:
        status, answer = await server.post("/v1/completions", model="gpt-9", prompt="a")
    assert status == 404
    assert (answer["error"]["param"], answer["error"]["code"]) == ("model", "model_not_found")


async def test_large_body_is_413() -> None:
    """A body above the bound is refused, not read."""
    async with serving(FakeEngine(), max_body_bytes=1000) as server:
        status, answer = await server.post("/v1/completions", prompt="a" * 2000)
    assert status == 413
    assert answer["error"]["code"] == "body_too_large"


async def test_key_is_asked_for() -> None:
    """With a key, /v1 asks for it; probes, version and metrics do not."""
    async with serving(FakeEngine(), api_key="sesame") as server:
        status, answer = await server.post("/v1/completions", prompt="a")
        assert (status, answer["error"]["type"]) == (401, "authentication_error")
        for wrong in ("Bearer sesam", "sesame", "Bearer sesame2", "Bearer s\u00e9same"):
            async with server.public.get("/v1/models", headers={"Authorization": wrong}) as response:
                assert response.status == 401
        for path in ("/health", "/ready", "/version", "/metrics"):
            async with server.public.get(path) as response:
                assert response.status == 200
        async with server.public.get("/v1/models", headers={"Authorization": "Bearer sesame"}) as response:
            assert response.status == 200


async def test_full_queue_is_429_with_retry_after() -> None:
    """The engine's estimate is rounded up to whole seconds."""
    engine = FakeEngine(step_seconds=None, max_num_seqs=0, max_queued_requests=0)
    async with serving(engine) as server:
        async with server.public.post("/v1/completions", json={"prompt": "a"}) as response:
            assert response.status == 429
            assert response.headers["Retry-After"] == "3"
            assert (await response.json())["error"]["type"] == "rate_limit_error"
        async with server.public.get("/metrics") as response:
            assert 'smartspec_requests_rejected_total{model_name="fake"} 1.0' in await response.text()


async def test_choices_are_queued_all_or_none() -> None:
    """When the second choice finds the queue full, the first is aborted."""
    engine = FakeEngine(step_seconds=None, max_num_seqs=0, max_queued_requests=2)
    async with serving(engine) as server:
        first = asyncio.create_task(server.post("/v1/completions", prompt="a"))
        await until(lambda: engine.waiting)
        status, _ = await server.post("/v1/completions", prompt="a", n=2)
        assert status == 429
        assert len(engine.aborted) == 1
        assert len(engine.waiting) == 1
        first.cancel()


@pytest.mark.parametrize(("field", "body"), [("n", {"prompt": "a", "n": 4}), ("prompt", {"prompt": ["a"] * 4})])
async def test_more_sequences_than_an_idle_server_holds_are_refused_for_good(field: str, body: dict[str, Any]) -> None:
    """A 429 would say that waiting helps: a client that obeys would ask for ever."""
    engine = FakeEngine(max_num_seqs=2, max_queued_requests=1)
    async with serving(engine) as server:
        status, answer = await server.post("/v1/completions", **body)
        assert (status, answer["error"]["param"]) == (400, field)
        assert (await server.post("/v1/completions", prompt="a", n=3))[0] == 200


class BrokenEngine(FakeEngine):
    """Has a defect of ours."""

    def generate(self, request: GenerationRequest) -> Any:
        """Fail in a way nobody foresaw."""
        raise ZeroDivisionError("secret detail")


async def test_defect_of_ours_is_500_without_details(caplog: pytest.LogCaptureFixture) -> None:
    """The client learns nothing of our insides; the log has the traceback and not the prompt."""
    with caplog.at_level(logging.WARNING):
        async with serving(BrokenEngine()) as server:
            status, answer = await server.post("/v1/completions", prompt="my private prompt")
    assert status == 500
    assert answer["error"] == {"message": "internal error", "type": "internal_error", "param": None, "code": None}
    assert "secret detail" in caplog.text
    assert "private" not in caplog.text


async def test_engine_failure_ends_a_stream_with_an_error_event() -> None:
    """Once text has been sent the status cannot change: the last event says what happened, and no `[DONE]` lies."""
    engine = FakeEngine(step_seconds=None)
    async with serving(engine) as server:
        streaming = asyncio.create_task(server.stream("/v1/completions", prompt="ab", max_tokens=9))
        await until(lambda: engine.waiting)
        engine.step()
        engine.fail(NotAcceptingError("the engine failed"))
        first, last = await streaming
        assert first["choices"][0]["text"] == "ba"
        assert last["error"]["message"] == "the engine failed"
        status, _ = await server.get("/health")
        assert status == 503
        status, answer = await server.post("/v1/completions", prompt="a")
        assert (status, answer["error"]["message"]) == (503, "the engine failed")


@pytest.mark.parametrize("stream", [True, False])
async def test_sequence_cut_short_is_no_success(stream: bool) -> None:
    """OpenAI's API has no finish reason for a server that gave up: that is an error, not a short answer."""
    engine = FakeEngine(step_seconds=None)
    async with serving(engine) as server:
        ask = server.stream if stream else server.post
        asking = asyncio.create_task(ask("/v1/completions", prompt="ab", max_tokens=9))
        await until(lambda: engine.waiting)
        engine.step()
        engine.cut()
        answer = await asking
        refusal = answer[-1] if stream else answer[1]
        assert refusal["error"]["message"] == "the server ended this request early"
