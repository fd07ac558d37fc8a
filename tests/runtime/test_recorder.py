"""`--trace`: what is written can be replayed exactly, stays bounded, and never stands in the engine's way."""

import logging
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from integer_model import VOCAB_SIZE, IntegerProposer, IntegerRunner
from smartspec.config import SchedulerConfig
from smartspec.engine import Engine
from smartspec.policy import replay
from smartspec.policy.controller import SpeculationPolicy
from smartspec.policy.load import LoadReport
from smartspec.policy.recording import Applied, EngineState, Event, Loaded, RecordingError, Start, Step, decode
from smartspec.policy.settings import LatencyPrior, PolicySettings, Priors
from smartspec.policy.types import (
    BatchState,
    Candidate,
    Decision,
    RequestOutcome,
    StepFeatures,
    StepOutcome,
    StepSeconds,
)
from smartspec.recorder import RecordedPolicy, Recorder
from smartspec.scheduling.request import Request, SamplingParams
from smartspec.scheduling.scheduler import Scheduler

LARGE = 1 << 30


@contextmanager
def recording(path: Path, max_bytes: int = LARGE) -> Iterator[Recorder]:
    """A recorder, closed afterwards."""
    recorder = Recorder(path, max_bytes=max_bytes)
    try:
        yield recorder
    finally:
        recorder.close()


class NotedPolicy(SpeculationPolicy):
    """The real one, which notes what it decided for requests that decode."""

    decisions: list[Decision]

    def __init__(self, settings: PolicySettings, *, key: str) -> None:
        super().__init__(settings, key=key)
        self.decisions = []

    def decide(self, batch: BatchState) -> Decision:
        """As ever."""
        decision = super().decide(batch)
        if batch.candidates:
            self.decisions.append(decision)
        return decision


def serve(path: Path, *, max_bytes: int = LARGE, num_requests: int = 40) -> list[Decision]:
    """Record the real scheduler over the integer model and return what was decided: a warm-up, requests that come and
    go, one aborted in five, other settings half-way."""
    rng = random.Random(1)
    now = 0.0

    def clock() -> float:
        nonlocal now
        now += rng.uniform(0.001, 0.01)
        return now

    live = NotedPolicy(PolicySettings(), key="k")
    with recording(path, max_bytes) as recorder:
        policy = RecordedPolicy(live, "k", recorder)
        rehearsal = StepFeatures(8, 100, 8, draft_batch_by_depth=(4, 4), draft_context_tokens=50, catchup_tokens=4)
        policy.observe(StepOutcome(Decision(), rehearsal, StepSeconds(0.002, 0.01, 0.001), (), 0))
        scheduler = Scheduler(
            SchedulerConfig(max_num_seqs=6, max_num_batched_tokens=64, block_size=4),
            policy,
            num_blocks=100,
            max_model_len=96,
            proposers=("draft", "lookup"),
        )
        policy.engine = lambda: EngineState(len(scheduler.running), len(scheduler.waiting), scheduler.pool.usage)
        engine: Engine[dict[str, tuple[int, ...]]] = Engine(scheduler, IntegerProposer(4), IntegerRunner(4), clock)
        for number in range(num_requests):
            prompt = [rng.randrange(VOCAB_SIZE) for _ in range(3)] * 4
            sampling = SamplingParams(max_tokens=rng.randint(5, 60), temperature=0.0, ignore_eos=True)
            scheduler.add(Request(str(number), prompt, sampling, 0, 0.0))
            for _ in range(rng.choice((0, 1, 2, 12))):
                engine.step()
            if number % 5 == 4:
                scheduler.abort(str(number - 1))
            if number == num_requests // 2:
                policy.apply(PolicySettings(generation=1, max_speculative_tokens=3, tpot_target_seconds=0.05))
        while scheduler.has_work:
            engine.step()
    return live.decisions


def read(path: Path) -> list[Event]:
    """All events of a file."""
    with path.open("rb") as lines:
        return list(decode(lines))


def test_a_replay_chooses_what_was_chosen(tmp_path: Path) -> None:
    """Step by step and to the last digit, through a warm-up, ends of requests and a change of settings."""
    decisions = serve(tmp_path / "trace")
    replayed = list(replay.replay(read(tmp_path / "trace")))
    assert len(decisions) > 100
    assert [step.replayed for step in replayed] == decisions
    assert [step.recorded for step in replayed] == decisions
    assert any(decision.probe for decision in decisions)
    assert {c.proposer for d in decisions for c in d.choices.values()} == {"draft", "lookup"}
    assert max(c.num_tokens for d in decisions[-20:] for c in d.choices.values()) <= 3


def test_a_step_tells_what_stood_around_it(tmp_path: Path) -> None:
    """What ran and waited, how full the cache was, and who had ended before."""
    serve(tmp_path / "trace")
    steps = [event for event in read(tmp_path / "trace") if isinstance(event, Step)]
    assert steps[0].batch is None
    states = [step.engine for step in steps[1:] if step.engine is not None]
    assert len(states) == len(steps) - 1
    assert max(state.running for state in states) > 4
    assert max(state.waiting for state in states) > 0
    assert 0.5 < max(state.kv_cache_usage for state in states) <= 1.0
    ended = [request for step in steps for request in step.ended]
    assert len(ended) == len(set(ended)) >= 38
    assert [step.time for step in steps] == sorted(step.time for step in steps)


def test_a_replay_under_other_settings_decides_otherwise(tmp_path: Path) -> None:
    """`off` speculates nothing and promises no gain; `fixed` as much as it is told, where there is room."""
    serve(tmp_path / "trace")
    events = read(tmp_path / "trace")

    def with_policy(name: str) -> replay.Summary:
        steps = replay.replay(events, lambda s: msgspec.structs.replace(s, policy=name, max_speculative_tokens=5))
        return replay.total(replay.summarise(steps).values())

    off, fixed, as_it_was = with_policy("off"), with_policy("fixed"), with_policy("request")
    assert (off.replayed_k, round(off.predicted_gain, 9)) == (0.0, 0.0)
    assert 3.0 < fixed.replayed_k <= 5.0
    assert off.recorded_k == fixed.recorded_k > 0.0
    assert as_it_was.predicted_goodput > max(off.predicted_goodput, fixed.predicted_goodput)


def test_a_full_file_makes_room_and_both_can_be_replayed(tmp_path: Path) -> None:
    """Neither file outgrows its bound, and the newer one begins with the settings in force."""
    serve(tmp_path / "trace", max_bytes=60_000)
    old, new = tmp_path / "trace.1", tmp_path / "trace"
    assert {path.name for path in tmp_path.iterdir()} == {"trace", "trace.1"}
    assert 50_000 < old.stat().st_size <= 60_000
    assert new.stat().st_size <= 60_000
    start = read(new)[0]
    assert isinstance(start, Start)
    assert start.settings.generation == 1
    assert list(replay.replay(read(new)))


def test_a_new_file_begins_with_what_was_learned(tmp_path: Path) -> None:
    """Priors of the last load report are in its start line: a replay of it alone does not begin from nothing."""
    priors = Priors("k", LatencyPrior({"target.step": 0.02}, weight=50.0))
    with recording(tmp_path / "trace", max_bytes=2000) as recorder:
        recorder.start("k", PolicySettings())
        for _ in range(4):
            recorder.load(LoadReport(model="m", version="1", state="ready", priors=priors))
    start, *rest = read(tmp_path / "trace")
    assert isinstance(start, Start)
    assert start.settings.priors == priors
    assert all(isinstance(event, Loaded) for event in rest)


def test_lines_are_on_disk_within_a_second_or_so(tmp_path: Path) -> None:
    """Whoever watches the file of a running server sees what just happened."""
    with recording(tmp_path / "trace") as recorder:
        recorder.start("k", PolicySettings())
        deadline = time.monotonic() + 5.0
        while not (tmp_path / "trace").stat().st_size:
            assert time.monotonic() < deadline
            time.sleep(0.02)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no disk that is always full")
def test_a_full_disk_is_said_once_and_stops_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """The recording ends, the policy goes on, and closing is quiet."""
    with caplog.at_level(logging.WARNING), recording(Path("/dev/full")) as recorder:
        policy = RecordedPolicy(SpeculationPolicy(PolicySettings(), key="k"), "k", recorder)
        deadline = time.monotonic() + 5.0
        while not caplog.records:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        for generation in range(1, 5):
            policy.apply(PolicySettings(generation=generation))
        assert policy.settings.generation == 4
    assert [record.message for record in caplog.records] == [
        "event=trace_failed file=/dev/full error='[Errno 28] No space left on device'"
    ]


def batch_of(size: int) -> tuple[BatchState, StepOutcome]:
    """A step of *size* requests that all drafted."""
    names = [f"cmpl-{i:032x}" for i in range(size)]
    batch = BatchState(tuple(Candidate(name, 500 + i, 8, "rejection", "auto", 1) for i, name in enumerate(names)))
    features = StepFeatures(5 * size, 500 * size, size, 0, (size,) * 4, 2000 * size, size)
    outcomes = tuple(RequestOutcome(name, "draft", "rejection", 4, 2) for name in names)
    return batch, StepOutcome(Decision(), features, StepSeconds(0.004, 0.03, 0.001), outcomes, 3 * size)


class Silent:
    """A policy that costs nothing, so that what recording costs can be told."""

    settings = PolicySettings()

    def decide(self, batch: BatchState) -> Decision:
        """Nothing."""
        return Decision()

    def observe(self, outcome: StepOutcome) -> None:
        """Nothing."""


def test_a_step_costs_the_engine_microseconds(tmp_path: Path) -> None:
    """At 32 requests, in the engine's thread: some microseconds, whatever the line is long."""
    batch, outcome = batch_of(32)
    with recording(tmp_path / "trace") as recorder:
        policy = RecordedPolicy(Silent(), "k", recorder)  # type: ignore[arg-type]
        costs = []
        for _ in range(500):
            began = time.perf_counter()
            policy.decide(batch)
            policy.observe(outcome)
            costs.append(time.perf_counter() - began)
    assert sorted(costs)[250] < 50e-6
    steps = [event for event in read(tmp_path / "trace") if isinstance(event, Step)]
    assert len(steps) == 500
    assert steps[-1].batch_state() == batch
    assert steps[-1].outcome() == outcome


def test_a_line_cut_short_by_a_kill_is_left_out(tmp_path: Path) -> None:
    """Only the last line may be broken; any other is named by its number."""
    serve(tmp_path / "trace", num_requests=5)
    text = (tmp_path / "trace").read_bytes()
    whole = read(tmp_path / "trace")
    assert list(decode(text[:-10].splitlines())) == whole[:-1]
    lines = text.splitlines()
    lines[3] = lines[3][:50]
    with pytest.raises(RecordingError, match="line 4"):
        list(decode(lines))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "is empty"),
        (b"no json\n", "line 1"),
        (msgspec.json.encode(Applied(0.0, PolicySettings())), "does not begin with a start line"),
        (msgspec.json.encode(Start(99, "9", 0.0, "k", PolicySettings())), "format 99"),
    ],
)
def test_what_is_no_recording_is_refused(text: bytes, message: str) -> None:
    """In a sentence that says why."""
    with pytest.raises(RecordingError, match=message):
        list(decode(text.splitlines()))
