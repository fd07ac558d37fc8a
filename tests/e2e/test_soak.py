"""A server under random use for a long time: two minutes in every run, half an hour in `make soak`."""

import asyncio
import json
import os
import random
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession, ClientTimeout
from yarl import URL

from figures import measured
from serve_process import ServeProcess, serve_process
from tiny import write_pair

SHORT_SECONDS = float(os.environ.get("SOAK_SHORT_SECONDS", "120"))
LONG_SECONDS = float(os.environ.get("SOAK_SECONDS", "1800"))
CLIENTS = 24
VANDALS = 4
MOST_KEYS = 1000
NUM_BLOCKS = 32  # far too few for all clients: requests are preempted all the time
WARM_UP_SHARE = 0.3


def body_of(dice: random.Random) -> dict[str, Any]:
    """A request whose text is decided by itself: greedy, or with a seed."""
    words = " ".join(dice.choice(("alpha", "beta", "gamma", "delta")) for _ in range(dice.randrange(1, 12)))
    body: dict[str, Any] = {"prompt": words, "max_tokens": dice.randrange(1, 90), "stream": True}
    body |= {"temperature": 0} if dice.random() < 0.5 else {"temperature": 0.9, "seed": dice.randrange(8)}
    if dice.random() < 0.3:
        body["stop"] = dice.choice(("e", "\n", "qq"))
    return body


def wished(key: str, dice: random.Random) -> dict[str, Any]:
    """The request *key* with what is no part of its text: how to speculate upon it, and how soon it is wanted."""
    wish = dice.choice(({"mode": "auto"}, {"mode": "off"}, {"mode": "fixed", "max_tokens": dice.randrange(1, 9)}))
    return {**json.loads(key), "speculation": wish, "priority": dice.randrange(-2, 3)}


@dataclass
class Course:
    """What happened so far: texts by request, how often, and what should not have."""

    texts: dict[str, str] = field(default_factory=dict)
    finished: int = 0
    left: int = 0
    broken: int = 0
    policies: int = 0
    wrong: list[str] = field(default_factory=list)
    memory: list[tuple[float, float]] = field(default_factory=list)

    def compare(self, key: str, text: str | None) -> None:
        """*text* must be what came for the request *key* before."""
        if self.texts.setdefault(key, text or "") != text:
            self.wrong.append(f"{key}: {text!r} is not {self.texts[key]!r}")


async def text_of(session: ClientSession, url: str, body: dict[str, Any], leave_after: int | None = None) -> str | None:
    """The whole text of a stream, or None when the client left after so many events."""
    text, events = "", 0
    async with session.post(f"{url}/v1/completions", json=body) as answer:
        assert answer.status == 200, await answer.text()
        async for line in answer.content:
            if line.startswith(b"data: [DONE]"):
                return text
            if not line.startswith(b"data: "):
                continue
            event = json.loads(line[6:])
            assert "error" not in event, event
            text += "".join(choice["text"] for choice in event["choices"])
            events += 1
            if leave_after is not None and events > leave_after:
                return None
    raise AssertionError(f"the stream of {body} ended early")


async def client(
    session: ClientSession, url: str, dice: random.Random, keys: list[str], until: float, course: Course
) -> None:
    """Send requests until it is time; one in five is left early."""
    while time.monotonic() < until:
        key = dice.choice(keys)
        text = await text_of(session, url, wished(key, dice), dice.randrange(6) if dice.random() < 0.2 else None)
        if text is None:
            course.left += 1
        else:
            course.finished += 1
            course.compare(key, text)
        await asyncio.sleep(dice.random() * 0.05)


async def vandal(url: str, dice: random.Random, keys: list[str], until: float, course: Course) -> None:
    """Leave at every stage there is: within the head, within the body, while queued, while text comes, at once after
    the last byte was sent, with a reset or without; or set a deadline that cannot be kept."""
    target = URL(url)
    while time.monotonic() < until:
        body = wished(dice.choice(keys), dice)
        body |= {"timeout": 0.001 * dice.randrange(1, 50)} if dice.random() < 0.3 else {}
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
        course.broken += 1
        await asyncio.sleep(dice.random() * 0.1)


async def change_policies(session: ClientSession, url: str, dice: random.Random, until: float, course: Course) -> None:
    """A new policy every second."""
    while time.monotonic() < until:
        generation = course.policies + 1
        policy = {
            "policy": dice.choice(("request", "batch", "fixed", "off")),
            "max_speculative_tokens": 1 + generation % 8,
        }
        async with session.put(f"{url}/policy", json=policy | {"generation": generation}) as answer:
            assert answer.status == 200, await answer.text()
        course.policies = generation
        await asyncio.sleep(1.0)


async def watch_memory(server: ServeProcess, until: float, course: Course) -> None:
    """Memory of the server in MiB, once a second."""
    while time.monotonic() < until:
        course.memory.append((time.monotonic(), server.resident_mebibytes()))
        await asyncio.sleep(1.0)


async def use(session: ClientSession, server: ServeProcess, keys: list[str], until: float, course: Course) -> None:
    """All of them at once until it is time; what fails is a finding, and the others go on."""
    clients = (client(session, server.url, random.Random(1 + i), keys, until, course) for i in range(CLIENTS))
    vandals = (vandal(server.url, random.Random(100 + i), keys, until, course) for i in range(VANDALS))
    policies = change_policies(session, server.admin_url, random.Random(0), until, course)
    ended = await asyncio.gather(
        *clients, *vandals, policies, watch_memory(server, until, course), return_exceptions=True
    )
    course.wrong += [repr(error) for error in ended if error is not None]


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
    """Random requests, clients that leave at every stage, preemption and changing policies: every text equals its solo
    run without speculation, nothing is held at the end, and memory stands still."""
    pair, dice, course = write_pair(tmp_path), random.Random(0), Course()
    # Each is asked for many times over, in ever other company; so few that all of them can be run alone at the end.
    keys = [json.dumps(body_of(dice), sort_keys=True) for _ in range(min(int(seconds), MOST_KEYS))]
    flags = ("--draft", str(pair.draft), "--dtype", "float32", "--device", "cpu", "--threads", "1")
    with (
        measured("soak") as figures,
        serve_process(pair.target, *flags, "--num-blocks", str(NUM_BLOCKS), "--max-model-len", "256") as server,
    ):
        server.wait_ready()
        async with ClientSession(timeout=ClientTimeout(total=120)) as session:
            await use(session, server, keys, time.monotonic() + seconds, course)
            figures |= {
                "seconds": seconds,
                "texts": course.finished,
                "distinct_texts": len(course.texts),
                "left_or_broken": course.left + course.broken,
                "policies": course.policies,
                "memory_mib": course.memory[-1][1],
                "memory_mib_a_minute": growth_a_minute(course.memory, seconds),
                "wrong": len(course.wrong),
            }
            for key in sorted(course.texts):
                alone = json.loads(key) | {"speculation": {"mode": "off"}}
                course.compare(key, await text_of(session, server.url, alone))
            figures |= {"solo_runs": len(course.texts), "wrong": len(course.wrong)}
            await asyncio.sleep(0.5)
            async with session.get(f"{server.admin_url}/load") as answer:
                load = await answer.json()
        held = {name: load[name] for name in ("num_requests_running", "num_requests_waiting", "kv_cache_usage")}
        figures |= {"preemptions": load["preemptions_total"], **held}
        assert course.wrong == []
        assert course.finished > seconds
        assert load["preemptions_total"] > 0
        assert set(held.values()) == {0}
        assert figures["memory_mib_a_minute"] < most_growth
        assert not any("Traceback" in line or "internal_error" in line for line in server.log)
