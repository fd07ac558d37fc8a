"""Two operators at once: one acts, the other waits for its Lease, and takes up where the first one was killed."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import ClientSession

from control_plane import Kubelet, Operator, User, admin_port, eventually, loopback
from fleets import load
from smartspec_operator.resource import Manifest

pytestmark = pytest.mark.filterwarnings("ignore:.*unclosed.*:ResourceWarning")  # the generated client's own sockets


async def leads(operator: Operator) -> bool:
    """Whether it says that it holds the lease."""
    try:
        return (await operator.metrics())["smartspec_operator_leader"] == 1.0
    except OSError:  # not up yet
        return False


@pytest.fixture
async def standby(operator: Operator, tmp_path: Path) -> AsyncIterator[Operator]:
    """A second operator, started when the first one leads; afterwards the session's own acts again."""
    await eventually(lambda: leads(operator))
    second = Operator(operator.kubeconfig, tmp_path, "standby")
    yield second
    if second.process.poll() is None:
        second.stop()
    if operator.process.poll() is not None:
        operator.start()


async def status_of(operator: Operator, path: str) -> int:
    """The status with which its probe answers."""
    async with ClientSession() as session, session.get(f"http://127.0.0.1:{operator.probe_port}{path}") as answer:
        return answer.status


async def is_up(operator: Operator) -> bool:
    """Whether its probe answers 200."""
    try:
        return await status_of(operator, "/readyz") == 200
    except OSError:
        return False


async def test_the_standby_does_nothing_until_the_first_dies_and_then_goes_on(
    user: User, kubelet: Kubelet, operator: Operator, standby: Operator
) -> None:
    """No event, no request but for the lease; then no replica lost, none doubled, and the policy's numbers go on."""
    await eventually(lambda: is_up(standby))
    await user.apply(slo={"tpotSeconds": 0.05}, replicas=2)

    async def made() -> list[Manifest] | None:
        pods = await kubelet.pods()
        return pods if len(pods) == 2 else None

    one, _ = await eventually(made)
    async with admin_port(loopback(2), load(), await user.admin_key()) as port:
        await kubelet.run(one, loopback(2))

        async def told() -> bool:
            return port.settings.generation == 1

        await eventually(told)
        assert (await leads(operator), await leads(standby)) == (True, False)
        requests = [
            name for name in await standby.metrics() if name.startswith("smartspec_operator_api_requests_total")
        ]
        assert all("kind=Lease" in name for name in requests)
        assert await status_of(standby, "/healthz") == 200
        before = [pod["metadata"]["uid"] for pod in await kubelet.pods()]
        operator.kill()
        await user.apply(slo={"tpotSeconds": 0.04}, replicas=2)

        async def taken_over() -> bool:
            return await leads(standby) and port.settings.generation == 2

        await eventually(taken_over)
        assert port.settings.tpot_target_seconds == 0.04
        assert [pod["metadata"]["uid"] for pod in await kubelet.pods()] == before


async def test_a_lost_lease_ends_the_process(user: User, operator: Operator, standby: Operator) -> None:
    """A leader that was asleep for longer than its lease finds another one acting, and goes."""
    await eventually(lambda: is_up(standby))
    operator.process.send_signal(signal.SIGSTOP)
    await eventually(lambda: leads(standby))
    operator.process.send_signal(signal.SIGCONT)
    status = await asyncio.to_thread(operator.process.wait, 20)
    assert status == 1
    assert "the lease" in operator.log.read_text().splitlines()[-1]


async def test_a_leader_that_is_told_to_stop_gives_the_lease_away(operator: Operator, standby: Operator) -> None:
    """The other need not wait for the lease to end."""
    await eventually(lambda: is_up(standby))
    assert operator.stop() == 0
    await eventually(lambda: leads(standby), seconds=1.5)


async def test_an_api_server_that_is_away_costs_nothing_but_time(
    user: User, kubelet: Kubelet, operator: Operator, kubeconfig: Path
) -> None:
    """The operator cannot know whether another acts, and ends; started again, it waits, and finds all as it was."""
    if not (pid := kubeconfig.with_name("apiserver.pid")).exists():
        pytest.skip("this API server is not ours to stop")
    await user.apply(replicas=2, slo={"tpotSeconds": 0.05})

    async def made() -> list[Manifest] | None:
        pods = await kubelet.pods()
        return pods if len(pods) == 2 else None

    before = {pod["metadata"]["uid"] for pod in await eventually(made)}
    await eventually(lambda: leads(operator))
    os.kill(int(pid.read_text()), signal.SIGSTOP)
    try:
        began = asyncio.get_running_loop().time()
        assert await asyncio.to_thread(operator.process.wait, 20) == 1
        assert asyncio.get_running_loop().time() - began < 5.0
        operator.start()
        await eventually(lambda: is_up(operator))
        await asyncio.sleep(3)
        assert operator.process.poll() is None
    finally:
        os.kill(int(pid.read_text()), signal.SIGCONT)
    await eventually(lambda: leads(operator))
    await user.apply(replicas=3, slo={"tpotSeconds": 0.05})

    async def grown() -> bool:
        pods = {pod["metadata"]["uid"] for pod in await kubelet.pods()}
        return len(pods) == 3 and before < pods

    await eventually(grown)
    assert (await user.resource())["status"]["policy"]["generation"] == 1
