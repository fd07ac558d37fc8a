"""`smartspec-operator try` as a user of a real API server: what it makes, says and removes."""

import asyncio
import socket
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit

import pytest
from aiohttp import ClientSession, TCPConnector
from aiohttp.abc import AbstractResolver, ResolveResult

from control_plane import ROOT, Kubelet, User, admin_port, eventually, loopback
from fleets import load
from serve_process import serve_process
from smartspec_operator.kube import Api, ApiError
from smartspec_operator.resource import Manifest
from smartspec_operator.trial import TrialError, attempt, wish

MODELS = ROOT / "examples/models"


class ClusterDns(AbstractResolver):
    """Stands in for cluster DNS and kube-proxy: every Service is at one port of this machine."""

    def __init__(self) -> None:
        self.port = 1
        self.asked: set[str] = set()

    async def resolve(self, host: str, port: int = 0, family: Any = socket.AF_INET) -> list[ResolveResult]:
        """The one address."""
        self.asked.add(host)
        return [
            ResolveResult(
                hostname=host, host="127.0.0.1", port=self.port, family=socket.AF_INET, proto=0, flags=0
            )
        ]  # fmt: skip

    async def close(self) -> None:
        """Nothing is held."""


@pytest.fixture
def dns() -> ClusterDns:
    """Where Services are."""
    return ClusterDns()


@pytest.fixture
async def session(dns: ClusterDns) -> AsyncIterator[ClientSession]:
    """A client inside the cluster."""
    async with ClientSession(connector=TCPConnector(resolver=dns)) as found:
        yield found


async def only_pod(kubelet: Kubelet) -> Manifest:
    """The replica's pod, once the controllers have made it."""

    async def made() -> Manifest | None:
        pods = await kubelet.pods()
        return pods[0] if pods else None

    found: Manifest = await eventually(made)
    return found


async def test_a_cluster_that_serves_passes(
    api: Api, user: User, kubelet: Kubelet, session: ClientSession, dns: ClusterDns
) -> None:
    """It makes the bundled pair's SmartSpec, waits for it, shows the text that the Service answers, and removes it."""
    said: list[str] = []
    body = wish(user.namespace, "demo", {"requests": {"cpu": "100m"}}, ["registry"])
    pair = (str(MODELS / "stdlib-target"), "--draft", str(MODELS / "stdlib-draft"))
    with serve_process(*pair) as server:
        running = asyncio.create_task(attempt(api, session, body, timeout_seconds=60, say=said.append))
        pod = await only_pod(kubelet)
        assert "--draft /models/stdlib-draft" in " ".join(pod["spec"]["containers"][0]["args"])
        assert pod["spec"]["imagePullSecrets"] == [{"name": "registry"}]
        await asyncio.to_thread(server.wait_ready)
        dns.port = urlsplit(server.url).port or 0
        async with admin_port(loopback(2), load(), await user.admin_key()):
            await kubelet.run(pod, loopback(2))
            await running
    assert dns.asked == {f"demo.{user.namespace}.svc"}
    assert [line for line in said if line.startswith("answered: ")]
    assert await api.get("SmartSpec", user.namespace, "demo") is None


async def test_a_cluster_that_does_not_says_why(api: Api, user: User, kubelet: Kubelet, session: ClientSession) -> None:
    """What was last reported of the replica is the error, and the SmartSpec is gone all the same."""
    said: list[str] = []
    body = wish(user.namespace, "demo", {}, [])
    running = asyncio.create_task(attempt(api, session, body, timeout_seconds=6, say=said.append))
    pod = await only_pod(kubelet)
    await kubelet.fail(pod, "ImagePullBackOff", "")
    with pytest.raises(TrialError, match=r"no answer within 6 s; at last: Degraded=True, ImagePullBackOff: demo-"):
        await running
    assert await api.get("SmartSpec", user.namespace, "demo") is None


async def test_a_name_that_is_taken_is_left_alone(api: Api, user: User, session: ClientSession) -> None:
    """Somebody's SmartSpec of the same name is neither used nor removed."""
    await user.apply()
    with pytest.raises(ApiError, match="already exists"):
        await attempt(api, session, wish(user.namespace, "demo", {}, []), timeout_seconds=5, say=print)
    assert await api.get("SmartSpec", user.namespace, "demo") is not None
