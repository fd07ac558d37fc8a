"""The engine's own thread: takes commands between steps, steps, turns tokens into text, and reports once per step."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from queue import Empty, SimpleQueue
from typing import Any, Generic, Protocol, TypeVar

from smartspec.async_engine.detokenizer import Detokenizer, Piece, joined
from smartspec.async_engine.token_texts import TokenTexts
from smartspec.engine import Engine
from smartspec.policy.settings import PolicySettings, Priors
from smartspec.scheduling.client import EngineInfo, GenerationDelta, StepExplanation, Tokenizer
from smartspec.scheduling.grammar import Grammar, GrammarSpec
from smartspec.scheduling.output import RequestOutput, StepStats
from smartspec.scheduling.policy_protocol import Policy
from smartspec.scheduling.request import Request

log = logging.getLogger(__name__)

LEARNED_INTERVAL_SECONDS = 1.0
"""How often a busy engine says what its policy has learned; an idle one says it once."""

D = TypeVar("D")


class TunablePolicy(Policy, Protocol):
    """The policy as its owner sees it: hot settings in, what was learned out."""

    def apply(self, settings: PolicySettings) -> None:
        """Put *settings* in force from the next step on."""

    def priors(self) -> Priors:
        """What was learned, to hand on."""

    def explain(self) -> dict[str, Any]:
        """What was chosen and why, JSON-ready."""


@dataclass(frozen=True)
class LoadedEngine(Generic[D]):
    """An engine ready to step, and what stands around it."""

    engine: Engine[D]
    policy: TunablePolicy
    info: EngineInfo
    tokenizer: Tokenizer
    eos_token_ids: frozenset[int]
    compile_grammar: Callable[[GrammarSpec], Grammar]


@dataclass(frozen=True, slots=True)
class Add:
    """Queue a request."""

    request: Request


@dataclass(frozen=True, slots=True)
class Abort:
    """End a request; it may have ended already."""

    request_id: str


@dataclass(frozen=True, slots=True)
class Apply:
    """Change the policy."""

    settings: PolicySettings


@dataclass(frozen=True, slots=True)
class Stop:
    """Leave the loop, whatever runs."""


Command = Add | Abort | Apply | Stop


@dataclass(frozen=True, slots=True)
class Learned:
    """The policy's knowledge at one moment."""

    priors: Priors
    explanation: dict[str, Any]


@dataclass(frozen=True, slots=True)
class StepReport:
    """All that one step means to others, in one message."""

    deltas: tuple[tuple[str, GenerationDelta], ...] = ()
    first_scheduled: tuple[str, ...] = ()
    stats: StepStats | None = None
    learned: Learned | None = None


class EngineThread(Generic[D]):
    """Runs a `LoadedEngine` until told to stop. Everything it holds is touched by this thread alone; others reach it
    by *commands*, and it reaches them by *report*."""

    def __init__(
        self,
        loaded: LoadedEngine[D],
        commands: "SimpleQueue[Command]",
        report: Callable[[StepReport], None],
        clock: Callable[[], float],
    ) -> None:
        self._engine = loaded.engine
        self._scheduler = loaded.engine.scheduler
        self._policy = loaded.policy
        self._tokenizer = loaded.tokenizer
        self._token_texts = TokenTexts(loaded.tokenizer)
        self._commands = commands
        self._report = report
        self._clock = clock
        self._requests: dict[str, tuple[Request, Detokenizer]] = {}
        self._learned_at = clock()

    def run(self) -> None:
        """Step while there is work, sleep while there is none, return on `Stop`."""
        while self._obey():
            if self._scheduler.has_work:
                self._report(self._step())

    def _obey(self) -> bool:
        """Carry out waiting commands, or wait for one when idle; False means to stop."""
        if self._commands.empty() and not self._scheduler.has_work:
            self._scheduler.check_idle()
            self._report(StepReport(learned=self._learned()))
            command: Command | None = self._commands.get()
        else:
            command = self._next_command()
        while command is not None:
            match command:
                case Add(request):
                    self._scheduler.add(request)
                    self._requests[request.request_id] = request, self._detokenizer(request)
                case Abort(request_id):
                    self._scheduler.abort(request_id)
                    self._requests.pop(request_id, None)
                case Apply(settings):
                    self._policy.apply(settings)
                case Stop():
                    return False
            command = self._next_command()
        return True

    def _next_command(self) -> Command | None:
        try:
            return self._commands.get_nowait()
        except Empty:
            return None

    def _detokenizer(self, request: Request) -> Detokenizer:
        sampling = request.sampling
        return Detokenizer(
            self._tokenizer,
            request.prompt_token_ids,
            stop=sampling.stop,
            min_tokens=sampling.min_tokens,
            shows_special_tokens=request.shows_special_tokens,
        )

    def _step(self) -> StepReport:
        began = self._clock()
        output = self._engine.step()
        newcomers = [self._requests[request_id][0] for request_id in output.first_scheduled]
        for request in newcomers:
            request.queue_seconds = began - request.arrival_time
        deltas = []
        num_dropped = 0
        now = self._clock()
        for result in output.outputs:
            delta = self._delta(result, now)
            num_dropped += len(result.new_token_ids) - len(delta.token_ids)
            deltas.append((result.request_id, delta))
        stats = output.stats
        if stats is not None:
            stats = replace(
                stats,
                queue_seconds=tuple(request.queue_seconds for request in newcomers),
                tokens_kept=stats.tokens_kept - num_dropped,
                num_running=len(self._scheduler.running),
                kv_cache_usage=self._scheduler.pool.usage,
            )
        is_due = now - self._learned_at >= LEARNED_INTERVAL_SECONDS
        return StepReport(tuple(deltas), output.first_scheduled, stats, self._learned() if is_due else None)

    def _delta(self, output: RequestOutput, now: float) -> GenerationDelta:
        """What *output*, done *now*, means to its reader; a stop string in it ends the request before the next step."""
        request, detokenizer = self._requests[output.request_id]
        pieces: Sequence[Piece] = ()
        if request.speculation.explain:
            pieces = detokenizer.push_each(output.new_token_ids, output.finish_reason)
            piece = joined(pieces)
        else:
            piece = detokenizer.push(output.new_token_ids, output.finish_reason)
        finish_reason = output.finish_reason
        num_past = len(output.new_token_ids) - piece.num_tokens
        num_generated = request.num_output_tokens - num_past
        if piece.stop is not None:
            finish_reason = "stop"
            self._scheduler.finish(output.request_id, num_generated, finish_reason)
        if request.rule is not None and request.rule.failure is not None:
            log.warning("event=rule_failed reason=%r", request.rule.failure)
            finish_reason = "abort"  # even where the text seems to have come to its end: nobody knows whether it may
            self._scheduler.finish(output.request_id, num_generated, finish_reason)
        if finish_reason is not None:
            del self._requests[output.request_id]
        token_ids = output.new_token_ids[: piece.num_tokens]
        return GenerationDelta(
            text=piece.text,
            token_ids=token_ids,
            num_prompt_tokens=request.num_prompt_tokens,
            num_generation_tokens=num_generated,
            time=now,
            logprobs=self._token_texts.name(output.logprobs[: piece.num_tokens]),
            prompt_logprobs=self._token_texts.name(output.prompt_logprobs),
            finish_reason=finish_reason,
            stop_reason=_stop_reason(request, token_ids, piece.stop) if finish_reason == "stop" else None,
            num_cached_tokens=request.num_cached_tokens,
            num_prediction_accepted=request.num_prediction_accepted,
            num_prediction_rejected=request.num_prediction_rejected,
            refusal=None if request.rule is None else request.rule.failure,
            queue_seconds=request.queue_seconds,
            explanation=_explanation(output, pieces) if request.speculation.explain else None,
        )

    def _learned(self) -> Learned:
        self._learned_at = self._clock()
        return Learned(self._policy.priors(), self._policy.explain())


def _stop_reason(request: Request, token_ids: Sequence[int], stop: str | None) -> int | str | None:
    """What of the request's own stops ended a text that stopped; None for the model's own end, as in vLLM."""
    if stop is not None:
        return stop
    is_eos = token_ids[-1] in request.eos_token_ids and not request.sampling.ignore_eos
    return None if is_eos else token_ids[-1]


def _explanation(output: RequestOutput, pieces: Sequence[Piece]) -> StepExplanation:
    accepted = min(output.num_accepted, len(pieces))
    return StepExplanation(output.proposer, output.num_drafted, accepted, tuple(piece.text for piece in pieces))
