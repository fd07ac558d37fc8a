"""A plan carried out: when requests are sent, how many at once, and what is left of one that is stopped."""

import asyncio
from typing import Any, cast

import pytest

from smartspec.loadgen.client import Client, Job, Sample
from smartspec.loadgen.plan import Plan
from smartspec.loadgen.run import Run, carry_out


class SlowServer:
    """Stands for a client: each request takes *seconds*."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.sent: list[tuple[int, float]] = []
        self.at_once = self.most_at_once = 0

    def clock(self) -> float:
        """The event loop's time."""
        return asyncio.get_running_loop().time()

    async def send(self, job: Job, *, started: float, speculation: Any) -> Sample:
        """Wait, and be done."""
        self.sent.append((job.number, self.clock() - started))
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await asyncio.sleep(self.seconds)
        finally:
            self.at_once -= 1
        return Sample(job.number, job.due, tokens=1)


def plan(dues: list[float], *, clients: int | None = None, seconds: float | None = None) -> Plan:
    """Jobs that are due then."""
    return Plan(tuple(Job(n, due, "p", 1) for n, due in enumerate(dues)), clients, seconds, "")


async def test_an_open_loop_sends_when_due() -> None:
    """Whatever became of the others."""
    server, run = SlowServer(0.2), Run()
    await carry_out(plan([0.0, 0.02, 0.1]), cast(Client, server), run)
    assert [number for number, _ in server.sent] == [0, 1, 2]
    assert [time for _, time in server.sent] == pytest.approx([0.0, 0.02, 0.1], abs=0.03)
    assert server.most_at_once == 3
    assert len(run.samples) == 3
    assert run.seconds == pytest.approx(0.3, abs=0.05)


async def test_a_closed_loop_sends_when_answered() -> None:
    """No more at once than clients, every job once, and none after the time is up."""
    server, run = SlowServer(0.02), Run()
    await carry_out(plan([0.0] * 10, clients=3), cast(Client, server), run)
    assert server.most_at_once == 3
    assert sorted(number for number, _ in server.sent) == list(range(10))
    server, run = SlowServer(0.02), Run()
    await carry_out(plan([0.0] * 1000, clients=2, seconds=0.1), cast(Client, server), run)
    assert 4 <= len(run.samples) <= 12


async def test_a_run_that_is_stopped_keeps_what_it_has() -> None:
    """Ended requests are samples; those under way are counted, and are none."""
    server, run, told = SlowServer(0.05), Run(), []
    running = asyncio.create_task(
        carry_out(
            plan([0.0, 0.0, 0.06, 0.06, 9.0]),
            cast(Client, server),
            run,
            tell=lambda run: told.append(run.num_in_flight),
        )
    )
    await asyncio.sleep(0.08)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert sorted(sample.number for sample in run.samples) == [0, 1]
    assert (run.num_cut_off, run.num_in_flight) == (2, 0)
    assert max(told) == 2
