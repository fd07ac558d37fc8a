"""Keys share a real server: one that sends all it can does not keep another waiting."""

import asyncio
import statistics
import time
from pathlib import Path

import pytest
from aiohttp import ClientSession, ClientTimeout, TCPConnector

from figures import measured
from serve_process import serve_process

MODELS = Path(__file__).parents[2] / "examples/models"
GREEDY = 40
MODEST = 6


async def seconds_to_first_token(session: ClientSession, url: str, key: str) -> float | None:
    """Of one streamed request, read to its end; None when it was refused."""
    body = {"prompt": "def parse(self, text):", "max_tokens": 32, "ignore_eos": True, "stream": True}
    began, first = time.monotonic(), None
    async with session.post(f"{url}/v1/completions", json=body, headers={"Authorization": f"Bearer {key}"}) as answer:
        assert answer.status in (200, 429)
        async for line in answer.content:
            if first is None and line.startswith(b"data: "):
                first = time.monotonic() - began
    return first if answer.status == 200 else None


async def keep_asking(session: ClientSession, url: str, key: str, enough: asyncio.Event) -> list[float | None]:
    """One request after another, until it is *enough*."""
    waits = []
    while not enough.is_set():
        waits.append(await seconds_to_first_token(session, url, key))
        if waits[-1] is None:
            await asyncio.sleep(0.1)
    return waits


@pytest.mark.timed
async def test_a_greedy_key_does_not_keep_another_waiting(tmp_path: Path) -> None:
    """Forty clients of one key fill the queue; the single client of the other waits for a place in the batch, not for
    their requests, and is never refused."""
    (tmp_path / "keys").write_text("key-of-many greedy\nkey-of-one modest\n")
    flags = ("--draft", str(MODELS / "stdlib-draft"), "--dtype", "float32", "--device", "cpu", "--threads", "2",
             "--max-num-seqs", "4", "--max-queued-requests", "40",
             "--api-key-file", str(tmp_path / "keys"))  # fmt: skip
    with measured("fairness") as figures, serve_process(MODELS / "stdlib-target", *flags) as server:
        server.wait_ready()
        async with ClientSession(timeout=ClientTimeout(total=120), connector=TCPConnector(limit=0)) as session:
            enough = asyncio.Event()
            many = [asyncio.create_task(keep_asking(session, server.url, "key-of-many", enough)) for _ in range(GREEDY)]
            await asyncio.sleep(1.0)
            modest = [await seconds_to_first_token(session, server.url, "key-of-one") for _ in range(MODEST)]
            enough.set()
            greedy = [wait for task in many for wait in await task]
        served = [wait for wait in greedy if wait is not None]
        waits = [wait for wait in modest if wait is not None]
        figures |= {
            "greedy_served": len(served),
            "greedy_refused": len(greedy) - len(served),
            "greedy_ttft_p50_seconds": statistics.median(served),
            "modest_served": len(waits),
            "modest_ttft_p50_seconds": statistics.median(waits),
        }
        assert len(waits) == MODEST
        assert len(greedy) > len(served)
        assert statistics.median(waits) < 0.5 * statistics.median(served)
