"""The requests in the engine as the event loop knows them: who reads what, how full it is, how it has been going."""

import asyncio
import math
from collections.abc import Callable

from smartspec import __version__
from smartspec.async_engine.delta_stream import DeltaStream
from smartspec.async_engine.load_meter import WINDOW_SECONDS, LoadMeter, RecentLoad
from smartspec.async_engine.thread import StepReport
from smartspec.config import RuntimeConfig
from smartspec.policy.load import LoadReport
from smartspec.policy.settings import PolicySettings
from smartspec.scheduling.admission import Backlog, QueueBounds
from smartspec.scheduling.client import GenerationRequest, InvalidRequestError, QueueFullError
from smartspec.scheduling.output import StepStats

MAX_RETRY_AFTER_SECONDS = 120.0
PACE_SECONDS = 0.5
"""How long the measured pace is good for estimates: under a flood nobody may be kept waiting for its own refusal."""


class LiveRequests:
    """Streams by request id, from arrival to last delta. Owned by the event loop.

    *on_abort* is called with the id of a request whose reader left it.
    """

    def __init__(self, config: RuntimeConfig, clock: Callable[[], float], on_abort: Callable[[str], None]) -> None:
        self._config = config
        self._clock = clock
        self._on_abort = on_abort
        self._began = clock()
        self._meter = LoadMeter(clock)
        self._streams: dict[str, DeltaStream] = {}
        self._backlog = Backlog()
        self._pace: tuple[float, RecentLoad] | None = None
        self._drained = asyncio.Event()
        self._drained.set()
        self._stats: StepStats | None = None
        self._num_requests = self._num_rejected = self._num_preempted = 0

    def admit(self, request: GenerationRequest, settings: PolicySettings) -> DeltaStream:
        """A stream for a new request; raises QueueFullError, or InvalidRequestError for an id in use."""
        request_id, tenant = request.request_id, request.tenant
        num_prompt_tokens, max_tokens = len(request.prompt_token_ids), request.sampling.max_tokens
        if request_id in self._streams:
            raise InvalidRequestError("request_id", f"request {request_id!r} is already being served")
        self._num_requests += 1
        self._meter.arrived(num_prompt_tokens, max_tokens)
        if not self._has_room(tenant, num_prompt_tokens, settings):
            raise self._refusal()
        stream = DeltaStream(request, self._clock(), self._close)
        self._streams[request_id] = stream
        self._backlog.add(tenant, num_prompt_tokens)
        self._drained.clear()
        return stream

    def refuse_if_full(self, tenant: str, settings: PolicySettings) -> None:
        """Raise QueueFullError when not even the smallest request has room; it counts as one that came."""
        if not self._has_room(tenant, 1, settings):
            self._num_requests += 1
            self._meter.turned_away()
            raise self._refusal()

    def deliver(self, report: StepReport) -> None:
        """Take in what a step brought, and hand it to the readers."""
        if report.stats is None:
            return
        self._stats = report.stats
        self._num_preempted += report.stats.num_preempted
        self._meter.stepped(report.stats)
        for request_id in report.first_scheduled:
            if (stream := self._streams.get(request_id)) is not None:
                stream.is_scheduled = True
                self._backlog.remove(stream.tenant, stream.num_prompt_tokens)
        now = self._clock()
        for request_id, delta in report.deltas:
            if (stream := self._streams.get(request_id)) is None:
                continue
            if stream.first_token_time is None:
                stream.first_token_time = now
                self._meter.first_token(now - stream.arrival_time)
            stream.put(delta)
            if delta.finish_reason is not None:
                decode_seconds, e2e_seconds = now - stream.first_token_time, now - stream.arrival_time
                self._meter.finished(delta.num_generation_tokens, decode_seconds, e2e_seconds)
                self._forget(stream)

    def fail(self, error: Exception) -> None:
        """Let every reader meet *error*."""
        for stream in self._streams.values():
            stream.fail(error)
        self._streams.clear()
        self._backlog = Backlog()
        self._drained.set()

    async def wait_drained(self) -> None:
        """Return when there are none."""
        await self._drained.wait()

    def load(self, settings: PolicySettings, kv_cache_tokens: int) -> LoadReport:
        """Load now and over the recent window, of an engine that is ready."""
        streams, stats, now = list(self._streams.values()), self._stats, self._clock()
        scheduled = [stream for stream in streams if stream.is_scheduled]
        # Preempted requests wait again; between two steps an abort may have made the last count too large.
        num_running = min(len(scheduled), stats.num_running) if stats else 0
        recent, scheduler = self._meter.recent(), self._config.scheduler
        return LoadReport(
            model=self._config.model.name,
            version=__version__,
            state="ready",
            generation=settings.generation,
            uptime_seconds=now - self._began,
            window_seconds=WINDOW_SECONDS,
            num_requests_running=num_running,
            num_requests_waiting=len(streams) - num_running,
            longest_wait_seconds=max((now - s.arrival_time for s in streams if not s.is_scheduled), default=0.0),
            num_waiting_prompt_tokens=self._backlog.num_tokens,
            num_context_tokens=sum(s.num_prompt_tokens + s.num_generation_tokens for s in scheduled),
            max_num_seqs=scheduler.max_num_seqs,
            max_num_batched_tokens=scheduler.max_num_batched_tokens,
            max_queued_requests=scheduler.max_queued_requests,
            kv_cache_usage=stats.kv_cache_usage if stats and streams else 0.0,
            kv_cache_tokens=kv_cache_tokens,
            requests_total=self._num_requests,
            requests_rejected_total=self._num_rejected,
            preemptions_total=self._num_preempted,
            shape=recent.shape,
            ttft=recent.ttft,
            tpot=recent.tpot,
            e2e=recent.e2e,
            queue_time=recent.queue_time,
            speculation=recent.speculation,
        )

    def _has_room(self, tenant: str, num_tokens: int, settings: PolicySettings) -> bool:
        """Whether one more request may come. Those that the next step can start do not queue."""
        scheduler = self._config.scheduler
        max_running = min(scheduler.max_num_seqs, settings.max_running_requests or scheduler.max_num_seqs)
        max_queued = scheduler.max_queued_requests
        if settings.max_queued_requests is not None:
            max_queued = min(max_queued, settings.max_queued_requests)
        num_scheduled = len(self._streams) - self._backlog.num_requests
        return self._backlog.has_room(
            tenant,
            num_tokens,
            QueueBounds(max_queued, scheduler.max_queued_tokens),
            num_startable=max(0, max_running - num_scheduled),
        )

    def _refusal(self) -> QueueFullError:
        """How long the queue will take at the recent pace: whole seconds, at least 1."""
        self._num_rejected += 1
        now = self._clock()
        if self._pace is None or now - self._pace[0] >= PACE_SECONDS:
            self._pace = now, self._meter.recent()
        recent = self._pace[1]
        usual = recent.shape.mean_generation_tokens or recent.shape.mean_requested_tokens
        tokens = self._backlog.num_tokens + self._backlog.num_requests * usual
        seconds = tokens / recent.tokens_per_second if recent.tokens_per_second else 1.0
        return QueueFullError(min(MAX_RETRY_AFTER_SECONDS, max(1.0, math.ceil(seconds))))

    def _close(self, stream: DeltaStream) -> None:
        """The reader of *stream* left: its request ends before the next step, if it has not ended."""
        if self._streams.get(stream.request_id) is stream:
            self._on_abort(stream.request_id)
            self._forget(stream)

    def _forget(self, stream: DeltaStream) -> None:
        del self._streams[stream.request_id]
        if not stream.is_scheduled:
            self._backlog.remove(stream.tenant, stream.num_prompt_tokens)
        if not self._streams:
            self._drained.set()
