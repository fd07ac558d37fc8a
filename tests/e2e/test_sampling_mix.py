"""Requests made up from all sampling fields at once, all together on a server short of memory: each gets what it gets
alone and without speculation."""

import asyncio
import random
from collections.abc import Iterator
from typing import Any

import aiohttp
import pytest

from serve_process import ServeProcess, serve_process
from tiny import write_pair

NUM_REQUESTS = 48
WISHES: list[dict[str, Any]] = [{"mode": "fixed", "max_tokens": k} for k in (1, 4, 9)] + [{"mode": "auto"}]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServeProcess]:
    """A tiny pair in a cache that holds a few of the requests."""
    pair = write_pair(tmp_path_factory.mktemp("models"))
    arguments = ["--draft", str(pair.draft), "--dtype", "float32", "--device", "cpu", "--threads", "1"]
    arguments += ["--num-blocks", "48", "--block-size", "8", "--max-model-len", "320", "--max-queued-requests", "400"]
    with serve_process(pair.target, *arguments) as running:
        yield running.wait_ready()


def made_up(rng: random.Random) -> dict[str, Any]:
    """A completion with each field present or not; greedy or seeded, so that its text is a promise."""
    fields: dict[str, Any] = {
        "prompt": rng.choice(
            ["once upon", "def main():\n    ", "abcabcabcabcabc", [5, 9, 5, 9, 5], ["a", "two texts"]]
        ),
        "max_tokens": rng.randint(1, 40),
        "temperature": rng.choice([0.0, 0.7, 1.0, 1.6]),
        "seed": rng.randrange(1000),
        "return_token_ids": True,
    }
    optional: dict[str, Any] = {
        "n": rng.randint(1, 3),
        "top_p": rng.choice([0.5, 0.9]),
        "top_k": rng.choice([1, 5, 40]),
        "min_p": rng.choice([0.02, 0.2]),
        "presence_penalty": rng.uniform(-2, 2),
        "frequency_penalty": rng.uniform(-2, 2),
        "repetition_penalty": rng.choice([0.7, 1.2, 2.0]),
        "logit_bias": {str(rng.randrange(384)): rng.choice([-100, -2, 3, 6]) for _ in range(8)},
        "stop": rng.sample(["a", "e", " ", "th", "qu", "\n"], 2),
        "stop_token_ids": rng.sample(range(384), 30),
        "ignore_eos": rng.random() < 0.5,
        "min_tokens": rng.randint(0, fields["max_tokens"]),
        "logprobs": rng.choice([0, 2]),
        "echo": True,
        "prompt_logprobs": 1,
        "best_of": 4,
    }
    return fields | {name: value for name, value in optional.items() if rng.random() < 0.3}


def said(answer: dict[str, Any]) -> Any:
    """All that was delivered, log probabilities and usage included; how it was computed does not count."""
    usage = {name: answer["usage"][name] for name in ("prompt_tokens", "completion_tokens", "total_tokens")}
    return answer["choices"], usage


async def ask(session: aiohttp.ClientSession, url: str, fields: dict[str, Any]) -> Any:
    """The answer, which must be one."""
    async with session.post(f"{url}/v1/completions", json=fields) as response:
        answer = await response.json()
        assert response.status == 200, (fields, answer)
        return said(answer)


async def test_company_and_speculation_change_nothing(server: ServeProcess) -> None:
    """Choices, token ids, reasons, log probabilities to the last bit, and usage are those of a quiet server."""
    rng = random.Random(20)
    requests = [made_up(rng) for _ in range(NUM_REQUESTS)]
    async with aiohttp.ClientSession() as session:
        alone = [await ask(session, server.url, fields | {"speculation": {"mode": "off"}}) for fields in requests]
        for shift in range(2):
            together = await asyncio.gather(
                *(
                    ask(session, server.url, fields | {"speculation": WISHES[(i + shift) % len(WISHES)]})
                    for i, fields in enumerate(requests)
                )
            )
            for fields, one, other in zip(requests, alone, together, strict=True):
                assert one == other, fields
        text = (await (await session.get(f"{server.url}/metrics")).text()).splitlines()
    values = {line.partition("{")[0]: float(line.rpartition(" ")[2]) for line in text if line.startswith("vllm:")}
    assert values["vllm:num_preemptions_total"] > 5
    assert values["vllm:spec_decode_num_accepted_tokens_total"] > 100
    reasons = {choice["finish_reason"] for choices, _ in alone for choice in choices}
    assert reasons == {"stop", "length"}
