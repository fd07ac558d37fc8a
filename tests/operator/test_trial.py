"""A trial that goes wrong at its beginning: what may have been made is removed, and what is another's is left alone."""

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from smartspec_operator.kube import Api, ApiError
from smartspec_operator.resource import Manifest
from smartspec_operator.trial import attempt, wish


class Server(Api):
    """Makes what it is told, but its answer takes *seconds* and may be lost."""

    def __init__(self, live: Manifest | None = None, *, seconds: float = 0.0, lost: bool = False) -> None:
        self.live = live
        self.seconds = seconds
        self.lost = lost

    async def create(self, manifest: Manifest) -> None:
        """Make it."""
        await asyncio.sleep(self.seconds)
        if self.live is not None:
            raise ApiError(409, "already exists")
        self.live = {**manifest, "metadata": {**manifest["metadata"], "uid": "u"}}
        if self.lost:
            raise ApiError(0, "TimeoutError")

    async def get(self, kind: str, namespace: str, name: str) -> Manifest | None:
        """What is there."""
        return self.live

    async def delete(self, kind: str, namespace: str, name: str, uid: str) -> None:
        """Remove it."""
        self.live = None


def tried(server: Server) -> Any:
    """The trial, which has nobody to prompt."""
    session: Any = None
    return attempt(server, session, wish("ns", "demo", {}, []), timeout_seconds=5, say=lambda _: None)


async def test_an_answer_that_was_lost_leaves_nothing_behind() -> None:
    """The API server made it and could not say so."""
    server = Server(lost=True)
    with pytest.raises(ApiError, match="TimeoutError"):
        await tried(server)
    assert server.live is None


async def test_an_interruption_while_it_is_made_leaves_nothing_behind() -> None:
    """The request is on its way: it is waited for, and then what it made is removed."""
    server = Server(seconds=0.05)
    trial = asyncio.create_task(tried(server))
    await asyncio.sleep(0.01)
    trial.cancel()
    with pytest.raises(asyncio.CancelledError):
        await trial
    assert server.live is None


@pytest.mark.parametrize("metadata", [{"uid": "theirs"}, {"uid": "theirs", "annotations": {"smartspec.io/trial": "x"}}])
async def test_what_is_anothers_is_left_alone(metadata: Mapping[str, Any]) -> None:
    """Even that of another trial."""
    server = Server({"metadata": metadata})
    with pytest.raises(ApiError, match="exists"):
        await tried(server)
    assert server.live == {"metadata": metadata}
