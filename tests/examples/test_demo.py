"""The demo's parts: what its clients measure, what it reads, what it concludes, what it shows."""

import asyncio
import io
import json
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession, web
from rich.console import Console
from yarl import URL

from smartspec_demo import figure
from smartspec_demo.load import Clients, Mode, Sample
from smartspec_demo.monitor import Counters, Monitor, Snapshot, parse
from smartspec_demo.scenario import Course, DemoError, Phase, Scenario, Script
from smartspec_demo.summary import summarize, verdicts
from smartspec_demo.table import view

HARDWARE = {"model": "a processor", "cores": 4, "python": "3.11"}


@dataclass
class Backend:
    """A server that streams `max_tokens` tokens; `refusals` 429s come first, `broken` streams end early."""

    url: URL
    bodies: list[dict[str, Any]]
    refusals: int = 0
    broken: bool = False
    generated: int = 0

    async def complete(self, request: web.Request) -> web.StreamResponse:
        """One completion."""
        body = await request.json()
        self.bodies.append(body)
        if self.refusals:
            self.refusals -= 1
            return web.Response(status=429, headers={"Retry-After": "0.01"})
        response = web.StreamResponse()
        await response.prepare(request)
        for index in range(body["max_tokens"]):
            await asyncio.sleep(0.001)
            event: dict[str, Any] = {"choices": [{"text": f"{index}"}]}
            await response.write(f"data: {json.dumps(event)}\n\n".encode())
        self.generated += body["max_tokens"]
        if not self.broken:
            event = {"choices": [{"text": "", "finish_reason": "length"}], "usage": None}
            await response.write(f"data: {json.dumps(event)}\n\n".encode())
            event = {"choices": [], "usage": {"completion_tokens": body["max_tokens"]}}
            await response.write(f"data: {json.dumps(event)}\n\ndata: [DONE]\n\n".encode())
        return response

    async def metrics(self, request: web.Request) -> web.Response:
        """What it has generated, and proposals of three tokens each."""
        return web.Response(text=exposition(self.generated))


def exposition(generated: int) -> str:
    """A replica's `/metrics` after *generated* tokens: k = 3, a third accepted, two tokens a step of 10 ms."""
    steps = generated / 2
    return "\n".join(
        [
            "# TYPE vllm:num_requests_running gauge",
            'vllm:num_requests_running{model_name="m"} 2',
            "# TYPE vllm:num_requests_waiting gauge",
            'vllm:num_requests_waiting{model_name="m"} 1',
            "# TYPE vllm:generation_tokens counter",
            f'vllm:generation_tokens_total{{model_name="m"}} {generated}',
            "# TYPE vllm:spec_decode_num_draft_tokens counter",
            f'vllm:spec_decode_num_draft_tokens_total{{model_name="m"}} {3 * steps}',
            "# TYPE vllm:spec_decode_num_accepted_tokens counter",
            f'vllm:spec_decode_num_accepted_tokens_total{{model_name="m"}} {steps}',
            "# TYPE smartspec_speculative_tokens histogram",
            f'smartspec_speculative_tokens_bucket{{proposer="draft",le="+Inf"}} {steps / 2}',
            f'smartspec_speculative_tokens_sum{{proposer="draft"}} {3 * steps}',
            f'smartspec_speculative_tokens_count{{proposer="draft"}} {steps / 2}',
            'smartspec_speculative_tokens_sum{proposer="none"} 0',
            f'smartspec_speculative_tokens_count{{proposer="none"}} {steps / 2}',
            "# TYPE smartspec_tokens_kept counter",
            f"smartspec_tokens_kept_total {generated}",
            "# TYPE smartspec_step_seconds counter",
            f'smartspec_step_seconds_total{{part="draft"}} {0.002 * steps}',
            f'smartspec_step_seconds_total{{part="target"}} {0.008 * steps}',
            "# EOF",
        ]
    )


@pytest.fixture
async def backend() -> AsyncIterator[Backend]:
    """A listening backend."""
    server = Backend(URL(), [])
    app = web.Application()
    app.router.add_post("/v1/completions", server.complete)
    app.router.add_get("/metrics", server.metrics)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    server.url = URL(f"http://127.0.0.1:{runner.addresses[0][1]}")
    yield server
    await runner.cleanup()


@pytest.fixture
async def clients(backend: Backend) -> AsyncIterator[Clients]:
    """Clients of the backend."""
    async with ClientSession() as session:
        yield Clients(session, backend.url, "m", ["a", "b"], clock=asyncio.get_running_loop().time)


@pytest.mark.parametrize(
    ("mode", "speculation"),
    [("request", {"mode": "auto"}), ("off", {"mode": "off"}), ("fixed", {"mode": "fixed", "max_tokens": 4})],
)
async def test_a_request_says_its_mode_and_is_timed(
    clients: Clients, backend: Backend, mode: Mode, speculation: dict[str, Any]
) -> None:
    """The field `speculation` carries the mode; first token before the last, all tokens counted."""
    sample = await clients.complete("a", phase="idle", mode=mode, max_tokens=5)
    assert backend.bodies[0]["speculation"] == speculation
    assert 0 < sample.ttft < sample.latency
    assert (sample.tokens, sample.error, clients.samples) == (5, "", [sample])


async def test_a_429_is_waited_out_and_counted(clients: Clients, backend: Backend) -> None:
    """As OpenAI's own client does; it is no error."""
    backend.refusals = 2
    sample = await clients.complete("a", phase="flood", mode="request", max_tokens=2)
    assert (sample.throttled, sample.error, len(backend.bodies)) == (2, "", 3)


async def test_a_stream_that_ends_early_is_an_error(clients: Clients, backend: Backend) -> None:
    """Whatever the status was."""
    backend.broken = True
    sample = await clients.complete("a", phase="flood", mode="request", max_tokens=2)
    assert sample.error.startswith("cut short: the stream ended after 2 pieces")


async def test_an_unreachable_server_is_an_error_and_not_an_exception() -> None:
    """The other clients go on."""
    async with ClientSession() as session:
        clients = Clients(session, URL("http://127.0.0.1:1"), "m", ["a"], clock=asyncio.get_running_loop().time)
        assert (await clients.complete("a", phase="idle", mode="off", max_tokens=1)).error.startswith("connection")


def test_counters_are_read_over_all_labels() -> None:
    """k averages over all decoding requests, those without a proposal too."""
    scrape = parse(exposition(200))
    counters = scrape.counters
    assert (scrape.running, scrape.waiting) == (2, 1)
    assert (counters.generated, counters.mean_k) == (200, 3.0)
    assert counters.acceptance == pytest.approx(1 / 3)
    assert counters.goodput == pytest.approx(200)
    assert Counters().mean_k is None


def stopwatch() -> Callable[[], float]:
    """Seconds from now on."""
    begun = time.monotonic()
    return lambda: time.monotonic() - begun


def status_file(folder: Path, *pods: tuple[str, str, bool]) -> Path:
    """The operator's status with these pods."""
    path = folder / "status.json"
    shown = [{"name": name, "url": url, "ready": ready} for name, url, ready in pods]
    history = [{"fromReplicas": 1, "toReplicas": 2, "reason": "Load", "message": "the queue grows"}]
    policy = {"generation": 3, "reason": "TPOT"}
    path.write_text(json.dumps({"pods": shown, "status": {"scalingHistory": history, "policy": policy}}))
    return path


async def test_a_replica_that_has_gone_keeps_what_it_counted(backend: Backend, tmp_path: Path) -> None:
    """Totals never fall, or rates would be negative after a scale-down."""
    backend.generated = 100
    async with ClientSession() as session:
        monitor = Monitor(session, status_file(tmp_path, ("a", str(backend.url), True)), lambda: 0.0)
        assert (await monitor.total()).generated == 100
        status_file(tmp_path)
        assert (await monitor.total()).generated == 100


async def test_the_scenario_plays_every_phase(clients: Clients, backend: Backend, tmp_path: Path) -> None:
    """In small: pairs when idle, a flood, slices of it in each mode, and no errors."""
    script = Script(
        idle_pairs=2, idle_tokens=4, busy_seconds=0.05, busy_clients=2, flood_clients=4, flood_tokens=4,
        flood_min_seconds=0.05, flood_max_seconds=0.3, flood_settle=0.0, slice_rounds=3,
        slice_tokens=(5, 6), slice_seconds=0.1, calm_max_seconds=0.1, calm_pause=0.01, calm_settle=0.0,
    )  # fmt: skip
    clock = stopwatch()
    async with ClientSession() as session:
        path = status_file(tmp_path, ("a", str(backend.url), True), ("b", "", True))
        monitor = Monitor(session, path, clock)
        scenario = Scenario(clients, monitor, script, clock)
        course = await scenario.play()
    assert [phase.name for phase in course.phases] == ["idle", "busy", "flood", "compare", "calm"]
    idle = [sample.mode for sample in clients.samples if sample.phase == "idle"]
    assert idle == ["request", "off", "off", "request"]
    compared = {body["max_tokens"] for body in backend.bodies if body["speculation"]["mode"] == "fixed"}
    assert compared == {5, 6}
    assert {mode: len(speeds) for mode, speeds in course.slices.items()} == {"request": 3, "off": 3, "fixed": 3}
    assert course.idle.mean_k == pytest.approx(3.0)
    assert not any(sample.error for sample in clients.samples)


async def test_a_machine_too_slow_for_the_script_is_cut_short(
    clients: Clients, backend: Backend, tmp_path: Path
) -> None:
    """The demo ends in time with what it has; requests that were cut off count as nothing."""
    clock = stopwatch()
    async with ClientSession() as session:
        monitor = Monitor(session, status_file(tmp_path, ("a", str(backend.url), True)), clock)
        script = Script(idle_pairs=1, idle_tokens=4, max_seconds=0.3)
        scenario = Scenario(clients, monitor, script, clock)
        course = await asyncio.wait_for(scenario.play(), 5)
    assert [phase.name for phase in course.phases] == ["idle", "busy"]
    assert not any(sample.error for sample in clients.samples)


async def test_a_server_that_serves_nothing_ends_the_demo(clients: Clients, backend: Backend, tmp_path: Path) -> None:
    """At the first request, with its error, not after four minutes."""
    backend.broken = True
    clock = stopwatch()
    async with ClientSession() as session:
        scenario = Scenario(clients, Monitor(session, status_file(tmp_path), clock), Script(), clock)
        with pytest.raises(DemoError, match="the first request failed: cut short"):
            await scenario.play()


def good_course() -> Course:
    """A course under which every claim holds."""
    course = Course(
        phases=[Phase("idle", "idle", 0, 10), Phase("flood", "flood", 10, 20), Phase("calm", "idle again", 20, 30)],
        idle=Counters(k_sum=30, k_count=10),
        flood=Counters(k_sum=10, k_count=10, drafted=10, accepted=6),
    )
    course.slices.update(request=[97.0, 103.0], off=[90.0, 92.0], fixed=[101.0, 103.0])
    return course


def good_samples() -> list[Sample]:
    """Samples under which every claim holds: 0.5 s against 1 s."""
    return [
        Sample("idle", mode, 1.0 + index, latency, 0.1, 64)
        for index in range(4)
        for mode, latency in (("request", 0.5), ("off", 1.0))
    ]


def snapshots(*replicas: tuple[int, int]) -> list[Snapshot]:
    """Seconds with so many replicas, and so many ready."""
    counters = Counters(k_sum=2, k_count=1, generated=100, kept=100, step_seconds=0.9, drafted=2, accepted=1)
    return [
        Snapshot(float(at), "flood", counters, 1.0, 4, 2, there, ready, "generation 3: TPOT", "1 → 2 replicas: load")
        for at, (there, ready) in enumerate(replicas)
    ]


COME_AND_GO = ((1, 1), (2, 1), (2, 2), (2, 2), (1, 1))


def test_the_summary_holds_what_was_measured() -> None:
    """Means per mode, counts, and replicas only where they change."""
    summary = summarize(good_samples(), snapshots(*COME_AND_GO), good_course(), HARDWARE)
    assert (summary["requests"], summary["errors"]) == (8, 0)
    assert (summary["mean_k_idle"], summary["mean_k_flood"]) == (3.0, 1.0)
    assert summary["mean_latency_idle_seconds"] == {"request": 0.5, "off": 1.0}
    assert summary["tokens_per_second_flood"] == {"request": 100.0, "off": 91.0, "fixed_4": 102.0}
    assert [(change["at"], change["ready"]) for change in summary["replicas"]] == [(0, 1), (1, 1), (2, 2), (4, 1)]
    assert all(claim.held for claim in verdicts(summary))


def replica_changes(*changes: tuple[str, int]) -> list[dict[str, Any]]:
    """Phases with the number of replicas, all of them ready."""
    return [{"at": 0, "phase": phase, "replicas": count, "ready": count} for phase, count in changes]


@pytest.mark.parametrize(
    ("change", "missed"),
    [
        ({"errors": 1}, "no request failed"),
        ({"mean_k_idle": 1.9}, "idle, it speculates"),
        ({"mean_k_idle": None}, "idle, it speculates"),
        ({"mean_k_flood": 3.0}, "flooded, it speculates less"),
        ({"mean_latency_idle_seconds": {"request": 0.66, "off": 1.0}}, "idle, latency"),
        ({"mean_latency_idle_seconds": {"request": None, "off": None}}, "idle, latency"),
        ({"flood_speed_ratio": {"mean": 0.92, "error": 0.02}}, "flooded, tokens/s"),
        ({"flood_speed_ratio": None}, "flooded, tokens/s"),
        ({"replicas": []}, "a second replica"),
        ({"replicas": replica_changes(("idle", 1), ("flood", 1))}, "a second replica"),
        ({"replicas": replica_changes(("idle", 1), ("flood", 2))}, "a second replica"),
        ({"replicas": replica_changes(("idle", 2), ("calm", 1))}, "a second replica"),
    ],
)
def test_a_claim_that_is_missed_is_said_to_be(change: dict[str, Any], missed: str) -> None:
    """Each claim fails by its own measurement, and by a missing one."""
    summary = summarize(good_samples(), snapshots(*COME_AND_GO), good_course(), HARDWARE) | change
    assert any(claim.text.startswith(missed) and not claim.held for claim in verdicts(summary))


@pytest.mark.parametrize("terminal", [True, False])
def test_the_view_shows_numbers_and_decisions(terminal: bool) -> None:
    """On a terminal and in a log alike."""
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=140, color_system=None)
    with view(console, "a demo") as shown:
        shown.show(snapshots((2, 1)), [Sample("flood", "request", 0.0, 1.0, 0.25, 4)])
    text = out.getvalue()
    for part in ("a demo", "flood", "100", "50%", "111", "250", "1/2", "generation 3: TPOT", "1 → 2 replicas"):
        assert part in text


def test_the_picture_is_drawn(tmp_path: Path) -> None:
    """A PNG of some size, without a display and without a warning; also when hardly anything was measured."""
    summary = summarize(good_samples(), snapshots(*COME_AND_GO), good_course(), HARDWARE)
    figure.draw(tmp_path / "full.png", good_samples(), snapshots(*COME_AND_GO), good_course().phases, summary)
    figure.draw(tmp_path / "none.png", [], [], [], summarize([], [], Course(), HARDWARE))
    failed = [Sample("idle", "request", 0.0, 1.0, error="refused")]
    figure.draw(tmp_path / "failed.png", failed, [], [], summarize(failed, [], Course(), HARDWARE))
    for name in ("full.png", "none.png", "failed.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
