"""A span for each request, in the caller's trace, sent to an OpenTelemetry collector over OTLP/HTTP.

Attributes are those of OpenTelemetry's conventions for HTTP servers and for generative AI; phases are named as in vLLM.
Nothing that was asked or answered is in them.
"""

import asyncio
import time
from collections.abc import Mapping
from urllib.parse import urlsplit

from aiohttp import web

from smartspec import __version__
from smartspec.config import ConfigError
from smartspec.server.errors import route_of
from smartspec.server.exchange import Exchange

EXPORT_SECONDS = 2.0
"""How often spans are sent, and how long the last of them may keep the process from ending."""

OPERATIONS: Mapping[str, str] = {"/v1/completions": "text_completion", "/v1/chat/completions": "chat"}
ATTRIBUTES: Mapping[str, str] = {
    "prompt_tokens": "gen_ai.usage.input_tokens",
    "cached_tokens": "gen_ai.usage.cache_read.input_tokens",
    "generated_tokens": "gen_ai.usage.output_tokens",
    "queue_seconds": "gen_ai.latency.time_in_queue",
    "prefill_seconds": "gen_ai.latency.time_in_model_prefill",
    "ttft_seconds": "gen_ai.latency.time_to_first_token",
    "decode_seconds": "gen_ai.latency.time_in_model_decode",
    "sequences": "gen_ai.request.choice.count",
}
"""What a fact of an exchange is called in a span."""


class OtlpSpans:
    """Makes spans and hands them to a thread that sends them in batches; a collector that is away costs spans alone."""

    def __init__(self, endpoint: str, model: str) -> None:
        try:
            # Imported here: an optional extra, and half a second that nobody else need wait for.
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.trace import SpanKind, StatusCode
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
        except ImportError as error:
            raise ConfigError(f"otlp_endpoint needs `pip install '.[tracing]'`: {error}") from None
        exporter = OTLPSpanExporter(endpoint=_traces_url(endpoint), timeout=EXPORT_SECONDS)
        resource = Resource.create({"service.name": "smartspec", "service.version": __version__})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(
            BatchSpanProcessor(exporter, schedule_delay_millis=1000 * EXPORT_SECONDS, max_queue_size=8192)
        )
        self._tracer = self._provider.get_tracer("smartspec", __version__)
        self._propagator = TraceContextTextMapPropagator()
        self._server, self._error = SpanKind.SERVER, StatusCode.ERROR
        self._model = model

    def record(self, request: web.Request, exchange: Exchange, status: int, seconds: float) -> None:
        """*exchange* ended now, *seconds* after it began."""
        end = time.time_ns()
        route = route_of(request)
        attributes: dict[str, str | int | float | list[str]] = {
            "http.request.method": request.method,
            "http.route": route,
            "http.response.status_code": status,
            "smartspec.request_id": exchange.request_id,
            "gen_ai.latency.e2e": seconds,
        }
        if route in OPERATIONS:
            attributes |= {"gen_ai.operation.name": OPERATIONS[route], "gen_ai.request.model": self._model}
        if exchange.key:
            attributes["smartspec.api_key.name"] = exchange.key
        for fact, name in ATTRIBUTES.items():
            if fact in exchange.facts:
                attributes[name] = exchange.facts[fact]
        if reasons := exchange.facts.get("finish_reason"):
            attributes["gen_ai.response.finish_reasons"] = str(reasons).split(",")
        span = self._tracer.start_span(
            f"{request.method} {route}",
            context=self._propagator.extract({name.lower(): value for name, value in request.headers.items()}),
            kind=self._server,
            start_time=end - int(1e9 * seconds),
            attributes=attributes,
        )
        if status >= 500:
            span.set_status(self._error)
        span.end(end)

    async def close(self) -> None:
        """Send what is left."""
        await asyncio.to_thread(self._provider.shutdown)


def _traces_url(endpoint: str) -> str:
    """Where traces go at a collector of which the base is given, or the whole address."""
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"otlp_endpoint must be an http(s) URL such as http://collector:4318, got {endpoint!r}")
    return endpoint if parts.path.endswith("/v1/traces") else f"{endpoint.rstrip('/')}/v1/traces"
