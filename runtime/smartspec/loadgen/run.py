"""A run: the jobs of a plan sent to a server, and whatever came of them by the time it ended or was stopped."""

import asyncio
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from smartspec.loadgen.client import Client, Job, Sample
from smartspec.loadgen.plan import Plan


@dataclass
class Run:
    """Samples in the order in which requests ended; *seconds* from the start to the last end."""

    samples: list[Sample] = field(default_factory=list)
    seconds: float = 0.0
    num_in_flight: int = 0
    num_cut_off: int = 0
    """Requests that were under way when the run was stopped: they are no samples."""
    counted: Mapping[str, float] | None = None
    """What the server counted meanwhile, or None where it tells nothing."""


async def carry_out(
    plan: Plan,
    client: Client,
    run: Run,
    *,
    speculation: Mapping[str, Any] | None = None,
    tell: Callable[[Run], None] = lambda run: None,
) -> None:
    """Send the jobs of *plan*; *run* is filled while they end, so that a run that is cancelled keeps what it has.

    *tell* is called after each change.
    """
    started = client.clock()

    async def send(job: Job) -> None:
        run.num_in_flight += 1
        tell(run)
        try:
            sample = await client.send(job, started=started, speculation=speculation)
            run.samples.append(sample)
        except asyncio.CancelledError:
            run.num_cut_off += 1
            raise
        finally:
            run.num_in_flight -= 1
            run.seconds = client.clock() - started
        tell(run)

    async def when_due(job: Job) -> None:
        if (wait := started + job.due - client.clock()) > 0:
            await asyncio.sleep(wait)
        await send(job)

    async def in_turn(jobs: Iterator[Job]) -> None:
        for job in jobs:
            now = client.clock() - started
            if plan.seconds is not None and now >= plan.seconds:
                return
            await send(Job(job.number, now, job.prompt, job.max_tokens))

    async with asyncio.TaskGroup() as group:
        if plan.clients is None:
            for job in plan:
                group.create_task(when_due(job))
        else:
            jobs = iter(plan)
            for _ in range(min(plan.clients, len(plan))):
                group.create_task(in_turn(jobs))
