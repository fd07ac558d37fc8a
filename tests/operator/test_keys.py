"""The Secrets of ports: read seldom, made once, and never taken from others."""

from typing import Any

import pytest

from smartspec_operator.cluster import NotOursError
from smartspec_operator.keys import SECRET_SECONDS, Secrets
from smartspec_operator.kube import Api, ApiError
from smartspec_operator.resource import Manifest

PLACE = ("ns", "demo-admin-key")


def secret(uid: str = "u1", **data: str) -> dict[str, Any]:
    """A Secret that the SmartSpec with *uid* controls."""
    owners = [{"uid": uid, "controller": True}]
    metadata = {"namespace": PLACE[0], "name": PLACE[1], "ownerReferences": owners}
    return {"kind": "Secret", "metadata": metadata, "data": data or {"key": "a2V5"}}


class Server(Api):
    """Secrets in memory. `refuses` is the status of every read; what was asked is counted."""

    def __init__(self, *live: Manifest) -> None:
        self.live = {(s["metadata"]["namespace"], s["metadata"]["name"]): s for s in live}
        self.reads = 0
        self.refuses = 0

    async def get(self, kind: str, namespace: str, name: str) -> Manifest | None:
        """The Secret."""
        self.reads += 1
        if self.refuses:
            raise ApiError(self.refuses, "no")
        return self.live.get((namespace, name))

    async def create(self, manifest: Manifest) -> None:
        """A new one."""
        place = (manifest["metadata"]["namespace"], manifest["metadata"]["name"])
        if place in self.live:
            raise ApiError(409, "AlreadyExists")
        self.live[place] = manifest


async def test_a_key_is_made_once() -> None:
    """Who comes second keeps what the first one made, also where he had read that there is none."""
    server = Server()
    one, two = Secrets(server), Secrets(server)
    assert await two.get(*PLACE) is None
    await one.create(secret(key="b25l"))
    await two.create(secret(key="dHdv"))
    for secrets in (one, two):
        found = await secrets.get(*PLACE)
        assert found is not None
        assert found["data"] == {"key": "b25l"}


@pytest.mark.parametrize("theirs", [secret("u2"), {"metadata": {"namespace": PLACE[0], "name": PLACE[1]}}])
async def test_a_secret_of_somebody_else_is_left_alone(theirs: Manifest) -> None:
    """Another SmartSpec's, or nobody's: its name is taken."""
    server = Server(theirs)
    with pytest.raises(NotOursError, match="demo-admin-key exists"):
        await Secrets(server).create(secret())
    assert server.live[PLACE] == theirs


async def test_one_that_was_deleted_is_known_to_come_back() -> None:
    """A repair is worth an Event, the first making is not."""
    server = Server()
    secrets = Secrets(server)
    assert not await secrets.create(secret())
    assert await secrets.get(*PLACE) is not None
    del server.live[PLACE]
    secrets._read = {place: (read - SECRET_SECONDS, live) for place, (read, live) in secrets._read.items()}
    secrets.forget()  # comes with every tick, and before the Secret is looked for
    assert await secrets.get(*PLACE) is None
    assert await secrets.create(secret())


async def test_it_is_read_seldom() -> None:
    """What was read is trusted for a while, and so is that there was nothing."""
    server = Server(secret())
    secrets = Secrets(server)
    for name in (PLACE[1], PLACE[1], "absent", "absent"):
        await secrets.get("ns", name)
    assert server.reads == 2


@pytest.mark.parametrize(
    ("name", "key", "refuses", "answer"),
    [
        (PLACE[1], "key", 0, True),
        (PLACE[1], "other", 0, False),
        ("absent", "key", 0, False),
        (PLACE[1], "key", 403, None),
    ],
)
async def test_a_key_that_may_not_be_looked_at_is_neither_there_nor_missing(
    name: str, key: str, refuses: int, answer: bool | None
) -> None:
    """Where rights end, nothing is claimed."""
    server = Server(secret())
    server.refuses = refuses
    assert await Secrets(server).has_key("ns", name, key) is answer


async def test_an_api_server_that_fails_says_nothing_of_keys() -> None:
    """That is no missing key, and no missing right."""
    server = Server()
    server.refuses = 500
    with pytest.raises(ApiError):
        await Secrets(server).has_key("ns", "keys", "key")
