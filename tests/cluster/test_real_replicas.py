"""Real runtimes behind the pods that the controllers made: started by the Deployment's own command line, and tuned."""

import asyncio
import contextlib
import os
import shlex
import sys
from collections.abc import AsyncIterator
from pathlib import Path

from aiohttp import ClientSession

from control_plane import Kubelet, User, eventually, loopback
from smartspec.policy.load import LoadReport, decode_load
from smartspec_operator.resource import Manifest
from tiny import write_pair


@contextlib.asynccontextmanager
async def container(user: User, pod: Manifest, address: str, folder: Path) -> AsyncIterator[None]:
    """The pod's container as a process at *address*, with its arguments, its key and its mounted policy."""
    made = pod["spec"]["containers"][0]
    policy = folder / f"{address}.json"
    policy.write_text((await user.get("ConfigMap", "demo-policy"))["data"]["policy.json"])
    mounted = {mount["name"]: mount["mountPath"] for mount in made["volumeMounts"]}["policy"]
    arguments = [text.replace(f"{mounted}/policy.json", str(policy)) for text in made["args"]]
    assert [variable["name"] for variable in made["env"][:1]] == ["SMARTSPEC_ADMIN_KEY"]
    environment = os.environ | {"SMARTSPEC_ADMIN_KEY": await user.admin_key(), "OMP_NUM_THREADS": "1"}
    log = folder / f"{address}.log"
    # The last flag of a name counts: an address of its own instead of all of the pod's.
    own = ["--host", address, "--admin-host", address, "--threads", "1", "--num-blocks", "256"]
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "smartspec", *arguments, *own, stdout=output, stderr=output, env=environment
        )
    try:
        async with ClientSession() as session:
            await eventually(lambda: _is_ready(session, address), seconds=60)
        yield
    except AssertionError as error:
        error.add_note(f"{shlex.join(arguments)}\n{log.read_text()[-3000:]}")
        raise
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def _is_ready(session: ClientSession, address: str) -> bool:
    try:
        async with session.get(f"http://{address}:8000/ready") as response:
            return response.status == 200
    except OSError:
        return False


async def report(address: str, key: str) -> LoadReport:
    """What the replica at *address* says of itself."""
    async with ClientSession(headers={"Authorization": f"Bearer {key}"}) as session:
        async with session.get(f"http://{address}:8001/load") as response:
            return decode_load(await response.read())


async def complete(address: str, count: int) -> int:
    """So many completions at once; the number of answers that were whole."""
    body = {"model": "tiny", "prompt": "def f(x):", "max_tokens": 24, "ignore_eos": True}
    async with ClientSession() as session:

        async def one() -> bool:
            async with session.post(f"http://{address}:8000/v1/completions", json=body) as response:
                return response.status == 200 and (await response.json())["usage"]["completion_tokens"] == 24

        return sum(await asyncio.gather(*(one() for _ in range(count))))


async def test_real_runtimes_are_read_tuned_and_drained(user: User, kubelet: Kubelet, tmp_path: Path) -> None:
    """Their load stands in the status, they echo the policy, a second one starts with what the first has learned, and
    the one that leaves has finished its requests."""
    pair = write_pair(tmp_path / "pair")
    spec = {
        "model": {"source": str(pair.target), "servedName": "tiny", "dtype": "float32", "maxModelLen": 256},
        "speculation": {"draft": {"source": str(pair.draft)}, "maxTokens": 4},
        "slo": {"tpotSeconds": 2.0, "ttftSeconds": 20.0},
        "server": {"maxNumSeqs": 8, "maxNumBatchedTokens": 128},
    }
    await user.apply(**spec)

    async def pods(count: int) -> list[Manifest] | None:
        found = await kubelet.pods()
        return found if len(found) == count else None

    (first,) = await eventually(lambda: pods(1))
    async with container(user, first, loopback(11), tmp_path):
        await kubelet.run(first, loopback(11))
        assert await complete(loopback(11), 6) == 6

        async def measured() -> Manifest:
            status: Manifest = (await user.resource())["status"]
            assert status["load"]["tokensPerSecond"] > 0
            assert status["load"]["meanSpeculativeTokens"] > 0
            assert status["policy"]["appliedReplicas"] == 1
            assert status["sloAttainment"] == 1.0
            return status

        await eventually(measured)

        async def learned() -> bool:
            policy = (await user.get("ConfigMap", "demo-policy"))["data"]["policy.json"]
            return '"latency":{' in policy and '"proposer":"draft"' in policy

        await eventually(learned)
        await user.kubectl("scale", "smartspec", "demo", "--replicas=2")
        name = first["metadata"]["name"]
        (second,) = [pod for pod in await eventually(lambda: pods(2)) if pod["metadata"]["name"] != name]
        async with container(user, second, loopback(12), tmp_path):
            await kubelet.run(second, loopback(12))

            async def both() -> bool:
                status = (await user.resource())["status"]
                assert status["policy"]["appliedReplicas"] == status["readyReplicas"] == 2, status["policy"]
                return True

            await eventually(both)
            fresh = await report(loopback(12), await user.admin_key())
            assert fresh.requests_total == 0
            assert fresh.priors is not None
            assert max(fresh.priors.acceptance[0].weights) > 0, "it knows what others' drafts were worth"
            busy = asyncio.create_task(complete(loopback(11), 8))
            await user.kubectl("scale", "smartspec", "demo", "--replicas=1")
            async with ClientSession() as session:

                async def unready() -> str:
                    for address in (loopback(11), loopback(12)):
                        if not await _is_ready(session, address):
                            return address
                    return ""

                drained = await eventually(unready)
            leaving = first if drained == loopback(11) else second
            await kubelet.run(leaving, drained, ready=False)
            (left,) = await eventually(lambda: pods(1))
            assert left["metadata"]["name"] != leaving["metadata"]["name"]
            assert await busy == 8, "no request was lost"
