"""An honest little engine for tests of the server alone: it queues, steps, aborts, drains and fails as the real one."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from msgspec import structs

from smartspec.async_engine.delta_stream import DeltaStream
from smartspec.policy.load import LoadReport
from smartspec.policy.settings import AcceptancePrior, LatencyPrior, PolicySettings, Priors
from smartspec.policy.types import Decision, StepFeatures, StepSeconds
from smartspec.scheduling.client import (
    EngineInfo,
    GenerationDelta,
    GenerationRequest,
    InvalidRequestError,
    NotAcceptingError,
    QueueFullError,
    ScoredToken,
    StalePolicyError,
    StepExplanation,
)
from smartspec.scheduling.grammar import Grammar, GrammarError, GrammarSpec
from smartspec.scheduling.output import StepStats
from smartspec.scheduling.request import LogitRule, RuledText

INFO = EngineInfo(
    model="fake", max_model_len=256, dtype="float32", device="cpu", attention="paged", invariant=True,
    proposers=("draft", "lookup"), num_blocks=64, block_size=16, key="k", created=1_700_000_000,
    target="models/fake", draft="models/fake-draft", vocab_size=0x110000,
)  # fmt: skip


LEARNED = Priors(
    "k", LatencyPrior({"target.step": 0.02, "target.context": 0.0}, weight=9.0),
    (AcceptancePrior("draft", "greedy", (0.8, 0.5), (20.0, 10.0)),),
)  # fmt: skip


class CharacterTokenizer:
    """One token per character, its code point the id; begin-of-text is 1 and shows only on request."""

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Code points, after a begin token."""
        return [1] * add_special_tokens + [ord(character) for character in text]

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The characters."""
        return "".join(chr(token) for token in token_ids if token != 1 or not skip_special_tokens)

    chat_template: str | None = None

    def token_bytes(self, token_id: int) -> bytes | None:
        """Every token is a whole character."""
        return chr(token_id).encode()

    def token_of(self, text: str) -> int | None:
        """No text has a token of its own."""

    def apply_chat_template(
        self, messages: Sequence[Mapping[str, Any]], *, tools: Sequence[Mapping[str, Any]] = ()
    ) -> str:
        """`role: content` lines; refuses tool turns, as some templates do."""
        if any(message["role"] == "tool" for message in messages):
            raise InvalidRequestError("messages", "messages: this template knows no tool turns")
        return "".join(f"{message['role']}: {message['content']}\n" for message in messages) + "assistant: "


@dataclass(eq=False)
class FakeSequence:
    """One running or waiting sequence, and what its reader holds."""

    request: GenerationRequest
    text: str
    deltas: DeltaStream = field(init=False)
    num_sent: int = 0


class AnyText(LogitRule):
    """A rule that allows everything."""

    def adjust(self, logits: Any, text: RuledText, ahead: Sequence[int], first: int) -> None:
        """Change nothing."""


class FakeGrammar:
    """A grammar of all texts."""

    def rule(self) -> LogitRule:
        """A rule for one new text."""
        return AnyText()


class FakeEngine:
    """Continues every prompt with its own text, turned round and over again, *tokens_per_step* at a time; or says
    *answer*, as far as it may, and stops by itself or at *stop_reason*.

    Steps come every *step_seconds*, or on `step()` alone when that is None.
    """

    def __init__(
        self,
        *,
        step_seconds: float | None = 0.0,
        tokens_per_step: int = 2,
        max_num_seqs: int = 8,
        max_queued_requests: int = 8,
        num_cached_tokens: int = 0,
        answer: str | None = None,
        stop_reason: int | str | None = None,
    ) -> None:
        self.info = INFO
        self.tokenizer = CharacterTokenizer()
        self.failure: str | None = None
        self.running: list[FakeSequence] = []
        self.waiting: deque[FakeSequence] = deque()
        self.requests: list[GenerationRequest] = []
        self.aborted: list[str] = []
        self.num_rejected = 0
        self._answer, self._stop_reason = answer, stop_reason
        self.grammars: list[GrammarSpec] = []
        self._step_seconds = step_seconds
        self._tokens_per_step = tokens_per_step
        self._max_num_seqs = max_num_seqs
        self._num_cached_tokens = num_cached_tokens
        self._max_queued_requests = max_queued_requests
        self._settings = PolicySettings()
        self._observers: list[Callable[[StepStats], None]] = []
        self._accepting = True
        self._idle = asyncio.Event()
        self._idle.set()
        self._work: asyncio.Task[None] | None = None

    def generate(self, request: GenerationRequest) -> AsyncGenerator[GenerationDelta, None]:
        """Queue *request*."""
        self.refuse_if_full(request.tenant)
        prompt = self.tokenizer.decode(request.prompt_token_ids)
        text = prompt[::-1] * request.sampling.max_tokens if self._answer is None else self._answer
        sequence = FakeSequence(request, text[: request.sampling.max_tokens])
        sequence.deltas = DeltaStream(request, time.monotonic(), lambda _: self.abort(sequence))
        self.requests.append(request)
        self.waiting.append(sequence)
        self._idle.clear()
        if self._step_seconds is not None and (self._work is None or self._work.done()):
            self._work = asyncio.create_task(self._keep_stepping(self._step_seconds))
        return sequence.deltas

    async def compile_grammar(self, spec: GrammarSpec) -> Grammar:
        """Remember *spec*; what is written "wrong" is no grammar."""
        await asyncio.sleep(0)
        if "wrong" in spec.source:
            raise GrammarError("it is wrong")
        self.grammars.append(spec)
        return FakeGrammar()

    def refuse_if_full(self, tenant: str) -> None:
        """Refuse when there is no place."""
        if self.failure or not self._accepting:
            raise NotAcceptingError(self.failure or "draining")
        if len(self.waiting) >= self._max_queued_requests and len(self.running) >= self._max_num_seqs:
            self.num_rejected += 1
            raise QueueFullError(2.4)

    async def _keep_stepping(self, seconds: float) -> None:
        while self.running or self.waiting:
            await asyncio.sleep(seconds)
            self.step()

    def step(self) -> None:
        """Admit what fits, and give every running sequence its next tokens."""
        while self.waiting and len(self.running) < self._max_num_seqs:
            self.running.append(self.waiting.popleft())
        num_running = len(self.running)
        kept = sum(self._advance(sequence) for sequence in list(self.running))
        stats = StepStats(
            decision=Decision(predicted_seconds=0.012, predicted_tokens=kept, reason="fake"),
            features=StepFeatures(target_tokens=kept, context_tokens=10 * kept, num_requests=num_running),
            seconds=StepSeconds(draft=0.001, target=0.008, host=0.001),
            tokens_kept=kept, num_running=len(self.running), num_waiting=len(self.waiting), kv_cache_usage=0.25,
            drafted_by_proposer={"draft": 3 * num_running}, accepted_by_proposer={"draft": num_running},
            k_by_request=(("draft", 3),) * num_running, accepted_by_position=(num_running, 0, 0),
            queue_seconds=(0.001,) * num_running, num_drafts=num_running,
        )  # fmt: skip
        for observer in self._observers:
            observer(stats)
        self._rest_if_idle()

    def _advance(self, sequence: FakeSequence) -> int:
        request, sent = sequence.request, sequence.num_sent
        text = sequence.text[sent : sent + self._tokens_per_step]
        sequence.num_sent += len(text)
        done = sequence.num_sent >= len(sequence.text)
        if done:
            self.running.remove(sequence)
        sampling, first = request.sampling, not sent
        sequence.deltas.put(
            GenerationDelta(
                text=text, token_ids=tuple(map(ord, text)), num_prompt_tokens=len(request.prompt_token_ids),
                num_generation_tokens=sequence.num_sent, time=time.monotonic(),
                logprobs=_scored(map(ord, text), sampling.logprobs),
                prompt_logprobs=_scored(request.prompt_token_ids[1:], sampling.prompt_logprobs) if first else (),
                finish_reason=("stop" if sequence.text == self._answer else "length") if done else None,
                stop_reason=self._stop_reason if done and sequence.text == self._answer else None,
                num_cached_tokens=self._num_cached_tokens,
                explanation=StepExplanation("draft", 3, len(text) - 1, tuple(text))
                if request.speculation.explain
                else None,
            )
        )  # fmt: skip
        return len(text)

    def _rest_if_idle(self) -> None:
        if not self.running and not self.waiting:
            self._idle.set()

    def abort(self, sequence: FakeSequence) -> None:
        """Forget a sequence whose client left."""
        for place in (self.running, self.waiting):
            if sequence in place:
                place.remove(sequence)
                self.aborted.append(sequence.request.request_id)
        self._rest_if_idle()

    def fail(self, error: Exception) -> None:
        """Raise *error* to every client."""
        self.failure = str(error)
        for sequence in (*self.running, *self.waiting):
            sequence.deltas.fail(error)
        self.running.clear()
        self.waiting.clear()
        self._rest_if_idle()

    def cut(self) -> None:
        """End every running sequence on the engine's own account."""
        for sequence in self.running:
            num_prompt_tokens = len(sequence.request.prompt_token_ids)
            sequence.deltas.put(
                GenerationDelta("", (), num_prompt_tokens, sequence.num_sent, time.monotonic(), finish_reason="abort")
            )
        self.running.clear()
        self._rest_if_idle()

    def stop(self) -> None:
        """End: what still runs is told."""
        self.fail(NotAcceptingError("the engine has stopped"))

    def load(self) -> LoadReport:
        """Load now."""
        return LoadReport(
            model=self.info.model, version="0", state="ready" if self._accepting else "draining",
            generation=self._settings.generation, num_requests_running=len(self.running),
            num_requests_waiting=len(self.waiting), kv_cache_usage=0.25, requests_rejected_total=self.num_rejected,
            max_num_seqs=self._max_num_seqs, max_queued_requests=self._max_queued_requests,
            priors=LEARNED if self.requests else None,
        )  # fmt: skip

    def settings(self) -> PolicySettings:
        """The policy in force."""
        return self._settings

    def apply_settings(self, settings: PolicySettings) -> PolicySettings:
        """Take a newer policy."""
        if settings != self._settings:
            if settings.generation <= self._settings.generation:
                raise StalePolicyError(f"generation {settings.generation} is not newer")
            self._settings = settings
        return self._settings

    def speculation(self) -> dict[str, Any]:
        """Nothing was chosen."""
        return {"last": None}

    def subscribe(self, observer: Callable[[StepStats], None]) -> None:
        """Call *observer* with each step."""
        self._observers.append(observer)

    def start_draining(self) -> None:
        """Accept no more."""
        self._accepting = False

    async def wait_drained(self) -> None:
        """Wait until idle."""
        await self._idle.wait()


def _scored(token_ids: Iterable[int], num_top: int | None) -> tuple[ScoredToken, ...]:
    """Each token is the most probable one at its place, and those after it in the alphabet follow."""
    if num_top is None:
        return ()
    return tuple(
        structs.replace(_score(token, 0), top=tuple(_score(token + i, i) for i in range(num_top)))
        for token in token_ids
    )


def _score(token_id: int, worse: int) -> ScoredToken:
    return ScoredToken(token_id, chr(token_id), chr(token_id).encode(), -0.5 - worse, 1 + worse)
