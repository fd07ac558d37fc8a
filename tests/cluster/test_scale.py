"""Three hundred SmartSpecs on one core: how long a reconcile takes, which periods are kept, and what rest costs."""

import asyncio
import os
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import TypeVar

import msgspec
import pytest
from aiohttp import web

from control_plane import Kubelet, Operator, User, eventually
from fleets import histogram, linear_priors, load
from smartspec.policy.settings import decode_settings
from smartspec_operator.replica_pod import ADMIN_PORT

T = TypeVar("T")
Listen = Callable[[str], Awaitable[None]]
COUNT = 300
SECONDS = 30.0
NAME = "smartspec_operator_"
pytestmark = pytest.mark.filterwarnings("ignore:.*unclosed.*:ResourceWarning")  # the generated client's own sockets


@pytest.fixture
async def replicas() -> AsyncIterator[Listen]:
    """Has one server listen at an address: each address is a replica under load that takes the policy it is told."""
    generations: dict[str, int] = {}
    priors, chance = linear_priors(), random.Random(7)

    async def show(request: web.Request) -> web.Response:
        arrived = max(
            1, round(chance.gauss(60, 60**0.5))
        )  # Poisson: what a steady load of 2 requests a second looks like
        mine = load(
            tokens_per_second=100.0 * arrived / 30,
            tpot=histogram(*[0.02 * chance.uniform(0.8, 1.2) for _ in range(arrived)]),
            num_requests_running=max(0, round(chance.gauss(6, 6**0.5))),
            kv_cache_usage=chance.uniform(0.2, 0.3),
            generation=generations.get(request.host, 0),
            priors=priors,
        )
        return web.Response(body=msgspec.json.encode(mine))

    async def take(request: web.Request) -> web.Response:
        generations[request.host] = decode_settings(await request.read()).generation
        return web.Response()

    app = web.Application()
    app.router.add_get("/load", show)
    app.router.add_put("/policy", take)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()

    async def listen(address: str) -> None:
        # Not at every address in one go: the tests beside this one have replicas at that port, too.
        await web.TCPSite(runner, address, ADMIN_PORT).start()

    yield listen
    await runner.cleanup()


@pytest.fixture
def alone(operator: Operator, user: User, kubectl: Callable[..., str], tmp_path: Path) -> Iterator[Operator]:
    """An operator with its usual periods on one core, for the test's namespace, instead of the session's.

    Nothing is waited for afterwards: these tests are the last ones, see `pytest_collection_modifyitems`.
    """
    operator.stop()
    one = Operator(operator.kubeconfig, tmp_path, arguments=("--namespace", user.namespace, "--lease-seconds", "15"))
    os.sched_setaffinity(one.process.pid, {0})
    yield one
    if one.process.poll() is None:
        one.stop()
    kubectl("-n", user.namespace, "delete", "smartspecs", "--all", "--wait=false")


async def test_three_hundred_resources_on_one_core(
    user: User, kubelet: Kubelet, alone: Operator, replicas: Listen, record_property: Callable[[str, object], None]
) -> None:
    """Reconciles are quick, tuning keeps its period, memory is small, and a steady load is hardly written."""
    spec = {"model": {"source": "org/model"}, "slo": {"tpotSeconds": 0.05}, "autoscaling": {"maxReplicas": 2}}
    body = {"apiVersion": "smartspec.io/v1alpha1", "kind": "SmartSpec", "spec": spec}
    for chunk in chunks(list(range(COUNT)), 50):
        names = [{"name": f"demo-{i}", "namespace": user.namespace} for i in chunk]
        await asyncio.gather(*(user.api.create({**body, "metadata": metadata}) for metadata in names))
    run = asyncio.create_task(run_pods(kubelet, replicas))
    await eventually(lambda: all_served(user, alone, run), seconds=180)
    run.cancel()
    await asyncio.sleep(10)
    before, began = await alone.metrics(), asyncio.get_running_loop().time()
    await asyncio.sleep(SECONDS)
    after, seconds = await alone.metrics(), asyncio.get_running_loop().time() - began
    change = {name: value - before.get(name, 0.0) for name, value in after.items()}
    requests = {name: n for name, n in change.items() if name.startswith(f"{NAME}api_requests_total") and n}
    writes = {name: n for name, n in requests.items() if "verb=GET" not in name and "kind=Lease" not in name}
    figures = {
        "reconcile p99 is below (s)": quantile(change, f"{NAME}reconcile_seconds", 0.99),
        "reconcile p99 since the start is below (s)": quantile(after, f"{NAME}reconcile_seconds", 0.99),
        "tick p99 is below (s)": quantile(change, f"{NAME}tick_seconds", 0.99),
        "mean tuning period (s)": COUNT * seconds / change[f"{NAME}stages_total,stage=tuning"],
        "resident memory (MB)": after["process_resident_memory_bytes"] / 1e6,
        "share of one core": change["process_cpu_seconds_total"] / seconds,
        "API requests per SmartSpec and minute": sum(requests.values()) / COUNT / (seconds / 60),
        "writes per SmartSpec and minute": sum(writes.values()) / COUNT / (seconds / 60),
    }
    for name, value in figures.items():
        record_property(name, round(value, 3))
        print(f"{name}: {value:.3g}")
    assert figures["reconcile p99 is below (s)"] <= 2.0
    assert figures["mean tuning period (s)"] == pytest.approx(5.0, rel=0.1)
    assert figures["resident memory (MB)"] < 250
    assert all("kind=SmartSpec" in name for name in writes), writes
    assert figures["writes per SmartSpec and minute"] < 0.5
    assert change.get(f"{NAME}errors_total", 0.0) == 0.0


def chunks(items: list[T], size: int) -> Iterator[list[T]]:
    """*items* in pieces: an API server has only so many requests at once."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


async def run_pods(kubelet: Kubelet, listen: Listen) -> None:
    """Give every pod that comes an address of its own, where it listens."""
    running: set[str] = set()
    while True:
        new = [pod for pod in await kubelet.pods() if pod["metadata"]["name"] not in running]
        for chunk in chunks(new, 20):
            numbers = range(len(running), len(running) + len(chunk))
            addresses = [f"127.1.{number // 250}.{1 + number % 250}" for number in numbers]
            await asyncio.gather(*map(listen, addresses))
            await asyncio.gather(*(kubelet.run(pod, at) for pod, at in zip(chunk, addresses, strict=True)))
            running |= {pod["metadata"]["name"] for pod in chunk}
        await asyncio.sleep(0.5)


async def all_served(user: User, operator: Operator, run: asyncio.Task[None]) -> bool:
    """Whether each resource is ready and its policy applied; raises what ended the pods' *run*, or the operator."""
    if run.done():
        run.result()
    if operator.process.poll() is not None:
        raise RuntimeError(f"the operator has ended:\n{operator.log.read_text()[-3000:]}")
    served = 0
    for resource in await user.api.list("SmartSpec", user.namespace):
        conditions = {c["type"]: c["status"] for c in resource.get("status", {}).get("conditions", ())}
        served += conditions.get("Ready") == conditions.get("PolicyApplied") == "True"
    await asyncio.sleep(1)
    assert served == COUNT, f"{served} are served"
    return True


def quantile(samples: dict[str, float], name: str, q: float) -> float:
    """The upper bound of the bucket in which the quantile of a histogram lies."""
    buckets = {float(key.rpartition("=")[2]): n for key, n in samples.items() if key.startswith(f"{name}_bucket,le=")}
    return min(bound for bound, n in buckets.items() if n >= q * samples[f"{name}_count"])
