"""A server under random use for a long time: `make soak`, for `SOAK_SECONDS` (600 unless told otherwise)."""

import asyncio
import json
import os
import random
import time
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession, ClientTimeout

from serve_process import ServeProcess, serve_process
from tiny import write_pair

SECONDS = float(os.environ.get("SOAK_SECONDS", "600"))
CLIENTS = 24
NUM_BLOCKS = 96  # far too few for all clients: requests are preempted all the time
WARM_UP_SHARE = 0.3
MEGABYTE = 1024


def body_of(dice: random.Random) -> dict[str, Any]:
    """A request whose text is decided by itself: greedy, or with a seed."""
    words = " ".join(dice.choice(("alpha", "beta", "gamma", "delta")) for _ in range(dice.randrange(1, 12)))
    body: dict[str, Any] = {"prompt": words, "max_tokens": dice.randrange(1, 90), "stream": True}
    body |= {"temperature": 0} if dice.random() < 0.5 else {"temperature": 0.9, "seed": dice.randrange(8)}
    if dice.random() < 0.3:
        body["stop"] = dice.choice(("e", "\n", "qq"))
    wish = dice.choice(({"mode": "auto"}, {"mode": "off"}, {"mode": "fixed", "max_tokens": dice.randrange(1, 9)}))
    return body | {"speculation": wish}


async def text_of(session: ClientSession, url: str, body: dict[str, Any], leave_after: int | None = None) -> str | None:
    """The whole text of a stream, or None when the client left after so many events."""
    text, events = "", 0
    async with session.post(f"{url}/v1/completions", json=body) as answer:
        assert answer.status == 200, await answer.text()
        async for line in answer.content:
            if not line.startswith(b"data: ") or line.startswith(b"data: [DONE]"):
                continue
            event = json.loads(line[6:])
            assert "error" not in event, event
            text += "".join(choice["text"] for choice in event["choices"])
            events += 1
            if leave_after is not None and events > leave_after:
                return None
    return text


async def client(session: ClientSession, url: str, dice: random.Random, until: float, seen: dict[str, str]) -> int:
    """Send requests until it is time; one in five is left early. How many were read to their end."""
    finished = 0
    while time.monotonic() < until:
        body = body_of(dice)
        text = await text_of(session, url, body, dice.randrange(6) if dice.random() < 0.2 else None)
        if text is not None:
            # Who asks is no part of the text, and neither is how it was speculated upon.
            key = json.dumps({name: value for name, value in body.items() if name != "speculation"}, sort_keys=True)
            assert seen.setdefault(key, text) == text, key
            finished += 1
        await asyncio.sleep(dice.random() * 0.05)
    return finished


async def change_policies(session: ClientSession, url: str, dice: random.Random, until: float) -> None:
    """A new policy every second."""
    generation = 0
    while time.monotonic() < until:
        generation += 1
        policy = {
            "policy": dice.choice(("request", "batch", "fixed", "off")),
            "max_speculative_tokens": 1 + generation % 8,
        }
        async with session.put(f"{url}/policy", json=policy | {"generation": generation}) as answer:
            assert answer.status == 200, await answer.text()
        await asyncio.sleep(1.0)


def resident(pid: int) -> int:
    """Memory of a process in KiB."""
    return int(Path(f"/proc/{pid}/status").read_text().partition("VmRSS:")[2].split()[0])


async def resident_kilobytes(server: ServeProcess, until: float) -> list[tuple[float, int]]:
    """Memory of the server by time, once a second."""
    readings = []
    while time.monotonic() < until:
        readings.append((time.monotonic(), resident(server.process.pid)))
        await asyncio.sleep(1.0)
    return readings


@pytest.mark.slow
async def test_nothing_wears_out(tmp_path: Path) -> None:
    """Random requests, clients that leave, preemption and changing policies: every text equals its other runs and its
    solo run, nothing is held at the end, and memory stands still."""
    pair = write_pair(tmp_path)
    flags = ("--draft", str(pair.draft), "--dtype", "float32", "--device", "cpu", "--threads", "1")
    with serve_process(pair.target, *flags, "--num-blocks", str(NUM_BLOCKS), "--max-model-len", "256") as server:
        server.wait_ready()
        until, seen = time.monotonic() + SECONDS, {}
        async with ClientSession(timeout=ClientTimeout(total=120)) as session:
            memory = asyncio.create_task(resident_kilobytes(server, until))
            policies = asyncio.create_task(change_policies(session, server.admin_url, random.Random(0), until))
            clients = (client(session, server.url, random.Random(1 + i), until, seen) for i in range(CLIENTS))
            finished = sum(await asyncio.gather(*clients))
            await policies
            for key in random.Random(0).sample(sorted(seen), min(40, len(seen))):
                assert await text_of(session, server.url, json.loads(key)) == seen[key]
            async with session.get(f"{server.admin_url}/load") as answer:
                load = await answer.json()
        readings = await memory
    assert finished > SECONDS
    assert load["preemptions_total"] > 0
    assert (load["num_requests_running"], load["num_requests_waiting"], load["kv_cache_usage"]) == (0, 0, 0.0)
    settled = [(at, size) for at, size in readings if at > readings[0][0] + WARM_UP_SHARE * SECONDS]
    minutes = (settled[-1][0] - settled[0][0]) / 60
    growth = settled[-1][1] - settled[0][1]
    print(f"{finished} texts, {load['preemptions_total']} preemptions, memory {growth / MEGABYTE:+.1f} MiB")
    assert growth <= MEGABYTE * max(4.0, minutes)
