"""Events: one for each thing that happens, counted when it happens again."""

from collections.abc import Mapping
from typing import Any

import pytest

from fleets import later
from smartspec_operator import events
from smartspec_operator.events import Events
from smartspec_operator.kube import Api, ApiError
from smartspec_operator.resource import Manifest
from smartspec_operator.status import News

BODY = {"metadata": {"name": "demo", "namespace": "ns", "uid": "u"}}
LATE = News("Warning", "SomeReplicasSilent", "a: timeout")


class Server(Api):
    """The Events that stand, by name."""

    def __init__(self) -> None:
        self.events: dict[str, dict[str, Any]] = {}
        self.forbids = False

    async def create(self, manifest: Manifest) -> None:
        """A new one."""
        self.events[manifest["metadata"]["name"]] = dict(manifest)

    async def merge(self, manifest: Manifest, *, dry_run: bool = False) -> Manifest:
        """A patch of one that is there."""
        name = manifest["metadata"]["name"]
        if self.forbids or name not in self.events:
            raise ApiError(403 if self.forbids else 404, "no")
        self.events[name] |= {key: manifest[key] for key in ("count", "lastTimestamp")}
        return manifest

    @property
    def told(self) -> list[tuple[str, int]]:
        """Message and count of each."""
        return [(event["message"], event["count"]) for event in self.events.values()]


@pytest.fixture
def server() -> Server:
    """One without Events."""
    return Server()


async def test_what_happens_again_is_counted(server: Server) -> None:
    """Also with something else in between; the time of the last one is told."""
    posting, other = Events(server), News("Normal", "AllReplicasAnswer", "every ready replica reports its load")
    for at in (0, 10, 20):
        await posting.tell(BODY, [LATE, other], later(at))
    assert server.told == [(LATE.message, 3), (other.message, 3)]
    first, _ = server.events.values()
    assert (first["firstTimestamp"], first["lastTimestamp"]) == ("2026-03-01T12:00:00Z", "2026-03-01T12:00:20Z")


async def test_another_resource_message_or_time_is_another_event(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is long past begins anew."""
    posting = Events(server)
    twin: Mapping[str, Any] = {"metadata": {"name": "twin", "namespace": "ns", "uid": "v"}}
    for body, message in ((BODY, "a"), (BODY, "b"), (twin, "a")):
        await posting.tell(body, [News("Normal", "Repaired", message)], later(0))
    assert [count for _, count in server.told] == [1, 1, 1]
    monkeypatch.setattr(events, "AGAIN_SECONDS", 0.0)
    await posting.tell(BODY, [News("Normal", "Repaired", "a")], later(700))
    assert [count for _, count in server.told] == [1, 1, 1, 1]


@pytest.mark.parametrize("forbids", [True, False])
async def test_an_event_that_cannot_be_counted_is_posted_anew(server: Server, forbids: bool) -> None:
    """Under an older role, or where somebody has removed it."""
    posting = Events(server)
    await posting.tell(BODY, [LATE], later(0))
    server.forbids = forbids
    if not forbids:
        server.events.clear()
    await posting.tell(BODY, [LATE], later(5))
    assert server.told == [(LATE.message, 1)] * (2 if forbids else 1)
