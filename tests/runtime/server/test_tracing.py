"""Spans as a collector gets them: real OTLP over HTTP, in the caller's trace, with phases and without contents."""

import gzip
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from fake_engine import FakeEngine
from serving import serving
from smartspec.config import ConfigError
from smartspec.server.tracing import OtlpSpans

TRACE_ID, PARENT_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@contextmanager
def collector() -> Iterator[tuple[str, list[Any]]]:
    """A collector's address, and the requests it got."""
    received: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            received.append((self.path, ExportTraceServiceRequest.FromString(body)))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", received
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def value_of(attribute: Any) -> Any:
    """A span's attribute in Python."""
    value = attribute.value
    kind = value.WhichOneof("value")
    return [item.string_value for item in value.array_value.values] if kind == "array_value" else getattr(value, kind)


async def test_a_request_is_a_span_of_its_callers_trace() -> None:
    """Parent and trace id from `traceparent`; tokens, phases, reason and status as attributes; nothing of the text."""
    with collector() as (endpoint, received):
        async with serving(FakeEngine(num_cached_tokens=2), otlp_endpoint=endpoint) as server:
            headers = {"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-01", "X-Request-Id": "mine"}
            body = {"prompt": "private", "max_tokens": 5, "stream": True}
            async with server.public.post("/v1/completions", json=body, headers=headers) as response:
                await response.read()
            await server.post("/v1/completions", prompt="private", temperature=9)
        # The server has ended: what was left is sent.
    assert {path for path, _ in received} == {"/v1/traces"}
    resources = [resource for _, request in received for resource in request.resource_spans]
    named = {item.key: value_of(item) for item in resources[0].resource.attributes}
    assert named["service.name"] == "smartspec"
    served, refused = [span for resource in resources for scope in resource.scope_spans for span in scope.spans]
    assert (served.name, served.trace_id.hex(), served.parent_span_id.hex()) == (
        "POST /v1/completions", TRACE_ID, PARENT_ID,
    )  # fmt: skip
    told = {item.key: value_of(item) for item in served.attributes}
    assert told["http.response.status_code"] == 200
    assert told["smartspec.request_id"] == "mine"
    assert told["gen_ai.operation.name"] == "text_completion"
    assert (told["gen_ai.usage.input_tokens"], told["gen_ai.usage.output_tokens"]) == (8, 5)
    assert told["gen_ai.usage.cache_read.input_tokens"] == 2
    assert told["gen_ai.response.finish_reasons"] == ["length"]
    phases = [told[f"gen_ai.latency.time_in_{name}"] for name in ("queue", "model_prefill", "model_decode")]
    assert all(phase >= 0 for phase in phases)
    seconds = (served.end_time_unix_nano - served.start_time_unix_nano) / 1e9
    assert sum(phases) <= told["gen_ai.latency.e2e"] + 1e-6
    assert seconds == pytest.approx(told["gen_ai.latency.e2e"], abs=1e-3)
    assert refused.trace_id.hex() != TRACE_ID
    assert {item.key: value_of(item) for item in refused.attributes}["http.response.status_code"] == 400
    assert "private" not in str(received)


async def test_a_collector_that_is_away_harms_nobody() -> None:
    """Requests are served, and the end is not held up for long."""
    async with serving(FakeEngine(), otlp_endpoint="http://127.0.0.1:1") as server:
        assert (await server.post("/v1/completions", prompt="a"))[0] == 200


@pytest.mark.parametrize("endpoint", ["collector:4318", "grpc://collector", "http://", ""])
def test_an_endpoint_that_is_none_is_refused(endpoint: str) -> None:
    """The setting is named, with what would be accepted."""
    with pytest.raises(ConfigError, match="otlp_endpoint"):
        OtlpSpans(endpoint, "model")
