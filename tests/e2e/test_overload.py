"""Five times more than the server can do: who was let in is served as at peak, the rest is told at once, and when the
flood is over it is over."""

import asyncio
import random
import re
import statistics
import time
from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession, ClientTimeout, TCPConnector

from figures import measured
from serve_process import serve_process
from smartspec.metrics import LATENCY_BUCKETS_SECONDS, Histogram

MODELS = Path(__file__).parents[2] / "examples/models"
SEQUENCES = 16
QUEUE = 32
TOKENS = 48
TIMES = 5.0
PATIENCE_SECONDS = 60.0


@dataclass
class Seen:
    """What clients met."""

    statuses: Counter[int] = field(default_factory=Counter)
    ttft: list[float] = field(default_factory=list)
    retry_after: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    usual_ttft: float = 0.0


@dataclass
class Flood:
    """What became of one."""

    tokens_per_second: float
    recovery_seconds: float


async def ask(session: ClientSession, url: str, dice: random.Random, seen: Seen) -> None:
    """One streamed request of `TOKENS` tokens; its time to the first event counts when it was let in."""
    body = {"prompt": f"def f_{dice.randrange(10**6)}(self):", "max_tokens": TOKENS, "stream": True, "ignore_eos": True,
            "temperature": 0}  # fmt: skip
    began = time.monotonic()
    try:
        async with session.post(f"{url}/v1/completions", json=body) as answer:
            seen.statuses[answer.status] += 1
            if answer.status == 429:
                seen.retry_after.append(float(answer.headers["Retry-After"]))
                return
            events, last = 0, b""
            async for line in answer.content:
                if line.startswith(b"data: "):
                    if not events:
                        seen.ttft.append(time.monotonic() - began)
                    events += 1
                    last = line
            assert last.strip() == b"data: [DONE]"
    except Exception as error:  # every one is a finding
        seen.failures.append(repr(error))


async def metrics(session: ClientSession, url: str) -> str:
    """The exposition."""
    async with session.get(f"{url}/metrics") as answer:
        return await answer.text()


def counter(text: str, name: str) -> float:
    """The value of a metric without further labels."""
    found = re.search(rf"^{re.escape(name)}{{[^}}]*}} (\S+)$", text, flags=re.MULTILINE)
    assert found is not None, name
    return float(found[1])


def histogram(text: str, name: str) -> Histogram:
    """A latency histogram of the exposition."""
    found = re.findall(rf"^{re.escape(name)}_bucket{{.*le=\"(\S+?)\".*}} (\S+)$", text, flags=re.MULTILINE)
    sums = [int(float(value)) for _, value in found]
    assert len(sums) == len(LATENCY_BUCKETS_SECONDS) + 1, name
    return Histogram(tuple(here - before for here, before in zip(sums, [0, *sums], strict=False)))


async def peak(session: ClientSession, url: str, seconds: float) -> float:
    """Generated tokens a second while every place is taken, and nobody is refused."""
    seen, until = Seen(), time.monotonic() + seconds

    async def keep_asking(dice: random.Random) -> None:
        while time.monotonic() < until:
            await ask(session, url, dice, seen)

    asking = [asyncio.create_task(keep_asking(random.Random(i))) for i in range(SEQUENCES + 8)]
    await asyncio.sleep(0.2 * seconds)
    began, before = time.monotonic(), counter(await metrics(session, url), "vllm:generation_tokens_total")
    await asyncio.sleep(0.7 * seconds)
    after, ended = counter(await metrics(session, url), "vllm:generation_tokens_total"), time.monotonic()
    await asyncio.gather(*asking)
    assert (seen.failures, seen.statuses.keys()) == ([], {200})
    return (after - before) / (ended - began)


async def flood(session: ClientSession, url: str, rate: float, seconds: float, seen: Seen) -> Flood:
    """Requests at *rate* a second, as independent people would send them, until they stop and the server is as before
    them."""
    dice, tasks = random.Random(7), set()
    began = due = time.monotonic()
    before, measured_from = 0.0, 0.0
    while (now := time.monotonic()) < began + seconds:
        if not measured_from and now > began + 0.15 * seconds:
            before, measured_from = counter(await metrics(session, url), "vllm:generation_tokens_total"), now
        due += dice.expovariate(rate)
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        tasks.add(task := asyncio.create_task(ask(session, url, dice, seen)))
        task.add_done_callback(tasks.discard)
    after, ended = counter(await metrics(session, url), "vllm:generation_tokens_total"), time.monotonic()
    recovered = await recovery(session, url, seen.usual_ttft)
    await asyncio.wait_for(asyncio.gather(*tasks), PATIENCE_SECONDS)
    return Flood((after - before) / (ended - measured_from), recovered)


async def recovery(session: ClientSession, url: str, usual_ttft: float) -> float:
    """Seconds from now until a request meets an idle server again."""
    began = time.monotonic()
    while (asked := time.monotonic()) < began + PATIENCE_SECONDS:
        one = Seen()
        await ask(session, url, random.Random(1), one)
        if one.ttft and one.ttft[0] < 3 * usual_ttft + 0.05:
            return asked + one.ttft[0] - began
        await asyncio.sleep(0.05)
    return PATIENCE_SECONDS


@pytest.mark.timed
@pytest.mark.parametrize(
    ("rounds", "peak_seconds", "flood_seconds", "is_long"),
    [
        pytest.param(1, 5.0, 12.0, False, id="short"),
        pytest.param(3, 15.0, 60.0, True, id="long", marks=pytest.mark.slow),
    ],
)
async def test_five_times_too_much(rounds: int, peak_seconds: float, flood_seconds: float, is_long: bool) -> None:
    """Goodput, bounded waiting, quick refusals with a time to come back, and a quick end. Each flood is compared with
    the peaks before and after it, so that what else the machine does weighs on both."""
    flags: list[Any] = ["--draft", MODELS / "stdlib-draft", "--dtype", "float32", "--device", "cpu", "--threads", "2",
                        "--max-num-seqs", SEQUENCES, "--max-queued-requests", QUEUE]  # fmt: skip
    connector = TCPConnector(limit=0)
    with measured("overload") as figures, serve_process(MODELS / "stdlib-target", *map(str, flags)) as server:
        server.wait_ready()
        async with ClientSession(timeout=ClientTimeout(total=120), connector=connector) as session:
            alone = Seen()
            for i in range(10):
                await ask(session, server.url, random.Random(i), alone)
            seen = Seen(usual_ttft=statistics.median(alone.ttft))
            peaks, floods = [await peak(session, server.url, peak_seconds)], []
            before = server.resident_mebibytes()
            for _ in range(rounds):
                rate = TIMES * peaks[-1] / TOKENS
                floods.append(await flood(session, server.url, rate, flood_seconds, seen))
                peaks.append(await peak(session, server.url, peak_seconds))
            growth = server.resident_mebibytes() - before
            text = await metrics(session, server.url)
        rejections = histogram(text, "smartspec_rejection_seconds")
        ttft = sorted(seen.ttft)
        refused = seen.statuses[429]
        beside = [statistics.mean(around) for around in pairwise(peaks)]
        shares = [one.tokens_per_second / usual for one, usual in zip(floods, beside, strict=True)]
        most_wait = QUEUE * TOKENS / statistics.mean(peaks)
        figures |= {
            "seconds": rounds * flood_seconds,
            "peak_tokens_per_second": statistics.mean(peaks),
            "flooded_tokens_per_second": statistics.mean(one.tokens_per_second for one in floods),
            "share_of_peak": statistics.mean(shares),
            "shares_of_peak": shares,
            "requests_per_second": (refused + seen.statuses[200]) / (rounds * flood_seconds),
            "served": seen.statuses[200],
            "refused": refused,
            "failures": len(seen.failures),
            "ttft_p50_seconds": statistics.median(ttft),
            "ttft_p95_seconds": ttft[int(0.95 * len(ttft))],
            "ttft_max_seconds": ttft[-1],
            "queue_at_peak_seconds": most_wait,
            "refusal_p95_seconds": rejections.quantile(0.95),
            "retry_after_seconds": statistics.median(seen.retry_after or [0.0]),
            "recovery_seconds": max(one.recovery_seconds for one in floods),
            "memory_growth_mib": growth,
        }
        assert seen.failures == []
        assert seen.statuses.keys() == {200, 429}
        assert refused > seen.statuses[200]
        assert rejections.total >= refused  # and those who asked whether it is over
        # The machine may be busy with something else: the published figures are held to more than every run is.
        assert figures["share_of_peak"] > (0.9 if is_long else 0.4), shares
        assert (rejections.quantile(0.95) or 9.0) <= (0.05 if is_long else 0.25)
        assert figures["ttft_p95_seconds"] < (2 * most_wait + 1 if is_long else 3 * most_wait + 2)
        assert figures["recovery_seconds"] < (10 if is_long else 30)
        assert growth < 400
