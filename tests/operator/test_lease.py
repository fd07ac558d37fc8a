"""The Lease: one holder at a time, by each process's own clock, over an API server that may be away."""

import asyncio
import contextlib
from typing import Any

import pytest

from smartspec_operator.kube import ApiError
from smartspec_operator.lease import Lease, LeaseLostError


class Server:
    """The API server's Leases in memory, with its optimistic concurrency; away while `is_away`.

    The next `hanging` requests are never answered.
    """

    def __init__(self) -> None:
        self.live: dict[str, Any] | None = None
        self.is_away = False
        self.hanging = 0
        self.version = 0

    async def get(self, kind: str, namespace: str, name: str) -> dict[str, Any] | None:
        """The object."""
        await self._answer()
        return self.live

    async def create(self, manifest: dict[str, Any]) -> None:
        """A new one, or 409."""
        await self._answer()
        if self.live is not None:
            raise ApiError(409, "exists")
        self._store(manifest)

    async def replace(self, manifest: dict[str, Any]) -> None:
        """The next version of it, or 409."""
        await self._answer()
        if self.live is None or manifest["metadata"]["resourceVersion"] != self.live["metadata"]["resourceVersion"]:
            raise ApiError(409, "conflict")
        self._store(manifest)

    async def _answer(self) -> None:
        if self.hanging:
            self.hanging -= 1
            await asyncio.Event().wait()
        if self.is_away:
            raise ApiError(0, "connection refused")

    def _store(self, manifest: dict[str, Any]) -> None:
        self.version += 1
        self.live = {**manifest, "metadata": {**manifest["metadata"], "resourceVersion": str(self.version)}}

    @property
    def holder(self) -> str:
        """Who holds the lease now."""
        assert self.live is not None
        return str(self.live["spec"]["holderIdentity"])


def lease(server: Server, identity: str, seconds: float = 0.15) -> Lease:
    """A lease of *identity* that lasts so long."""
    return Lease(server, "ns", "operator", identity, duration_seconds=seconds)  # type: ignore[arg-type]


async def test_the_first_one_leads_and_the_other_waits_until_it_lets_go() -> None:
    """A renewed lease is never taken; a released one at once."""
    server = Server()
    first, second = lease(server, "first"), lease(server, "second")
    await first.acquire()
    holding, waiting = asyncio.create_task(first.hold()), asyncio.create_task(second.acquire())
    await asyncio.sleep(0.5)
    assert (server.holder, waiting.done()) == ("first", False)
    holding.cancel()
    await first.release()
    await asyncio.wait_for(waiting, 0.1)
    assert server.holder == "second"


async def test_a_holder_that_dies_is_followed_after_the_lease_has_ended() -> None:
    """Not before: whoever holds it might still be at work. The API knows whole seconds only."""
    server = Server()
    await lease(server, "dead").acquire()
    began = asyncio.get_running_loop().time()
    await lease(server, "heir").acquire()
    assert 1.0 <= asyncio.get_running_loop().time() - began < 1.5
    assert server.holder == "heir"
    assert server.live is not None
    assert server.live["spec"]["leaseTransitions"] == 2


async def test_a_container_that_starts_again_takes_up_its_own_lease() -> None:
    """Its pod's name is its identity: nothing is waited for."""
    server = Server()
    await lease(server, "pod-1", seconds=60.0).acquire()
    await asyncio.wait_for(lease(server, "pod-1", seconds=60.0).acquire(), 0.1)


async def test_a_holder_without_an_api_server_stops_before_another_may_begin() -> None:
    """It gives up within the lease, so that for no moment two of them act."""
    server = Server()
    first = lease(server, "first", seconds=0.3)
    await first.acquire()
    server.is_away = True
    began = asyncio.get_running_loop().time()
    with pytest.raises(LeaseLostError, match="could not be renewed"):
        await first.hold()
    assert asyncio.get_running_loop().time() - began < 0.3


async def test_a_short_outage_loses_nothing() -> None:
    """One renewal that fails is tried again."""
    server = Server()
    first = lease(server, "first", seconds=0.5)
    await first.acquire()
    holding = asyncio.create_task(first.hold())
    server.is_away = True
    await asyncio.sleep(0.15)
    server.is_away = False
    await asyncio.sleep(0.6)
    assert not holding.done()
    holding.cancel()


@pytest.mark.parametrize("hanging", [1, 2])
async def test_requests_that_hang_leave_time_for_another_try(hanging: int) -> None:
    """A connection that died without a word is no reason to give up the lease."""
    server = Server()
    first = lease(server, "first", seconds=0.6)
    await first.acquire()
    holding = asyncio.create_task(first.hold())
    server.hanging = hanging
    version = server.version
    await asyncio.sleep(0.55)
    assert not holding.done()
    assert server.version > version
    holding.cancel()


async def test_who_waits_outlasts_requests_that_hang() -> None:
    """A standby tries again, too."""
    server = Server()
    server.hanging = 1
    await asyncio.wait_for(lease(server, "first", seconds=0.3).acquire(), 0.3)


async def test_a_lease_that_was_taken_away_is_lost_at_once() -> None:
    """Whoever edits it by hand decides."""
    server = Server()
    first = lease(server, "first")
    await first.acquire()
    assert server.live is not None
    server.live["spec"]["holderIdentity"] = "somebody"
    with pytest.raises(LeaseLostError, match="is held by somebody"):
        await first.hold()


async def test_who_waits_outlasts_an_api_server_that_is_away() -> None:
    """Waiting never fails, and is a sign of life."""
    server = Server()
    server.is_away = True
    waiting = asyncio.create_task(lease(server, "first").acquire())
    await asyncio.sleep(0.2)
    server.is_away = False
    await asyncio.wait_for(waiting, 0.5)


async def test_of_many_exactly_one_leads() -> None:
    """All at once, on a server that interleaves them: optimistic concurrency leaves one."""
    server = Server()
    leases = [lease(server, f"p{i}", seconds=1.0) for i in range(8)]
    tasks = [asyncio.create_task(one.acquire()) for one in leases]
    await asyncio.sleep(0.5)
    assert sum(task.done() for task in tasks) == 1
    for task in tasks:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
