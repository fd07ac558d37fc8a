"""A server under random use for a long time: two minutes in every run, half an hour in `make soak`."""

import asyncio
import json
import os
import random
import time
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession, ClientTimeout
from yarl import URL

from figures import publish
from serve_process import ServeProcess, serve_process
from tiny import write_pair

SHORT_SECONDS = float(os.environ.get("SOAK_SHORT_SECONDS", "120"))
LONG_SECONDS = float(os.environ.get("SOAK_SECONDS", "1800"))
CLIENTS = 24
VANDALS = 4
NUM_BLOCKS = 32  # far too few for all clients: requests are preempted all the time
WARM_UP_SHARE = 0.3


def body_of(dice: random.Random) -> dict[str, Any]:
    """A request whose text is decided by itself: greedy, or with a seed."""
    words = " ".join(dice.choice(("alpha", "beta", "gamma", "delta")) for _ in range(dice.randrange(1, 12)))
    body: dict[str, Any] = {"prompt": words, "max_tokens": dice.randrange(1, 90), "stream": True}
    body |= {"temperature": 0} if dice.random() < 0.5 else {"temperature": 0.9, "seed": dice.randrange(8)}
    if dice.random() < 0.3:
        body["stop"] = dice.choice(("e", "\n", "qq"))
    wish = dice.choice(({"mode": "auto"}, {"mode": "off"}, {"mode": "fixed", "max_tokens": dice.randrange(1, 9)}))
    return body | {"speculation": wish, "priority": dice.randrange(-2, 3)}


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
            # Who asks is no part of the text, nor how it was speculated upon, nor how soon it was wanted.
            key = json.dumps({n: v for n, v in body.items() if n not in ("speculation", "priority")}, sort_keys=True)
            assert seen.setdefault(key, text) == text, key
            finished += 1
        await asyncio.sleep(dice.random() * 0.05)
    return finished


async def vandal(url: str, dice: random.Random, until: float) -> int:
    """Leave at every stage there is: within the head, within the body, while queued, while text comes, at once after
    the last byte was sent, with a reset or without; or set a deadline that cannot be kept. How often."""
    count = 0
    target = URL(url)
    while time.monotonic() < until:
        body = body_of(dice) | ({"timeout": 0.001 * dice.randrange(1, 50)} if dice.random() < 0.3 else {})
        data = json.dumps(body | {"stream": dice.random() < 0.5}).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n\r\n".encode()
        whole = head + data
        stage = dice.random()
        sent = whole if stage < 0.6 else whole[: dice.randrange(1, len(whole))]
        reader, writer = await asyncio.open_connection(target.host, target.port)
        writer.write(sent)
        await writer.drain()
        if stage < 0.4:  # wait a little: it may be queued, running, or done
            await asyncio.wait([asyncio.create_task(reader.read(dice.randrange(1, 2000)))], timeout=dice.random() * 0.2)
        if dice.random() < 0.5:
            writer.transport.abort()
        writer.close()
        count += 1
        await asyncio.sleep(dice.random() * 0.1)
    return count


async def change_policies(session: ClientSession, url: str, dice: random.Random, until: float) -> int:
    """A new policy every second; how many."""
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
    return generation


async def memory_by_time(server: ServeProcess, until: float) -> list[tuple[float, float]]:
    """Memory of the server in MiB, once a second."""
    readings = []
    while time.monotonic() < until:
        readings.append((time.monotonic(), server.resident_mebibytes()))
        await asyncio.sleep(1.0)
    return readings


def growth_a_minute(readings: list[tuple[float, float]], seconds: float) -> float:
    """MiB a minute by least squares, after the warm-up."""
    settled = [(at, size) for at, size in readings if at > readings[0][0] + WARM_UP_SHARE * seconds]
    mean_at, mean_size = (sum(column) / len(settled) for column in zip(*settled, strict=True))
    covariance = sum((at - mean_at) * (size - mean_size) for at, size in settled)
    return covariance / sum((at - mean_at) ** 2 for at, _ in settled) * 60


@pytest.mark.parametrize(
    ("seconds", "most_growth"),
    [
        # Two minutes are mostly caches that fill: only a leak that would kill a server within hours shows in them.
        pytest.param(SHORT_SECONDS, 8.0, id="short"),
        pytest.param(LONG_SECONDS, 1.0, id="long", marks=pytest.mark.slow),
    ],
)
async def test_nothing_wears_out(seconds: float, most_growth: float, tmp_path: Path) -> None:
    """Random requests, clients that leave at every stage, preemption and changing policies: every text equals its other
    runs and its solo run, nothing is held at the end, and memory stands still."""
    pair = write_pair(tmp_path)
    flags = ("--draft", str(pair.draft), "--dtype", "float32", "--device", "cpu", "--threads", "1")
    with serve_process(pair.target, *flags, "--num-blocks", str(NUM_BLOCKS), "--max-model-len", "256") as server:
        server.wait_ready()
        until, seen = time.monotonic() + seconds, {}
        async with ClientSession(timeout=ClientTimeout(total=120)) as session:
            memory = asyncio.create_task(memory_by_time(server, until))
            policies = asyncio.create_task(change_policies(session, server.admin_url, random.Random(0), until))
            vandals = [asyncio.create_task(vandal(server.url, random.Random(100 + i), until)) for i in range(VANDALS)]
            clients = (client(session, server.url, random.Random(1 + i), until, seen) for i in range(CLIENTS))
            finished = sum(await asyncio.gather(*clients))
            broken = sum(await asyncio.gather(*vandals))
            generations = await policies
            for key in random.Random(0).sample(sorted(seen), min(int(seconds), 300, len(seen))):
                assert await text_of(session, server.url, json.loads(key)) == seen[key]
            await asyncio.sleep(0.5)
            async with session.get(f"{server.admin_url}/load") as answer:
                load = await answer.json()
        slope = growth_a_minute(await memory, seconds)
        assert not any("Traceback" in line or "internal_error" in line for line in server.log)
    publish(
        "soak",
        seconds=seconds,
        texts=finished,
        distinct_texts=len(seen),
        left_or_broken=broken,
        preemptions=load["preemptions_total"],
        policies=generations,
        memory_mib_a_minute=slope,
    )
    assert finished > seconds
    assert load["preemptions_total"] > 0
    assert (load["num_requests_running"], load["num_requests_waiting"], load["kv_cache_usage"]) == (0, 0, 0.0)
    assert slope < most_growth
