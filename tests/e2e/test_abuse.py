"""People who send too little, too slowly, too much or nonsense: whoever asks decently meanwhile does not feel it."""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from aiohttp import ClientSession, ClientTimeout

import abuses
from abuses import ABUSES
from figures import measured
from serve_process import serve_process

MODELS = Path(__file__).parents[2] / "examples/models"


@contextmanager
def abused(name: str, url: str) -> Iterator[None]:
    """The abuse *name* goes on while the context lasts."""
    command = [sys.executable, "-m", "abuses", name, url]
    with subprocess.Popen(command, cwd=Path(abuses.__file__).parent, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "on\n"
        yield
        assert process.poll() is None
        process.kill()


async def latencies(session: ClientSession, url: str, seconds: float) -> list[float]:
    """Seconds that one decent client's requests take, one after another."""
    body = {"prompt": "def parse(self, text):", "max_tokens": 24, "temperature": 0, "ignore_eos": True}
    taken, until = [], time.monotonic() + seconds
    while time.monotonic() < until:
        began = time.monotonic()
        async with session.post(f"{url}/v1/completions", json=body) as answer:
            assert answer.status == 200
            assert json.loads(await answer.read())["usage"]["completion_tokens"] == 24
        taken.append(time.monotonic() - began)
    return taken


@pytest.mark.timed
@pytest.mark.parametrize(
    ("rounds", "seconds", "bound"),
    [
        pytest.param(2, 0.7, 3.0, id="short"),
        pytest.param(10, 2.0, 1.1, id="long", marks=pytest.mark.slow),
    ],
)
async def test_decent_clients_do_not_feel_it(rounds: int, seconds: float, bound: float) -> None:
    """Median latency under each abuse over that without, taken in turns so that a busy machine is busy for both."""
    flags = ("--draft", str(MODELS / "stdlib-draft"), "--dtype", "float32", "--device", "cpu", "--threads", "2",
             "--head-timeout", "2", "--body-timeout", "2", "--send-timeout", "2", "--idle-timeout", "5")  # fmt: skip
    with measured("abuse") as figures, serve_process(MODELS / "stdlib-target", *flags) as server:
        figures["seconds_each"] = rounds * seconds
        server.wait_ready()
        async with ClientSession(timeout=ClientTimeout(total=60)) as session:
            await latencies(session, server.url, 2.0)
            for name in ABUSES:
                without: list[float] = []
                under: list[float] = []
                for _ in range(rounds):
                    without += await latencies(session, server.url, seconds)
                    with abused(name, server.url):
                        under += await latencies(session, server.url, seconds)
                figures[f"{name}_latency_ratio"] = statistics.median(under) / statistics.median(without)
                figures[f"{name}_latency_seconds"] = statistics.median(under)
            async with session.get(f"{server.admin_url}/load") as answer:
                load = await answer.json()
        assert not any("Traceback" in line for line in server.log)
        assert (load["num_requests_running"], load["num_requests_waiting"]) == (0, 0)
        slower = {name: figures[f"{name}_latency_ratio"] for name in ABUSES}
        assert max(slower.values()) < bound, slower
