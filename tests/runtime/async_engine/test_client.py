"""The engine as the server meets it, over the integer model: streams, aborts, refusals, drain, failure, policy."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

import pytest

from integer_model import IntegerProposer, IntegerRunner, RandomPolicy, generate
from smartspec.async_engine.client import AsyncEngine
from smartspec.async_engine.thread import LoadedEngine
from smartspec.config import ModelConfig, RuntimeConfig, SchedulerConfig
from smartspec.engine import Engine
from smartspec.policy.settings import PolicySettings, Priors
from smartspec.scheduling.client import (
    EngineInfo,
    GenerationDelta,
    GenerationRequest,
    InvalidRequestError,
    NotAcceptingError,
    QueueFullError,
    StalePolicyError,
)
from smartspec.scheduling.grammar import Grammar, GrammarError, GrammarSpec
from smartspec.scheduling.output import ModelRunnerOutput, SchedulerOutput, StepStats
from smartspec.scheduling.request import SamplingParams
from smartspec.scheduling.scheduler import Scheduler
from waiting import until

Drafts = dict[str, tuple[int, ...]]
EngineUnderTest = AsyncEngine[Drafts]


class LetterTokenizer:
    """Token 0 is "a", token 1 is "b", and so on through the alphabet, then capitals."""

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Ids of letters."""
        return [ord(c) - 97 for c in text]

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Letters of ids."""
        return "".join(chr(97 + t) if t < 26 else chr(65 + t - 26) for t in token_ids)

    def apply_chat_template(self, messages: object) -> str:
        """Not needed here."""
        raise NotImplementedError


def compile_letters(spec: GrammarSpec) -> Grammar:
    """No text of letters is under a grammar here."""
    raise GrammarError("there are no grammars of letters")


class GatedRunner(IntegerRunner):
    """Waits at the gate before each step; fails when told to."""

    gate: threading.Event
    failure: Exception | None = None

    def execute(self, plan: SchedulerOutput, drafts: Drafts) -> ModelRunnerOutput:
        """One step, when the gate is open."""
        assert self.gate.wait(timeout=10)
        if self.failure is not None:
            raise self.failure
        return super().execute(plan, drafts)


@dataclass
class Running:
    """An engine, and the parts a test looks into."""

    engine: EngineUnderTest
    runner: GatedRunner
    scheduler: Scheduler
    policy: RandomPolicy


@asynccontextmanager
async def running(
    *, gate_open: bool = True, clock: Callable[[], float] = time.monotonic, **scheduler: int
) -> AsyncIterator[Running]:
    """A started engine, stopped afterwards."""
    options = {"max_num_seqs": 4, "max_num_batched_tokens": 32, "block_size": 4, "max_queued_requests": 8} | scheduler
    config = RuntimeConfig(ModelConfig("integers"), SchedulerConfig(**options))
    policy = RandomPolicy(seed=1)
    scheduling = Scheduler(config.scheduler, policy, num_blocks=64, max_model_len=96, proposers=("draft", "lookup"))
    runner = GatedRunner(4)
    runner.gate = threading.Event()
    if gate_open:
        runner.gate.set()
    info = EngineInfo(
        model="integers",
        max_model_len=96,
        dtype="int",
        device="cpu",
        attention="paged",
        invariant=True,
        proposers=("draft", "lookup"),
        num_blocks=64,
        block_size=4,
        key="integers",
        created=0,
        target="integers",
    )
    loaded = LoadedEngine(
        Engine(scheduling, IntegerProposer(4), runner, clock),
        policy,
        info,
        LetterTokenizer(),
        frozenset({19}),
        compile_letters,
    )
    engine = AsyncEngine(lambda: loaded, config, PolicySettings(), clock=clock)
    await engine.start()
    try:
        yield Running(engine, runner, scheduling, policy)
    finally:
        runner.gate.set()
        await engine.stop()


ids: Iterator[int] = iter(range(1_000_000))


def ask(prompt: Sequence[int] = (1, 2, 3), **sampling: object) -> GenerationRequest:
    """A greedy request of 10 tokens if nothing else is said."""
    params = replace(SamplingParams(max_tokens=10, temperature=0.0, ignore_eos=True), **sampling)  # type: ignore[arg-type]
    return GenerationRequest(f"request-{next(ids)}", prompt, params)


async def collect(engine: EngineUnderTest, request: GenerationRequest) -> list[GenerationDelta]:
    """All deltas of *request*."""
    return [delta async for delta in engine.generate(request)]


async def test_streams_give_the_models_tokens_and_text() -> None:
    """Twelve clients at once each read the model's own text, with totals that grow to the end."""
    async with running() as r:
        requests = [ask(prompt=[i % 5, 2, i % 3], max_tokens=5 + i) for i in range(12)]
        for request, deltas in zip(
            requests, await asyncio.gather(*(collect(r.engine, request) for request in requests)), strict=True
        ):
            expected = generate(request.prompt_token_ids, request.sampling.max_tokens)
            assert [t for d in deltas for t in d.token_ids] == expected
            assert "".join(d.text for d in deltas) == LetterTokenizer().decode(expected)
            assert deltas[-1].finish_reason == "length"
            assert deltas[-1].num_generation_tokens == len(expected)
            assert [d.num_generation_tokens for d in deltas] == sorted({d.num_generation_tokens for d in deltas})


async def test_eos_ends_a_text_and_is_counted() -> None:
    """Nothing after the end-of-sequence token is streamed or counted, however far speculation had run ahead."""
    async with running() as r:
        deltas = await collect(r.engine, ask(max_tokens=60, ignore_eos=False))
        expected = generate([1, 2, 3], 60, frozenset({19}))
        assert [t for d in deltas for t in d.token_ids] == expected
        assert deltas[-1].finish_reason == ("stop" if expected[-1] == 19 else "length")
        assert deltas[-1].stop_reason is None
        assert "".join(d.text for d in deltas) == LetterTokenizer().decode([t for t in expected if t != 19])


async def test_a_stop_token_is_named() -> None:
    """The request's own stop token says that it ended the text; the model's end of text does not, though listed."""
    expected = generate([1, 2, 3], 60)
    async with running() as r:
        stop = expected[5]
        deltas = await collect(r.engine, ask(max_tokens=60, stop_token_ids=frozenset({stop, 25})))
        assert [d.stop_reason for d in deltas] == [None] * (len(deltas) - 1) + [stop]
        prompt = next([i, 2] for i in range(19) if 19 in generate([i, 2], 60))
        for ignore_eos, reason in ((False, None), (True, 19)):
            one = ask(prompt, max_tokens=60, ignore_eos=ignore_eos, stop_token_ids=frozenset({19}))
            assert (await collect(r.engine, one))[-1].stop_reason == reason


async def test_a_stop_string_ends_the_request_and_frees_it() -> None:
    """The text is cut before the stop string, tokens end with it, and the scheduler holds nothing any more."""
    expected = generate([1, 2, 3], 40)
    stop = LetterTokenizer().decode(expected[6:8])
    cut = LetterTokenizer().decode(expected).index(stop)
    async with running() as r:
        deltas = await collect(r.engine, ask(max_tokens=40, stop=(stop,)))
        assert (deltas[-1].finish_reason, deltas[-1].stop_reason) == ("stop", stop)
        assert "".join(d.text for d in deltas) == LetterTokenizer().decode(expected)[:cut]
        assert deltas[-1].num_generation_tokens == sum(len(d.token_ids) for d in deltas) == cut + 2
        await until(lambda: r.scheduler.pool.num_free == 64)
        assert not r.scheduler.has_work


@pytest.mark.parametrize("begin", [False, True])
async def test_closing_a_stream_frees_its_blocks_before_the_next_step(begin: bool) -> None:
    """A reader that leaves, even before its first read, ends its request: no later step computes it."""
    async with running() as r:
        leaving, staying = ask(max_tokens=80), ask(max_tokens=20)
        stream = r.engine.generate(leaving)
        if begin:
            await anext(stream)
        r.runner.gate.clear()
        other = asyncio.create_task(collect(r.engine, staying))
        await asyncio.sleep(0.01)
        await stream.aclose()
        steps_before = len(r.runner.steps)
        r.runner.gate.set()
        assert (await other)[-1].num_generation_tokens == 20
        later = r.runner.steps[steps_before + 1 :]
        assert not any(s.request_id == leaving.request_id for step in later for s in step.scheduled)
        await until(lambda: r.scheduler.pool.num_free == 64)
        assert await anext(stream, None) is None


async def test_a_full_queue_refuses_with_a_time_to_retry() -> None:
    """With every place taken the next request is refused at the call, and told when to come again."""
    async with running(gate_open=False, max_num_seqs=1, max_queued_requests=2) as r:
        streams = [r.engine.generate(ask())]
        await until(lambda: r.scheduler.running)
        streams += [r.engine.generate(ask()), r.engine.generate(ask())]
        with pytest.raises(QueueFullError) as refusal:
            r.engine.generate(ask())
        assert 1.0 <= refusal.value.retry_after_seconds <= 120.0
        assert r.engine.load().requests_rejected_total == 1
        r.runner.gate.set()
        for stream in streams:
            assert [d async for d in stream][-1].finish_reason == "length"


async def test_the_time_to_retry_follows_queue_and_throughput() -> None:
    """Twice the queue at the same pace is twice the wait."""
    waits = []
    for queue in (4, 8):
        now = 0.0

        def clock() -> float:
            nonlocal now
            now += 0.05
            return now

        async with running(clock=clock, max_num_seqs=1, max_queued_requests=queue) as r:
            await collect(r.engine, ask(max_tokens=20))
            r.runner.gate.clear()
            streams = [r.engine.generate(ask(max_tokens=20)) for _ in range(queue + 1)]
            with pytest.raises(QueueFullError) as refusal:
                r.engine.generate(ask())
            waits.append(refusal.value.retry_after_seconds)
            for stream in streams:
                await stream.aclose()
    assert waits[1] == pytest.approx(2 * waits[0], rel=0.5)


async def test_what_can_never_fit_is_refused_by_name() -> None:
    """Too long a prompt, or too many tokens after it, is refused at the call with the field at fault."""
    async with running() as r:
        for request, param in (
            (ask(prompt=[1] * 96), "prompt"),
            (ask(prompt=[]), "prompt"),
            (ask(prompt=[1] * 90, max_tokens=7), "max_tokens"),
        ):
            with pytest.raises(InvalidRequestError) as refusal:
                r.engine.generate(request)
            assert refusal.value.param == param


async def test_draining_finishes_what_runs_and_takes_nothing_more() -> None:
    """After the drain begins new requests are refused, old ones end well, and then the engine is drained."""
    async with running() as r:
        reading = asyncio.create_task(collect(r.engine, ask(max_tokens=50)))
        await asyncio.sleep(0)
        r.engine.start_draining()
        with pytest.raises(NotAcceptingError):
            r.engine.generate(ask())
        assert r.engine.load().state == "draining"
        await asyncio.wait_for(r.engine.wait_drained(), 10)
        assert (await reading)[-1].finish_reason == "length"


async def test_a_failed_step_reaches_every_reader(caplog: pytest.LogCaptureFixture) -> None:
    """When the engine breaks, readers get an error instead of waiting for ever, and it says that it has failed."""
    async with running(gate_open=False) as r:
        reading = asyncio.create_task(collect(r.engine, ask()))
        r.runner.failure = RuntimeError("out of memory")
        r.runner.gate.set()
        with pytest.raises(NotAcceptingError, match="out of memory"):
            await reading
        assert "out of memory" in str(r.engine.failure)
        with pytest.raises(NotAcceptingError):
            r.engine.generate(ask())
        assert "engine_failed" in caplog.text


async def test_a_failed_load_is_raised_by_start() -> None:
    """What loading raises, starting raises."""

    def build() -> LoadedEngine[Drafts]:
        raise ValueError("no such model")

    engine = AsyncEngine(build, RuntimeConfig(ModelConfig("missing")), PolicySettings(), clock=time.monotonic)
    assert engine.load().state == "loading"
    with pytest.raises(NotAcceptingError):
        _ = engine.info
    with pytest.raises(ValueError, match="no such model"):
        await engine.start()
    await engine.stop()


async def test_settings_are_hot_and_numbered() -> None:
    """A newer generation is in force from the next step; an older one, or another key's priors, is refused."""
    async with running() as r:
        newer = PolicySettings(generation=3, policy="off", priors=Priors(key="integers"))
        assert r.engine.apply_settings(newer) == r.engine.settings() == newer
        assert r.engine.apply_settings(newer) == newer
        for stale in (PolicySettings(generation=2), PolicySettings(generation=3)):
            with pytest.raises(StalePolicyError, match="generation 3"):
                r.engine.apply_settings(stale)
        with pytest.raises(StalePolicyError, match="other"):
            r.engine.apply_settings(PolicySettings(generation=4, priors=Priors(key="other")))
        await collect(r.engine, ask())
        assert r.policy.settings == newer
        assert r.engine.load().generation == 3


async def test_load_tells_of_requests_latencies_and_speculation() -> None:
    """One report holds what ran, how long it took, what was speculated, and what the policy has learned."""
    async with running() as r:
        seen: list[StepStats] = []
        r.engine.subscribe(seen.append)
        await asyncio.gather(*(collect(r.engine, ask(max_tokens=20)) for _ in range(6)))
        await until(lambda: r.engine.speculation().get("steps") == len(seen))
        explained = r.engine.speculation()
        assert explained["totals"]["steps"] == len(seen)
        assert explained["totals"]["tokens_kept"] == sum(stats.tokens_kept for stats in seen)
        assert explained["recent"]["mean_k"] == r.engine.load().speculation.mean_k
        report = r.engine.load()
        assert report.requests_total == report.ttft.total == report.tpot.total == report.e2e.total == 6
        assert report.queue_time.total == 6
        assert (report.num_requests_running, report.num_requests_waiting, report.kv_cache_usage) == (0, 0, 0.0)
        assert (report.shape.mean_prompt_tokens, report.shape.mean_generation_tokens) == (3.0, 20.0)
        assert sum(stats.tokens_kept for stats in seen) == 120
        drafted = sum(sum(stats.drafted_by_proposer.values()) for stats in seen)
        accepted = sum(sum(stats.accepted_by_proposer.values()) for stats in seen)
        assert report.speculation.acceptance_rate == pytest.approx(accepted / drafted)
        assert report.speculation.mean_k > 0
        assert report.priors == Priors(key="integers")
        assert report.kv_cache_tokens == 256
